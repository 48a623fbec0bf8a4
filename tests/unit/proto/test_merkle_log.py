"""A log's tree grows one leaf at a time, and proves what is in it and what it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.proto.keccak import keccak256
from hansa.proto.merkle import NODE_PREFIX, inclusion_proof, is_included, leaf_hash, merkle_root
from hansa.proto.merkle_log import (
    EMPTY_ROOT,
    Edge,
    consistency,
    inclusion,
    is_consistent,
    nodes_after,
    root_at,
)

MOST = 70


def grown(leaves):
    """An edge after these leaves, and its stored nodes by number."""
    edge, nodes = Edge(), []
    for leaf in leaves:
        nodes += edge.append(leaf)
    return edge, lambda number: nodes[number - 1], nodes


LEAVES = [bytes([number]) * 3 for number in range(MOST)]
EDGE, NODE, NODES = grown(LEAVES)


def test_it_has_the_roots_of_the_plain_tree_at_every_size():
    for size in range(MOST + 1):
        edge, _, nodes = grown(LEAVES[:size])
        assert edge.root == merkle_root(LEAVES[:size]) == root_at(size, NODE)
        assert len(nodes) == nodes_after(size)


def test_it_goes_on_from_stored_nodes_at_every_size():
    for size in range(MOST):
        edge = Edge(size, NODE)
        assert edge.root == root_at(size, NODE)
        assert edge.copy().append(LEAVES[size]) == NODES[nodes_after(size) : nodes_after(size + 1)]
        assert edge.size == size


def test_every_leaf_of_every_size_is_proved_as_by_the_plain_tree():
    for size in range(1, 40):
        for index in range(size):
            proof = inclusion(index, size, NODE)
            assert proof == inclusion_proof(LEAVES[:size], index)
            assert is_included(root=root_at(size, NODE), size=size, leaf=LEAVES[index], index=index, proof=proof)


def test_every_beginning_of_every_size_is_proved():
    for second in range(41):
        for first in range(second + 1):
            proof = consistency(first, second, NODE)
            roots = {"first_root": root_at(first, NODE), "second_root": root_at(second, NODE)}
            assert is_consistent(first=first, second=second, proof=proof, **roots)
            if first not in (0, second):
                assert not is_consistent(first=first, second=second, proof=(), **roots)


@given(st.integers(1, MOST), st.integers(1, MOST), st.data())
def test_another_past_has_no_proof(one, other, data):
    first, second = sorted((one, other))
    changed = data.draw(st.integers(0, first - 1))
    _, node, _ = grown([b"other" if number == changed else leaf for number, leaf in enumerate(LEAVES)])
    truth, lie = root_at(first, NODE), root_at(first, node)
    for proof in (consistency(first, second, NODE), consistency(first, second, node)):
        assert not is_consistent(
            first=first, first_root=lie, second=second, second_root=root_at(second, NODE), proof=proof
        )
        assert not is_consistent(
            first=first, first_root=truth, second=second, second_root=root_at(second, node), proof=proof
        )


@given(st.integers(1, MOST - 1), st.data())
def test_a_bent_proof_proves_nothing(first, data):
    second = data.draw(st.integers(first + 1, MOST))
    proof = consistency(first, second, NODE)
    roots = {"first_root": root_at(first, NODE), "second_root": root_at(second, NODE)}
    at = data.draw(st.integers(0, len(proof) - 1))
    for bent in (
        (*proof[:at], bytes(32), *proof[at + 1 :]),
        (*proof[:at], *proof[at + 1 :]),
        (*proof, bytes(32)),
        (*proof[:at], b"short", *proof[at + 1 :]),
        tuple([bytes(32)] * 99),
    ):
        assert not is_consistent(first=first, second=second, proof=bent, **roots)
    assert not is_consistent(first=second, second=first, proof=proof, **roots)
    assert not is_consistent(first=True, second=second, proof=proof, **roots)


def test_merkle_second_preimage_an_inner_node_is_no_leaf_of_the_log():
    left, right = leaf_hash(LEAVES[0]), leaf_hash(LEAVES[1])
    forged = left + right
    assert keccak256(NODE_PREFIX + forged) == root_at(2, NODE)
    # With leaves and nodes hashed alike this would be a log of one leaf with the root of two.
    edge, _, _ = grown([forged])
    assert edge.root != root_at(2, NODE)
    assert not is_included(root=root_at(2, NODE), size=1, leaf=forged, index=0, proof=())
    assert not is_included(root=root_at(4, NODE), size=2, leaf=forged, index=0, proof=(root_at(4, NODE),))


def test_a_proof_for_one_size_is_none_for_a_far_larger_one():
    for second in range(2, 30):
        for first in range(1, second):
            proof = consistency(first, second, NODE)
            roots = {"first_root": root_at(first, NODE), "second_root": root_at(second, NODE)}
            assert not is_consistent(first=first, second=4 * second, proof=proof, **roots)


def test_of_nothing_there_is_nothing_to_prove():
    assert Edge().root == EMPTY_ROOT == merkle_root([])
    with pytest.raises(IndexError):
        inclusion(0, 0, NODE)
    with pytest.raises(IndexError):
        consistency(3, 2, NODE)
