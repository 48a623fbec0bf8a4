"""Signatures are eth-account's byte for byte, have one form only, and stand under one document in one domain."""

import copy
import pickle
from contextlib import suppress
from dataclasses import dataclass, fields

import pytest
from drawn_documents import SETTLEMENT_DOCUMENTS, any_document, documents_of
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.proto.documents import ChannelConfig, CooperativeClose, Voucher, channel_id, escrow_domain, ledger_domain
from hansa.proto.errors import BadSignature, Malformed
from hansa.proto.signing import (
    CURVE_ORDER,
    HALF_CURVE_ORDER,
    Signed,
    SigningKey,
    address_of,
    check,
    checksum_address,
    parse_address,
    recover,
    sign,
    signer_of,
)
from hansa.proto.typed_data import digest, type_hash
from hansa.proto.units import Amount, Bytes32

KEY = SigningKey(b"\x42" * 32)
OTHER = SigningKey(b"\x43" * 32)
LEDGER = ledger_domain(bytes(32))
DIGEST = b"\x07" * 32
GOOD = KEY.sign_digest(DIGEST)
secrets = st.integers(1, CURVE_ORDER - 1).map(lambda number: number.to_bytes(32, "big"))


@settings(max_examples=150, deadline=None)
@given(secrets, st.binary(min_size=32, max_size=32))
def test_signatures_and_addresses_are_eth_accounts_byte_for_byte(secret, digest_bytes):
    key, oracle = SigningKey(secret), Account.from_key(secret)
    signature = key.sign_digest(digest_bytes)
    assert signature == bytes(oracle.unsafe_sign_hash(digest_bytes).signature)
    assert checksum_address(key.address) == oracle.address
    assert recover(digest_bytes, signature) == key.address == address_of(key.public_key)


@given(any_document(), secrets)
def test_a_signed_document_checks_for_its_signer_and_nobody_else(document, secret):
    key = SigningKey(secret)
    signed = sign(LEDGER, document, key)
    check(LEDGER, signed, key.address)
    assert signer_of(LEDGER, signed) == key.address
    with pytest.raises(BadSignature):
        check(LEDGER, signed, OTHER.address)


def high_s_twin(signature: bytes) -> bytes:
    s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


def with_rs(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big") + b"\x1b"


def test_the_high_s_twin_is_sound_elsewhere_and_refused_here():
    from eth_keys.datatypes import Signature

    twin = high_s_twin(GOOD)
    vrs = (twin[64] - 27, int.from_bytes(twin[:32], "big"), int.from_bytes(twin[32:64], "big"))
    assert Signature(vrs=vrs).recover_public_key_from_msg_hash(DIGEST).to_canonical_address() == KEY.address
    with pytest.raises(BadSignature, match="s is outside"):
        recover(DIGEST, twin)


@pytest.mark.parametrize("v", [v for v in range(256) if v not in (27, 28)])
def test_v_has_two_spellings_and_no_third(v):
    with pytest.raises(BadSignature, match="v is neither"):
        recover(DIGEST, GOOD[:64] + bytes([v]))


def test_a_flipped_v_is_another_signer():
    flipped = GOOD[:64] + bytes([55 - GOOD[64]])
    assert recover(DIGEST, flipped) != KEY.address


@pytest.mark.parametrize(
    "signature",
    [
        with_rs(0, 1),
        with_rs(1, 0),
        with_rs(0, 0),
        with_rs(CURVE_ORDER, 1),
        with_rs(CURVE_ORDER + 1, 1),
        with_rs(1, HALF_CURVE_ORDER + 1),
        with_rs(1, CURVE_ORDER),
        with_rs((1 << 256) - 1, (1 << 256) - 1),
        with_rs(5, 1),  # x = 5 is on no point of the curve
        bytes(65),
        b"",
        GOOD[:64],
        GOOD + b"\0",
        GOOD[:32] + b"\0" + GOOD[32:],
        bytearray(GOOD),
        GOOD.hex(),
        None,
    ],
    ids=repr,
)
def test_what_is_no_canonical_signature_is_refused(signature):
    with pytest.raises(BadSignature):
        recover(DIGEST, signature)


def test_r_and_s_are_held_to_their_ranges_before_any_library_sees_them():
    for r in (0, CURVE_ORDER, CURVE_ORDER + 1, (1 << 256) - 1):
        with pytest.raises(BadSignature, match="r is outside"):
            recover(DIGEST, with_rs(r, 1))
    for s in (0, HALF_CURVE_ORDER + 1, CURVE_ORDER, (1 << 256) - 1):
        with pytest.raises(BadSignature, match="s is outside"):
            recover(DIGEST, with_rs(1, s))


def test_the_largest_low_s_is_still_low():
    assert len(recover(DIGEST, with_rs(1, HALF_CURVE_ORDER))) == 20


@given(st.binary(min_size=65, max_size=65))
def test_any_65_bytes_recover_an_address_or_are_a_bad_signature(signature):
    with suppress(BadSignature):
        assert len(recover(DIGEST, signature)) == 20


def test_the_zero_address_signs_nothing():
    document = Voucher(channel_id=bytes(32), cumulative=1, statement=bytes(32))
    for signature in (bytes(65), GOOD, with_rs(1, 1)):
        with pytest.raises(BadSignature, match="names the zero address"):
            check(LEDGER, Signed(document=document, signature=signature), bytes(20))


def test_a_key_that_would_recover_to_the_zero_address_is_refused(monkeypatch):
    # Nobody knows such a key, so only the hash can be bent to show the guard.
    monkeypatch.setattr("hansa.proto.signing.keccak256", lambda _data: bytes(32))
    with pytest.raises(BadSignature, match="zero address"):
        recover(DIGEST, GOOD)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_documents_signature_is_valid_for_another_type(data):
    drawn = [data.draw(documents_of(cls)) for cls in SETTLEMENT_DOCUMENTS]
    for mine in drawn:
        signature = sign(LEDGER, mine, KEY).signature
        for yours in drawn:
            if yours is mine:
                check(LEDGER, Signed(document=yours, signature=signature), KEY.address)
            else:
                with pytest.raises(BadSignature):
                    check(LEDGER, Signed(document=yours, signature=signature), KEY.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pledge:
    """The very fields of a voucher under another name."""

    channel_id: Bytes32
    cumulative: Amount
    statement: Bytes32


def test_the_same_fields_and_values_under_another_name_are_another_document():
    pledge = Pledge(channel_id=DIGEST, cumulative=5, statement=bytes(32))
    voucher = Voucher(channel_id=DIGEST, cumulative=5, statement=bytes(32))
    with pytest.raises(BadSignature):
        check(LEDGER, Signed(document=voucher, signature=sign(LEDGER, pledge, KEY).signature), KEY.address)


def test_a_voucher_is_no_cooperative_close_of_the_same_values():
    voucher = Voucher(channel_id=DIGEST, cumulative=5, statement=bytes(32))
    close = CooperativeClose(channel_id=DIGEST, cumulative=5)
    with pytest.raises(BadSignature):
        check(LEDGER, Signed(document=close, signature=sign(LEDGER, voucher, KEY).signature), KEY.address)
    assert len({type_hash(cls) for cls in SETTLEMENT_DOCUMENTS}) == len(SETTLEMENT_DOCUMENTS)


def test_a_signature_counts_in_one_domain_only():
    voucher = Voucher(channel_id=bytes(32), cumulative=1, statement=bytes(32))
    domains = [
        LEDGER,
        ledger_domain(b"\1" * 32),
        escrow_domain(1, bytes(20)),
        escrow_domain(31337, bytes(20)),
        escrow_domain(31337, b"\1" * 20),
    ]
    for mine in domains:
        for yours in domains:
            signed = sign(mine, voucher, KEY)
            if mine is yours:
                check(yours, signed, KEY.address)
            else:
                with pytest.raises(BadSignature):
                    check(yours, signed, KEY.address)


def test_a_channel_id_is_the_full_digest_of_its_config():
    config = ChannelConfig(
        payer=bytes(20), payer_signer=bytes(20), payee=bytes(20), payee_signer=bytes(20), token=bytes(20),
        challenge_period=900, splits_hash=bytes(32), salt=bytes(32),
    )  # fmt: skip
    assert channel_id(LEDGER, config) == digest(LEDGER, config)
    assert channel_id(LEDGER, config) != channel_id(ledger_domain(b"\1" * 32), config)


def test_domains_refuse_what_would_mix_them_up():
    with pytest.raises(ValueError, match="32 bytes"):
        ledger_domain(bytes(31))
    with pytest.raises(ValueError, match="chain id 0"):
        escrow_domain(0, bytes(20))


def test_a_key_never_shows_its_secret():
    secret = KEY.secret()
    for shown in (repr(KEY), str(KEY), f"{KEY}", repr(vars(type(KEY)).keys())):
        assert secret.hex() not in shown
        assert str(int.from_bytes(secret, "big")) not in shown
    assert checksum_address(KEY.address) in repr(KEY)
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copying(KEY)


@pytest.mark.parametrize(
    "secret", [b"", bytes(31), bytes(33), bytes(32), CURVE_ORDER.to_bytes(32, "big"), b"\xff" * 32, "42" * 32, 42]
)
def test_what_is_no_private_key_is_refused_without_repeating_it(secret):
    with pytest.raises(ValueError, match=r"^a private key is") as caught:
        SigningKey(secret)
    assert repr(secret) not in str(caught.value)


@pytest.mark.parametrize("digest_bytes", [b"", bytes(31), bytes(33), "a" * 32, bytearray(32)])
def test_only_whole_digests_are_signed_and_recovered(digest_bytes):
    with pytest.raises(ValueError, match="32 bytes"):
        KEY.sign_digest(digest_bytes)
    with pytest.raises(ValueError, match="32 bytes"):
        recover(digest_bytes, GOOD)


@pytest.mark.parametrize(
    "public_key", [b"", bytes(33), b"\x02" + b"\xff" * 32, b"\x04" + bytes(64), b"\x05" * 33, None]
)
def test_what_is_no_public_key_has_no_address(public_key):
    with pytest.raises(Malformed):
        address_of(public_key)


EIP_55 = [
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "0xde709f2102306220921060314715629080e2fb77",
]


@pytest.mark.parametrize("text", EIP_55)
def test_addresses_carry_their_checksum_in_their_case(text):
    assert checksum_address(parse_address(text)) == text
    assert parse_address(text.lower()) == parse_address(text)


@pytest.mark.parametrize(
    "text",
    [EIP_55[0].swapcase(), EIP_55[0].replace("a", "A"), EIP_55[0].lower().replace("0x", "0X"),
     EIP_55[0][2:], EIP_55[0] + "0",
     EIP_55[0][:-1], EIP_55[0] + "\n", " " + EIP_55[0], "0x" + EIP_55[0][2:].upper(), "0x" + "\uff10" * 40, "", None, 5,
     b"0x" + b"0" * 40, "0x" + "0_" * 20],
)  # fmt: skip
def test_a_mistyped_address_is_refused(text):
    with pytest.raises(Malformed):
        parse_address(text)


def test_signed_has_a_document_and_a_signature():
    assert [field.name for field in fields(Signed)] == ["document", "signature"]
