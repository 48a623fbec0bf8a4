"""Every leaf of every tree can be proved, and nothing else can."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.proto.keccak import keccak256
from hansa.proto.merkle import inclusion_proof, is_included, leaf_hash, merkle_root, node_hash

leaves_of = st.lists(st.binary(max_size=40), min_size=1, max_size=40)


def test_the_root_is_rfc_6962s_over_keccak():
    a, b, c = (leaf_hash(leaf) for leaf in (b"a", b"b", b"c"))
    assert leaf_hash(b"a") == keccak256(b"\0a")
    assert merkle_root([]) == keccak256(b"")
    assert merkle_root([b"a"]) == a
    assert merkle_root([b"a", b"b", b"c"]) == node_hash(node_hash(a, b), c)
    assert node_hash(a, b) == keccak256(b"\1" + a + b)


def test_a_tree_of_seven_is_split_four_and_three():
    leaves = [bytes([number]) for number in range(7)]
    assert merkle_root(leaves) == node_hash(merkle_root(leaves[:4]), merkle_root(leaves[4:]))


def test_every_leaf_of_every_small_tree_is_proved():
    for size in range(1, 34):
        leaves = [bytes([number]) for number in range(size)]
        root = merkle_root(leaves)
        for index, leaf in enumerate(leaves):
            proof = inclusion_proof(leaves, index)
            assert is_included(root=root, size=size, leaf=leaf, index=index, proof=proof)
            for other in range(size):
                if other != index:
                    assert not is_included(root=root, size=size, leaf=leaf, index=other, proof=proof)


@given(leaves_of, st.data())
def test_a_changed_leaf_proof_or_root_is_not_included(leaves, data):
    index = data.draw(st.integers(0, len(leaves) - 1))
    root, proof, leaf, size = merkle_root(leaves), inclusion_proof(leaves, index), leaves[index], len(leaves)
    assert is_included(root=root, size=size, leaf=leaf, index=index, proof=proof)
    other_leaf = data.draw(st.binary(max_size=70).filter(lambda drawn: drawn != leaf))
    assert not is_included(root=root, size=size, leaf=other_leaf, index=index, proof=proof)
    assert not is_included(root=bytes(32), size=size, leaf=leaf, index=index, proof=proof)
    assert not is_included(root=root, size=size, leaf=leaf, index=index, proof=(*proof, bytes(32)))
    if proof:
        assert not is_included(root=root, size=size, leaf=leaf, index=index, proof=proof[:-1])
        at = data.draw(st.integers(0, len(proof) - 1))
        bent = (*proof[:at], bytes(32), *proof[at + 1 :])
        assert not is_included(root=root, size=size, leaf=leaf, index=index, proof=bent)


@given(st.lists(st.binary(max_size=4), max_size=12), st.lists(st.binary(max_size=4), max_size=12))
def test_two_lists_of_leaves_share_no_root(one, other):
    assert (merkle_root(one) == merkle_root(other)) == (one == other)


def test_an_inner_node_is_no_leaf():
    leaves = [b"a", b"b", b"c", b"d"]
    root = merkle_root(leaves)
    left, right = merkle_root(leaves[:2]), merkle_root(leaves[2:])
    # The classic second preimage: the two halves' hashes as if they were the bytes of one leaf, or of two.
    assert merkle_root([left + right]) != root
    assert merkle_root([left, right]) != root
    assert not is_included(root=root, size=1, leaf=left + right, index=0, proof=())
    assert not is_included(root=root, size=2, leaf=left, index=0, proof=(right,))
    inner = leaf_hash(b"a") + leaf_hash(b"b")
    assert not is_included(root=root, size=2, leaf=inner, index=0, proof=(right,))


def test_the_last_leaf_repeated_is_another_tree():
    assert merkle_root([b"a", b"b", b"c"]) != merkle_root([b"a", b"b", b"c", b"c"])


@pytest.mark.parametrize(
    "changed",
    [{"size": 0}, {"size": 2}, {"size": 1 << 65}, {"size": True}, {"index": -1}, {"index": 3}, {"index": 1.0},
     {"index": 1 << 300}, {"proof": (b"",)}, {"proof": ("a" * 32,)}, {"proof": (bytes(31),)}, {"proof": ()},
     {"proof": (bytes(32),) * 100}],
)  # fmt: skip
def test_a_strange_proof_is_an_answer_of_no(changed):
    leaves = [b"a", b"b", b"c"]
    good = {"root": merkle_root(leaves), "size": 3, "leaf": b"b", "index": 1, "proof": inclusion_proof(leaves, 1)}
    assert is_included(**good)
    assert not is_included(**(good | changed))


@given(leaves_of, st.lists(st.binary(min_size=32, max_size=32), max_size=8), st.integers(0, 50), st.integers(0, 50))
def test_no_made_up_proof_passes(leaves, proof, index, size):
    assert not is_included(root=merkle_root(leaves), size=size, leaf=b"x" * 41, index=index, proof=proof)


def test_there_is_no_proof_for_a_leaf_that_is_not_there():
    for index in (-1, 2):
        with pytest.raises(IndexError):
            inclusion_proof([b"a", b"b"], index)
