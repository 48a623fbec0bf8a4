"""JSON is read in one spelling only, and any text becomes a document or a protocol error."""

import json
import sys
from dataclasses import dataclass

import pytest
from drawn_documents import any_document, documents_of
from hypothesis import given
from hypothesis import strategies as st

from hansa.proto.documents import NodeBinding, TreeHead, Voucher
from hansa.proto.errors import Malformed, ProtocolError, TooLarge
from hansa.proto.typed_json import from_json, parse_json, read_value, to_json, to_plain
from hansa.proto.units import Address, Bytes32, Int64, Uint8, Uint128


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    big: Uint128


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    who: Address
    word: Bytes32
    blob: bytes
    text: str
    flag: bool
    small: Uint8
    below_zero: Int64
    big: Uint128
    inner: Inner
    many: tuple[Inner, ...]


@given(any_document())
def test_a_settlement_document_written_and_read_is_the_same(document):
    assert from_json(type(document), to_json(document)) == document
    assert from_json(type(document), to_plain(document)) == document


@given(documents_of(Sample))
def test_every_kind_of_field_written_and_read_is_the_same(document):
    assert from_json(Sample, to_json(document)) == document
    assert from_json(Sample, to_json(document).encode()) == document


GOOD = {
    "who": "0x" + "11" * 20, "word": "0x" + "22" * 32, "blob": "0x", "text": "t", "flag": True, "small": 255,
    "belowZero": -5, "big": "340282366920938463463374607431768211455", "inner": {"big": "0"}, "many": [{"big": "1"}],
}  # fmt: skip


def test_integers_are_numbers_up_to_64_bits_and_decimal_strings_above():
    head = TreeHead(log_id=bytes(32), size=(1 << 64) - 1, root=bytes(32), timestamp_ms=0)
    assert json.loads(to_json(head))["size"] == (1 << 64) - 1
    voucher = Voucher(channel_id=bytes(32), cumulative=(1 << 128) - 1, statement=bytes(32))
    assert json.loads(to_json(voucher))["cumulative"] == "340282366920938463463374607431768211455"
    assert from_json(Sample, GOOD).big == (1 << 128) - 1


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *[("big", bad) for bad in (1, 0, -1, "-1", "+1", "", " 1", "1 ", "01", "00", "1_000", "\uff11\uff12",
                                   "\u0663", "1.0", "1e3",
                                   "0x1", "1\n", str(1 << 128), "9" * 5000, True, None, [], {}, 1.0)],
        *[("small", bad) for bad in (256, -1, "1", True, False, None, 1.0, [1], 1 << 64)],
        *[("belowZero", bad) for bad in (1 << 63, -(1 << 63) - 1, "-5", True, None)],
        *[("who", bad) for bad in ("0x" + "11" * 19, "0x" + "11" * 21, "11" * 20, "0X" + "11" * 20, "", None, 0,
                                   "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD", "0x" + "\uff11" * 40)],
        *[("word", bad) for bad in ("0x" + "22" * 31, "0x" + "22" * 33, "0x" + "2" * 63, "0x" + "AA" * 32, "text", "",
                                    "0x", None, 0, -5, "22" * 32, " 0x" + "22" * 31)],
        *[("blob", bad) for bad in ("", "0x1", "0xAB", "00", "0x 00", "0xzz", None, 0, [])],
        *[("text", bad) for bad in (1, None, True, ["t"], "\ud800")],
        *[("flag", bad) for bad in (1, 0, "true", None)],
        *[("inner", bad) for bad in (None, [], "0", {}, {"big": 0}, {"big": "0", "more": 1}, {"Big": "0"})],
        *[("many", bad) for bad in (None, {}, "0", [1], [None], [{"big": "1"}, {}], {"big": "1"})],
    ],
)  # fmt: skip
def test_another_spelling_of_a_value_is_refused(name, bad):
    assert from_json(Sample, json.dumps(GOOD))
    with pytest.raises(Malformed):
        from_json(Sample, GOOD | {name: bad})
    with pytest.raises(Malformed):
        from_json(Sample, json.dumps(GOOD | {name: bad}))


def test_a_field_too_many_too_few_or_of_another_name_is_refused():
    for name, good in GOOD.items():
        less = {key: value for key, value in GOOD.items() if key != name}
        for changed in (less, GOOD | {"extra": 1}, less | {name.upper(): good}, less | {name + " ": good}):
            with pytest.raises(Malformed):
                from_json(Sample, changed)
    # Python's own name of a field is not its name in the struct.
    renamed = {key: value for key, value in GOOD.items() if key != "belowZero"} | {"below_zero": -5}
    with pytest.raises(Malformed):
        from_json(Sample, renamed)


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"a":1}', '{"a":{"b":1,"b":2}}', "1.0", "1e3", "NaN", "Infinity", "-Infinity", "1_000",
     "\uff11\uff12", "01", "+1",
     "", " ", "{", "[1,]", "{'a':1}", "[1] x", "\ufeff1", "9" * 79, "9" * 5000, "-" + "9" * 5000, '"\n"', "nul",
     b"\xff", b"\xef\xbb\xbf1", "[" * 65 + "]" * 65, '{"a":' * 65 + "1" + "}" * 65],
)  # fmt: skip
def test_loose_json_is_refused(text):
    with pytest.raises(Malformed):
        parse_json(text)


def test_nesting_is_counted_outside_of_strings_only():
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json(json.dumps(["[{" * 500, '\\"' + "[" * 500, '"[' * 99]))[2] == '"[' * 99
    assert len(parse_json("[" + "[]," * 500 + "[]]")) == 501


def test_a_megabyte_of_brackets_does_not_kill_the_process():
    # Under the recursion limit that some libraries set, json alone would overflow the stack here.
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        with pytest.raises(Malformed, match="nested deeper"):
            parse_json("[" * 1_000_000)
    finally:
        sys.setrecursionlimit(limit)


def test_too_long_a_text_is_refused_before_it_is_read():
    with pytest.raises(TooLarge):
        parse_json('"' + "a" * (1 << 20) + '"')


@given(st.one_of(st.text(), st.binary()))
def test_any_text_is_a_document_or_a_protocol_error(text):
    with pytest.raises(ProtocolError):
        from_json(Voucher, text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(st.sampled_from(sorted(GOOD)), JSON)
def test_any_json_in_any_field_is_a_document_or_a_protocol_error(name, value):
    try:
        document = from_json(Sample, json.dumps(GOOD | {name: value}))
    except ProtocolError:
        return
    assert to_plain(document)[name] == value


def test_a_limit_of_a_field_holds_in_json_too():
    binding = NodeBinding(
        account=bytes(20), peer_id=bytes(64), roles=bytes(32), spend_limit=0, not_before=0, not_after=0, epoch=0
    )
    plain = to_plain(binding)
    with pytest.raises(Malformed):
        from_json(NodeBinding, plain | {"peerId": "0x" + "00" * 65})


def test_what_could_not_be_signed_is_not_written():
    with pytest.raises(Malformed):
        to_json(Inner(big=-1))


def test_a_size_of_uint64_is_checked_by_its_own_rule():
    head = to_plain(TreeHead(log_id=bytes(32), size=1, root=bytes(32), timestamp_ms=0))
    with pytest.raises(Malformed):
        from_json(TreeHead, head | {"size": 1 << 64})


@pytest.mark.parametrize(("hint", "bad"), [(Uint8, 256), (Uint8, True), (Uint8, -1), (Bytes32, "0x00"), (str, 5)])
def test_a_single_value_is_held_against_its_rules_without_the_encoders_help(hint, bad):
    with pytest.raises(Malformed):
        read_value(hint, bad, "here")
