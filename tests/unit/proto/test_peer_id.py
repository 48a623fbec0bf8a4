"""A peer id is a key is an address, both ways, and libp2p agrees."""

from contextlib import suppress

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.proto.errors import Malformed
from hansa.proto.peer_id import PREFIX, address_of_peer, parse_peer_id, peer_id_of, peer_id_text, public_key_of
from hansa.proto.signing import CURVE_ORDER, SigningKey

secrets = st.integers(1, CURVE_ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
KEY = SigningKey(b"\x42" * 32)
PEER = peer_id_of(KEY.public_key)
TEXT = peer_id_text(PEER)


@given(secrets)
def test_key_peer_id_text_and_address_lead_to_each_other(secret):
    key = SigningKey(secret)
    peer = peer_id_of(key.public_key)
    assert parse_peer_id(peer_id_text(peer)) == peer
    assert public_key_of(peer) == key.public_key
    assert address_of_peer(peer) == key.address


def test_libp2p_gives_a_key_the_same_peer_id():
    secp256k1 = pytest.importorskip("libp2p.crypto.secp256k1")
    from libp2p.peer.id import ID

    public_key = secp256k1.Secp256k1PublicKey.from_bytes(KEY.public_key)
    theirs = ID.from_pubkey(public_key)
    assert theirs.to_bytes() == PEER
    assert str(theirs) == TEXT


@pytest.mark.parametrize(
    "peer",
    [b"", PEER[:-1], PEER + b"\0", bytes(39), b"\x00\x24" + PEER[2:], b"\x12\x25" + PEER[2:],
     PREFIX[:3] + b"\x01" + PREFIX[4:] + KEY.public_key, PREFIX + b"\x02" + b"\xff" * 32, PREFIX + b"\x05" + bytes(32),
     PREFIX + bytes(33), bytearray(PEER), TEXT, None],
)  # fmt: skip
def test_what_is_no_secp256k1_peer_id_is_refused(peer):
    for call in (public_key_of, address_of_peer, peer_id_text):
        with pytest.raises(Malformed):
            call(peer)


@pytest.mark.parametrize(
    "text",
    ["", TEXT[:-1], TEXT + "1", TEXT + "\n", " " + TEXT, "2" + TEXT[1:], TEXT[:-1] + "0", TEXT[:-1] + "l",
     TEXT.swapcase(), TEXT[:-1] + "\uff11", "16Uiu2" + "z" * 47, "16Uiu2" + "1" * 47, "12D3KooW" + "A" * 44,
     base58.b58encode(b"\0" + PEER).decode(), "1" * 100_000, PEER, None, 5],
)  # fmt: skip
def test_what_is_no_text_of_such_a_peer_id_is_refused(text):
    with pytest.raises(Malformed):
        parse_peer_id(text)


@given(st.text(alphabet="123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", min_size=47, max_size=47))
def test_any_text_of_the_right_look_is_a_peer_id_or_malformed(rest):
    with suppress(Malformed):
        assert peer_id_text(parse_peer_id("16Uiu2" + rest)) == "16Uiu2" + rest


def test_only_a_public_key_has_a_peer_id():
    for wrong in (b"", bytes(33), KEY.public_key[1:], b"\x04" + bytes(64)):
        with pytest.raises(Malformed):
            peer_id_of(wrong)
