"""Digests are eth-account's on every valid document, and no invalid value has one."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from drawn_documents import SETTLEMENT_DOCUMENTS, any_document, documents_of, values_of
from eth_account.messages import encode_typed_data
from eth_utils import keccak
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import typed_vectors

from hansa.proto import documents, market_documents
from hansa.proto.errors import Malformed
from hansa.proto.typed_data import (
    Domain,
    digest,
    element_of,
    encode_type,
    is_document,
    members_of,
    struct_hash,
    type_hash,
    unwrap,
)
from hansa.proto.units import (
    Address,
    AtMost,
    Bytes32,
    Int64,
    Line,
    Uint8,
    Uint64,
    Uint128,
    Uint256,
)

VECTORS = (
    Path(__file__).parents[2] / "vectors" / "eip712.json",
    Path(__file__).parents[4] / "shared" / "data" / "vectors" / "eip712.json",
)
"""Those made by eth-account that lie here, and others that lie beside the project on some machines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    name: str
    weight: Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Basket:
    TYPED_NAMES: ClassVar = {"odd_one": "ODD"}
    owner: Address
    flag: bool
    leaf: Leaf
    leaves: tuple[Leaf, ...]
    numbers: Annotated[tuple[Uint64, ...], AtMost(5)]
    nested: tuple[tuple[Uint8, ...], ...]
    marks: tuple[bytes, ...]
    words: tuple[Line, ...]
    blob: bytes
    price_e18_per_device_ms: Uint128
    odd_one: Uint256


def domains():
    return st.builds(
        Domain,
        name=st.text("abc é", max_size=9),
        version=st.text("0123456789", max_size=3),
        chain_id=st.integers(0, (1 << 256) - 1),
        verifying_contract=st.binary(min_size=20, max_size=20),
    )


DOMAIN = Domain(name="HansaLedger", version="1", chain_id=0, verifying_contract=bytes(range(20)))


def as_eth_account_sees(hint: Any, value: Any) -> Any:
    bare, _ = unwrap(hint)
    if is_document(bare):
        return {m.name: as_eth_account_sees(m.hint, getattr(value, m.attribute)) for m in members_of(bare)}
    element = element_of(bare)
    if element is not None:
        return [as_eth_account_sees(element, item) for item in value]
    return value


def eth_account_digest(domain: Domain, document: Any) -> bytes:
    types: dict[str, Any] = {}

    def collect(cls: type) -> None:
        types[cls.__name__] = [{"name": m.name, "type": m.solidity} for m in members_of(cls)]
        for m in members_of(cls):
            bare, _ = unwrap(m.hint)
            while element_of(bare) is not None:
                bare, _ = unwrap(element_of(bare))
            if is_document(bare):
                collect(bare)

    collect(type(document))
    signable = encode_typed_data(
        {
            "name": domain.name,
            "version": domain.version,
            "chainId": domain.chain_id,
            "verifyingContract": "0x" + domain.verifying_contract.hex(),
        },
        types,
        as_eth_account_sees(type(document), document),
    )
    assert signable.header == domain.separator
    assert signable.body == struct_hash(document)
    return keccak(b"\x19" + signable.version + signable.header + signable.body)


@settings(max_examples=300, deadline=None)
@given(domains(), any_document())
def test_every_settlement_document_has_eth_accounts_digest(domain, document):
    assert digest(domain, document) == eth_account_digest(domain, document)


@settings(max_examples=200, deadline=None)
@given(domains(), documents_of(Basket))
def test_structs_arrays_and_text_have_eth_accounts_digest(domain, document):
    assert digest(domain, document) == eth_account_digest(domain, document)


def test_type_strings_are_the_documents_of_the_escrow_and_the_peers():
    assert [encode_type(cls) for cls in SETTLEMENT_DOCUMENTS] == [
        (
            "ChannelConfig(address payer,address payerSigner,address payee,address payeeSigner,"
            "address token,uint64 challengePeriod,bytes32 splitsHash,bytes32 salt)"
        ),
        "Voucher(bytes32 channelId,uint128 cumulative,bytes32 statement)",
        "CooperativeClose(bytes32 channelId,uint128 cumulative)",
        (
            "MeterLine(bytes32 lease,uint32 shard,bytes32 device,uint64 startMs,uint64 endMs,"
            "uint128 deviceMs,uint128 amount)"
        ),
        (
            "Receipt(bytes32 channelId,uint64 seq,bytes32 prev,uint64 periodStartMs,uint64 periodEndMs,"
            "uint128 amountTotal,uint32 lines,bytes32 linesRoot,bytes32 evidence)"
        ),
        (
            "NodeBinding(address account,bytes peerId,bytes32 roles,uint128 spendLimit,uint64 notBefore,"
            "uint64 notAfter,uint64 epoch)"
        ),
        "TreeHead(bytes32 logId,uint64 size,bytes32 root,uint64 timestampMs)",
        "CreditLine(address creditor,address debtor,bytes32 unit,uint128 limit,uint64 notAfter,uint64 nonce)",
        ("Payment(address creditor,address debtor,bytes32 unit,uint128 total,string how,uint64 nonce,uint64 paidMs)"),
        "Netting(address lower,address higher,bytes32 unit,uint128 total,uint64 nonce)",
        "ChannelEnd(bytes32 channelId,uint128 paid,uint64 settledMs)",
    ]


def test_structs_below_follow_by_name_and_names_can_be_overridden():
    assert encode_type(Basket) == (
        "Basket(address owner,bool flag,Leaf leaf,Leaf[] leaves,uint64[] numbers,uint8[][] nested,bytes[] marks,"
        "string[] words,bytes blob,uint128 priceE18PerDeviceMs,uint256 ODD)Leaf(string name,int64 weight)"
    )


def test_every_market_document_has_a_type_of_its_own():
    signed = [getattr(market_documents, name) for name in ("Advert", "Tender", "Bid", "Decline", "Award")]
    assert len({type_hash(cls) for cls in (*signed, *SETTLEMENT_DOCUMENTS)}) == len(signed) + len(SETTLEMENT_DOCUMENTS)


def from_json(hint: Any, value: Any) -> Any:
    """A value of the type that a field has."""
    bare, _ = unwrap(hint)
    if is_document(bare):
        return bare(**{m.attribute: from_json(m.hint, value[m.name]) for m in members_of(bare)})
    element = element_of(bare)
    if element is not None:
        return tuple(from_json(element, item) for item in value)
    return bytes.fromhex(value[2:]) if bare is bytes else bare(value)


def test_the_vectors_that_lie_here_are_eth_accounts_and_name_every_settlement_document():
    vectors = json.loads(VECTORS[0].read_text())
    assert typed_vectors.vectors() == vectors, "python tests/kit/typed_vectors.py > tests/vectors/eip712.json"
    assert {cls.__name__ for cls in SETTLEMENT_DOCUMENTS} < {vector["primaryType"] for vector in vectors["types"]}


@pytest.mark.parametrize("path", VECTORS, ids=("here", "beside"))
def test_golden_vectors(path):
    from hansa.proto.signing import SigningKey, parse_address, recover

    if not path.exists():
        pytest.skip(f"these vectors are not there: {path}")
    vectors = json.loads(path.read_text())
    stated = vectors["domain"]
    domain = Domain(
        name=stated["name"],
        version=stated["version"],
        chain_id=int(stated["chainId"]),
        verifying_contract=parse_address(stated["verifyingContract"]),
    )
    key = SigningKey(bytes.fromhex(vectors["privateKey"][2:]))
    assert "0x" + domain.separator.hex() == vectors["domainSeparator"]
    assert key.address == parse_address(vectors["address"])
    for vector in vectors["types"]:
        name = vector["primaryType"]
        cls = getattr(documents, name, None) or getattr(market_documents, name)
        document = from_json(cls, vector["message"])
        assert encode_type(cls) == vector["typeString"]
        assert "0x" + type_hash(cls).hex() == vector["typeHash"]
        assert "0x" + struct_hash(document).hex() == vector["structHash"]
        assert "0x" + digest(domain, document).hex() == vector["digest"]
        signature = key.sign_digest(digest(domain, document))
        assert "0x" + signature.hex() == vector["signature"]
        assert recover(digest(domain, document), signature) == key.address


GOOD_BASKET = Basket(
    owner=bytes(20),
    flag=True,
    leaf=Leaf(name="a", weight=-1),
    leaves=(Leaf(name="b", weight=2),),
    numbers=(1, 2),
    nested=((1,), ()),
    marks=(b"x",),
    words=("y",),
    blob=b"",
    price_e18_per_device_ms=1,
    odd_one=2,
)


@pytest.mark.parametrize(
    ("attribute", "bad"),
    [
        ("owner", bytes(19)), ("owner", bytes(21)), ("owner", bytes(32)), ("owner", "0x" + "00" * 20), ("owner", 0),
        ("owner", bytearray(20)), ("owner", None),
        ("flag", 1), ("flag", 0), ("flag", "true"), ("flag", None),
        ("leaf", Leaf(name="a", weight=1 << 63)), ("leaf", Leaf(name="\ud800", weight=1)), ("leaf", None),
        ("leaf", {"name": "a", "weight": 1}), ("leaf", Leaf(name=b"a", weight=1)),
        ("leaf", Leaf(name="a", weight=True)),
        ("leaves", [Leaf(name="b", weight=2)]), ("leaves", (1,)), ("leaves", None),
        ("numbers", (1, -1)), ("numbers", (True,)), ("numbers", (1 << 64,)), ("numbers", tuple(range(6))),
        ("nested", ((256,),)), ("nested", (1,)),
        ("marks", ("x",)), ("marks", (bytearray(b"x"),)),
        ("words", (b"y",)), ("words", ("y" * 257,)), ("words", ("\udfff",)),
        ("blob", ""), ("blob", None), ("blob", 0), ("blob", bytearray(1)), ("blob", memoryview(b"a")),
        ("price_e18_per_device_ms", -1), ("price_e18_per_device_ms", 1 << 128), ("price_e18_per_device_ms", True),
        ("price_e18_per_device_ms", 1.0), ("price_e18_per_device_ms", "1"), ("price_e18_per_device_ms", None),
        ("odd_one", 1 << 256), ("odd_one", -5), ("odd_one", False), ("odd_one", b""),
    ],
)  # fmt: skip
def test_no_digest_stands_over_a_value_of_another_type_length_or_range(attribute, bad):
    digest(DOMAIN, GOOD_BASKET)
    with pytest.raises(Malformed):
        digest(DOMAIN, replace(GOOD_BASKET, **{attribute: bad}))


def test_one_bytes32_is_not_shared_by_minus_five_zero_and_nothing():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Word:
        word: Bytes32

    for coerced in (-5, 0, b"", b"\0" * 31, "text", "0x00", None, True):
        with pytest.raises(Malformed):
            struct_hash(Word(word=coerced))


def test_a_subclass_of_a_type_is_not_the_type():
    class Number(int):
        pass

    class Text(str):
        __slots__ = ()

    with pytest.raises(Malformed):
        struct_hash(replace(GOOD_BASKET, odd_one=Number(2)))
    with pytest.raises(Malformed):
        struct_hash(replace(GOOD_BASKET, leaf=Leaf(name=Text("a"), weight=1)))


@pytest.mark.parametrize(
    "changed",
    [{"name": 1}, {"name": "\ud800"}, {"version": 1}, {"chain_id": -1}, {"chain_id": True}, {"chain_id": 1 << 256},
     {"chain_id": "1"}, {"verifying_contract": bytes(19)}, {"verifying_contract": "0x"}],
)  # fmt: skip
def test_a_domain_is_checked_too(changed):
    good = {"name": "n", "version": "1", "chain_id": 1, "verifying_contract": bytes(20)}
    Domain(**good)
    with pytest.raises(Malformed):
        Domain(**(good | changed))


@given(any_document(), st.data())
def test_another_value_in_any_field_is_another_digest(document, data):
    member = data.draw(st.sampled_from(members_of(type(document))))
    other = replace(document, **{member.attribute: data.draw(values_of(member.hint))})
    assert (digest(DOMAIN, document) == digest(DOMAIN, other)) == (document == other)


def test_another_domain_is_another_digest():
    voucher = documents.Voucher(channel_id=bytes(32), cumulative=1, statement=bytes(32))
    others = [
        replace(DOMAIN, name="HansaEscrow"),
        replace(DOMAIN, version="2"),
        replace(DOMAIN, chain_id=1),
        replace(DOMAIN, verifying_contract=bytes(20)),
    ]
    assert len({digest(domain, voucher) for domain in (DOMAIN, *others)}) == 5


def test_a_class_that_could_change_after_signing_is_refused():
    @dataclass(slots=True, kw_only=True)
    class Thawed:
        word: Bytes32

    @dataclass(frozen=True, kw_only=True)
    class Open:
        word: Bytes32

    @dataclass(frozen=True, slots=True)
    class Positional:
        word: Bytes32

    for cls in (Thawed, Open, Positional, int):
        with pytest.raises(TypeError):
            members_of(cls)


def test_a_field_without_a_struct_type_is_refused_when_the_class_is_first_used():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Loose:
        number: int

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Floating:
        number: float

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Twice:
        a_b: Uint8
        aB: Uint8  # noqa: N815

    for cls in (Loose, Floating, Twice):
        with pytest.raises(TypeError):
            encode_type(cls)
