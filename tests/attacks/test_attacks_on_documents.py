"""Attacks on documents and their spelling: one value has one spelling, and nothing is guessed."""

import json
from dataclasses import replace

import pytest
from kit.trading import NOW_MS, bid, tender

from hansa.market.selection import rank
from hansa.proto.codec import decode, encode
from hansa.proto.documents import ChannelConfig, Voucher
from hansa.proto.errors import Malformed, ProtocolError, TooLarge
from hansa.proto.foreign_typed_data import foreign_digest
from hansa.proto.merkle import inclusion_proof, is_included, leaf_hash, merkle_root, node_hash
from hansa.proto.messages import BidSent
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import struct_hash
from hansa.proto.typed_json import from_json, parse_json, to_json, to_plain
from hansa.proto.typed_payload import typed_payload
from hansa.proto.units import CURRENCY_DECIMALS, amount_for, format_amount, parse_amount, price_per_hour_to_e18

VOUCHER = Voucher(channel_id=b"c" * 32, cumulative=1 << 100, statement=b"s" * 32)


def refused(text):
    """It is neither a document nor typed data."""
    with pytest.raises(ProtocolError):
        from_json(Voucher, text)


def with_cumulative(raw: str) -> str:
    return to_json(VOUCHER).replace(f'"{VOUCHER.cumulative}"', raw)


def test_json_big_ints():
    assert from_json(Voucher, with_cumulative('"340282366920938463463374607431768211455"')).cumulative == (1 << 128) - 1
    for raw in ('"340282366920938463463374607431768211456"', "1267650600228229401496703205376", "7"):
        refused(with_cumulative(raw))


@pytest.mark.parametrize("raw", ["1.0", "1e3", "1E400", "-0.0", "NaN", "Infinity", '"1.0"', '"1e3"', '"0x7"'])
def test_json_floats(raw):
    refused(with_cumulative(raw))
    if not raw.startswith('"'):
        with pytest.raises(Malformed, match="no integer"):
            parse_json(f'{{"any": [{raw}]}}')


def test_json_duplicate_keys():
    text = to_json(VOUCHER)
    refused(text[:-1] + ',"cumulative":"1"}')
    with pytest.raises(Malformed, match="twice"):
        parse_json('{"a":1,"a":1}')
    typed = json.dumps(typed_payload(DOMAIN, VOUCHER))
    with pytest.raises(Malformed):
        foreign_digest(typed[:-1] + ',"primaryType":"Voucher"}')


@pytest.mark.parametrize("digits", ["\uff11\uff12", "\u0661\u0662", "\u096a", "1_000", " 7", "+7", "07", "\u00b2"])
def test_json_unicode_digits(digits):
    refused(with_cumulative(json.dumps(digits)))
    refused(with_cumulative(json.dumps(digits, ensure_ascii=False)))
    if digits != "07":
        with pytest.raises(ValueError, match="plain decimal"):
            parse_amount(digits)


def test_json_of_5000_digits():
    """int() itself raises a ValueError of its own above 4,300 digits, which would be nobody's protocol error."""
    for raw in ("9" * 5_000, '"' + "9" * 5_000 + '"', "-" + "9" * 5_000, "1" + "0" * 79):
        refused(with_cumulative(raw))
    with pytest.raises(Malformed):
        parse_json("9" * 5_000)
    with pytest.raises(ValueError, match="plain decimal"):
        parse_amount("9" * 5_000)


@pytest.mark.parametrize("raw", ['"-1"', "-1", '"-5"', str(1 << 128), f'"{1 << 128}"', f'"{1 << 256}"'])
def test_negative_or_above_2_to_the_128(raw):
    refused(with_cumulative(raw))


def test_negative_or_above_2_to_the_128_in_a_value():
    for bad in (-1, 1 << 128, True, 1.0, "7", b"\7"):
        with pytest.raises(Malformed):
            struct_hash(replace(VOUCHER, cumulative=bad))
        with pytest.raises(ProtocolError):
            decode(encode(replace(VOUCHER, cumulative=bad)), Voucher, limit_bytes=1 << 10)


def test_extra_fields():
    table = to_plain(VOUCHER)
    refused(json.dumps(table | {"note": "free"}))
    typed = typed_payload(DOMAIN, VOUCHER)
    with pytest.raises(Malformed):
        foreign_digest(typed | {"message": typed["message"] | {"note": "free"}})


def test_missing_fields():
    for name in to_plain(VOUCHER):
        table = to_plain(VOUCHER)
        del table[name]
        refused(json.dumps(table))
        typed = typed_payload(DOMAIN, VOUCHER)
        with pytest.raises(Malformed):
            foreign_digest(typed | {"message": table})


def test_renamed_fields():
    for name in to_plain(VOUCHER):
        table = {("x" + key if key == name else key): value for key, value in to_plain(VOUCHER).items()}
        refused(json.dumps(table))
    for other in ("channel_id", "channelID", "channelId "):
        refused(to_json(VOUCHER).replace("channelId", other))


@pytest.mark.parametrize("text", ["c" * 32, "0x" + "63" * 31, "0x" + "63" * 33, "63" * 32, "0X" + "63" * 32, "", "0x"])
def test_text_as_bytes32(text):
    refused(to_json(VOUCHER).replace("0x" + "63" * 32, text))
    for raw in ("c" * 32, bytearray(b"c" * 32), b"", 0, -5):
        with pytest.raises(Malformed):
            struct_hash(replace(VOUCHER, channel_id=raw))


def test_decimals_confusion():
    """There is one number of decimals: an amount with 18 is refused, and no reading of 6 is one of 18."""
    assert CURRENCY_DECIMALS == 6
    assert parse_amount("1.000001") == 1_000_001
    for text in ("1.0000001", "0." + "0" * 17 + "1", "1" + "0" * 18 + ".0000000"):
        with pytest.raises(ValueError, match="decimals"):
            parse_amount(text)
    assert format_amount(10**18) == "1000000000000.000000"


def test_merkle_second_preimage():
    leaves = [bytes([number]) * 4 for number in range(4)]
    root = merkle_root(leaves)
    inner = [
        node_hash(leaf_hash(leaves[0]), leaf_hash(leaves[1])),
        node_hash(leaf_hash(leaves[2]), leaf_hash(leaves[3])),
    ]
    children = [leaf_hash(leaves[0]) + leaf_hash(leaves[1]), leaf_hash(leaves[2]) + leaf_hash(leaves[3])]
    assert merkle_root(children) != root
    assert not is_included(root=root, size=2, leaf=children[0], index=0, proof=(inner[1],))
    assert is_included(root=root, size=4, leaf=leaves[0], index=0, proof=inclusion_proof(leaves, 0))


def test_zero_and_2_to_the_256_prices():
    """A price has 128 bits on the wire; at either end the arithmetic is exact and a lease's limit holds."""
    offered = bid(tender()).document
    for price in (1 << 128, (1 << 256) - 1, -1):
        with pytest.raises(ProtocolError):
            decode(
                encode(BidSent(bid=replace(bid(tender()), document=replace(offered, price_e18_per_device_ms=price)))),
                BidSent,
                limit_bytes=1 << 16,
            )
    largest = (1 << 128) - 1
    assert amount_for(largest, largest) == largest * largest // 10**18
    assert amount_for(largest, 0) == 0
    with pytest.raises(ValueError, match="2\\^128"):
        price_per_hour_to_e18("9" * 40)
    called = tender()
    for price in (0, largest):
        made = bid(called, price_e18_per_device_ms=price, max_total=price or 1).document
        (scored,) = rank(called, {b"b" * 32: made}, {}, at_ms=NOW_MS)
        assert bool(scored.excluded) == (price == largest), "above the ceiling"


def test_a_giant_text_is_not_read():
    with pytest.raises(TooLarge):
        from_json(ChannelConfig, " " * (1 << 21))
