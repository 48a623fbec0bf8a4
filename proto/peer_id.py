"""libp2p peer ids of secp256k1 keys, and the address that each of them is.

Such an id is the identity multihash of libp2p's protobuf of the public key, so the key stands inside it: whoever has
proved a peer id in the noise handshake has proved an Ethereum address too, without any look-up.

    00 25 (identity multihash of 37 bytes) · 08 02 (key type secp256k1) · 12 21 (33 bytes follow) · compressed key

As text it is that in base58, which always begins with ``16Uiu2``. Ids of other key types are none of ours.
"""

import re
from typing import Final

import base58

from hansa.proto.errors import Malformed
from hansa.proto.signing import COMPRESSED_BYTES, SigningKey, address_of

PREFIX: Final = bytes.fromhex("002508021221")
PEER_ID_BYTES: Final = len(PREFIX) + COMPRESSED_BYTES

# base58 skips white space and takes any length, and its time grows with the square of the length: look first.
_TEXT = re.compile(r"16Uiu2[1-9A-HJ-NP-Za-km-z]{47}", re.ASCII)


def peer_id_of(public_key: bytes) -> bytes:
    """The peer id, as its 39 multihash bytes, of a compressed public key (33 bytes).

    Raises:
        Malformed: it is no compressed point of secp256k1.
    """
    address_of(public_key)
    return PREFIX + public_key


def public_key_of(peer_id: bytes) -> bytes:
    """The compressed public key (33 bytes) that stands in a peer id.

    Raises:
        Malformed: it is not the multihash of a secp256k1 key.
    """
    if type(peer_id) is not bytes or len(peer_id) != PEER_ID_BYTES or not peer_id.startswith(PREFIX):
        raise Malformed("peer id", "is not the identity multihash of a secp256k1 public key")
    public_key = peer_id[len(PREFIX) :]
    try:
        address_of(public_key)
    except Malformed as fault:
        raise Malformed("peer id", f"holds a key that {fault.why}") from None
    return public_key


def address_of_peer(peer_id: bytes) -> bytes:
    """The address (20 bytes) of the key in a peer id.

    Raises:
        Malformed: it is not the multihash of a secp256k1 key.
    """
    return address_of(public_key_of(peer_id))


def peer_id_text(peer_id: bytes) -> str:
    """A peer id as people and multiaddresses write it: ``16Uiu2...``.

    Raises:
        Malformed: it is not the multihash of a secp256k1 key.
    """
    public_key_of(peer_id)
    return str(base58.b58encode(peer_id), "ascii")


def parse_peer_id(text: str) -> bytes:
    """Read a peer id from its base58 text; answer its 39 multihash bytes.

    Raises:
        Malformed: it is no base58 text of the peer id of a secp256k1 key.
    """
    if type(text) is not str or _TEXT.fullmatch(text) is None:
        raise Malformed("peer id", "is not 16Uiu2 and 47 more base58 digits")
    peer_id = bytes(base58.b58decode(text))
    public_key_of(peer_id)
    return peer_id


def peer_id_of_key(secret: bytes) -> str:
    """The peer id, as text, of a private key (32 bytes)."""
    return peer_id_text(peer_id_of(SigningKey(secret).public_key))


def address_of_peer_text(text: str) -> bytes:
    """The address (20 bytes) of the key in a peer id's text.

    Raises:
        Malformed: it is no peer id.
    """
    return address_of_peer(parse_peer_id(text))
