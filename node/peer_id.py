"""A node's name from its key, and its EVM address from its name: no look-up and no library of the network's.

A secp256k1 peer id carries the whole compressed public key: base58 of the identity multihash (0x00, length) over the
protobuf ``{type: secp256k1, data: 33 bytes}``. So a connection that proves the peer id proves the address as well.
"""

import base58
import coincurve

from hansa.proto.keccak import keccak256

_PREFIX = bytes((0x00, 0x25, 0x08, 0x02, 0x12, 0x21))


def peer_id_of_key(secret: bytes) -> str:
    """The peer id of a 32-byte secp256k1 secret."""
    return peer_id_of_public_key(coincurve.PrivateKey(secret).public_key.format(compressed=True))


def peer_id_of_public_key(public_key: bytes) -> str:
    """The peer id of a 33-byte compressed public key."""
    name: str = base58.b58encode(_PREFIX + public_key).decode("ascii")
    return name


def public_key_of(peer_id: str) -> bytes:
    """The 33-byte compressed public key inside a peer id.

    Raises:
        ValueError: it is no base58, or not the id of a secp256k1 key.
    """
    raw = base58.b58decode(peer_id) if len(peer_id) <= 64 else b""
    if len(raw) != len(_PREFIX) + 33 or not raw.startswith(_PREFIX):
        raise ValueError("not the peer id of a secp256k1 key")
    return bytes(raw[len(_PREFIX) :])


def address_of(peer_id: str) -> bytes:
    """The 20-byte EVM address of the key inside a peer id.

    Raises:
        ValueError: as ``public_key_of``, or the key is not a point on the curve.
    """
    return address_of_public_key(public_key_of(peer_id))


def address_of_public_key(public_key: bytes) -> bytes:
    """The last 20 bytes of the Keccak-256 of the uncompressed point."""
    return keccak256(coincurve.PublicKey(public_key).format(compressed=False)[1:])[-20:]
