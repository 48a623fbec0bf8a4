"""Keys, signatures and addresses on secp256k1, in the one canonical form that an Ethereum contract also accepts.

A signature is 65 bytes: r, s, v. Every (r, s) has a twin (r, n - s) that recovers to the same key, and v has several
spellings in the wild; to accept more than one form would let anybody make a second valid signature out of the first.
So only the low s and v of 27 or 28 pass, here as in the escrow contract.

A signer is always *recovered* from the signature and then compared. Checking against a known public key never looks at
v, and would pass a voucher that is worthless on chain.
"""

import re
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import coincurve

from hansa.proto.errors import BadSignature, Malformed
from hansa.proto.keccak import keccak256
from hansa.proto.typed_data import Domain, digest
from hansa.proto.units import Signature

CURVE_ORDER: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
HALF_CURVE_ORDER: Final = CURVE_ORDER // 2
SIGNATURE_BYTES: Final = 65
SECRET_BYTES: Final = 32
DIGEST_BYTES: Final = 32
COMPRESSED_BYTES: Final = 33
V_OFFSET: Final = 27
ZERO_ADDRESS: Final = bytes(20)

_ADDRESS_TEXT = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)

Document = TypeVar("Document")


def _address_of_point(point: coincurve.PublicKey) -> bytes:
    # The first byte only says "not compressed" and is no part of the key.
    return keccak256(point.format(compressed=False)[1:])[-20:]


def address_of(public_key: bytes) -> bytes:
    """The 20-byte address of a compressed public key.

    Raises:
        Malformed: it is not 33 bytes, or no point of the curve.
    """
    if type(public_key) is not bytes or len(public_key) != COMPRESSED_BYTES:
        raise Malformed("public key", f"is not exactly {COMPRESSED_BYTES} bytes long")
    try:
        return _address_of_point(coincurve.PublicKey(public_key))
    except ValueError:
        raise Malformed("public key", "is no point of secp256k1") from None


class SigningKey:
    """A private key. Nothing that prints it, its ``repr`` included, shows the secret.

    Attributes:
        address: its 20-byte address.
        public_key: its compressed public key, 33 bytes.
    """

    __slots__ = ("_key", "address", "public_key")

    def __init__(self, secret: bytes) -> None:
        """Take 32 secret bytes.

        Raises:
            ValueError: they are not 32 bytes, or are no key of the curve. The text does not repeat them.
        """
        if type(secret) is not bytes or len(secret) != SECRET_BYTES:
            raise ValueError("a private key is exactly 32 bytes")
        if not 0 < int.from_bytes(secret, "big") < CURVE_ORDER:
            raise ValueError("a private key is a number from 1 to the order of secp256k1")
        self._key: Final = coincurve.PrivateKey(secret)
        self.public_key: Final[bytes] = self._key.public_key.format(compressed=True)
        self.address: Final[bytes] = _address_of_point(self._key.public_key)

    def __repr__(self) -> str:
        return f"SigningKey(address={checksum_address(self.address)})"

    def __reduce__(self) -> str:
        # A pickle or a deep copy of a key is a secret in a place that nobody guards.
        raise TypeError("a signing key is not to be copied or pickled")

    def sign_digest(self, digest_bytes: bytes) -> bytes:
        """Sign 32 bytes: r, s, v with the low s and v of 27 or 28. The same digest always gives the same signature."""
        if type(digest_bytes) is not bytes or len(digest_bytes) != DIGEST_BYTES:
            raise ValueError("a digest is exactly 32 bytes")
        signature = self._key.sign_recoverable(digest_bytes, hasher=None)
        return signature[:64] + bytes((signature[64] + V_OFFSET,))

    def secret(self) -> bytes:
        """The 32 secret bytes, for the one place that writes them to a key file or hands them to a network library."""
        return self._key.secret


def recover(digest_bytes: bytes, signature: bytes) -> bytes:
    """The address whose key signed the digest.

    Raises:
        BadSignature: the signature is not 65 bytes of r, s, v in the canonical form, or recovers to no key.
    """
    if type(digest_bytes) is not bytes or len(digest_bytes) != DIGEST_BYTES:
        raise ValueError("a digest is exactly 32 bytes")
    if type(signature) is not bytes or len(signature) != SIGNATURE_BYTES:
        raise BadSignature("signature", f"is not exactly {SIGNATURE_BYTES} bytes long")
    v = signature[64]
    if v not in (27, 28):
        raise BadSignature("signature", "v is neither 27 nor 28")
    if not 1 <= int.from_bytes(signature[:32], "big") < CURVE_ORDER:
        raise BadSignature("signature", "r is outside 1 .. n - 1")
    if not 1 <= int.from_bytes(signature[32:64], "big") <= HALF_CURVE_ORDER:
        raise BadSignature("signature", "s is outside 1 .. n / 2")
    try:
        point = coincurve.PublicKey.from_signature_and_message(
            signature[:64] + bytes((v - V_OFFSET,)), digest_bytes, hasher=None
        )
    except ValueError:
        raise BadSignature("signature", "recovers to no key") from None
    address = _address_of_point(point)
    if address == ZERO_ADDRESS:
        # No known key hashes to it, and on chain the zero address is what a failed recovery looks like.
        raise BadSignature("signature", "recovers to the zero address")
    return address


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed(Generic[Document]):
    """A document and a signature over its digest. Whose it is, and in which domain, the caller knows and checks."""

    document: Document
    signature: Signature


def sign(domain: Domain, document: Document, key: SigningKey) -> Signed[Document]:
    """Sign a document for a domain."""
    return Signed(document=document, signature=key.sign_digest(digest(domain, document)))


def signer_of(domain: Domain, signed: Signed[Document]) -> bytes:
    """The address that signed the document for this domain.

    Raises:
        Malformed: a field of the document is not of its exact type, length or range.
        BadSignature: the signature is not canonical or recovers to no key.
    """
    return recover(digest(domain, signed.document), signed.signature)


def check(domain: Domain, signed: Signed[Document], signer: bytes) -> None:
    """Make sure that ``signer`` signed the document for this domain.

    Raises:
        Malformed: a field of the document is not of its exact type, length or range.
        BadSignature: the signature is not canonical, or is somebody else's, or is for another domain or document.
    """
    if signer == ZERO_ADDRESS:
        raise BadSignature(type(signed.document).__name__, "names the zero address as its signer")
    if signer_of(domain, signed) != signer:
        raise BadSignature(type(signed.document).__name__, "is not signed by the one who should have")


def checksum_address(address: bytes) -> str:
    """Write an address as ``0x`` and 40 hex digits whose case is a checksum (EIP-55)."""
    if type(address) is not bytes or len(address) != len(ZERO_ADDRESS):
        raise ValueError("an address is exactly 20 bytes")
    digits = address.hex()
    marks = keccak256(digits.encode()).hex()
    return "0x" + "".join(
        digit.upper() if mark >= "8" else digit for digit, mark in zip(digits, marks[:40], strict=True)
    )


def parse_address(text: str) -> bytes:
    """Read an address: ``0x`` and 40 hex digits, either all lower case or with a correct checksum in their case.

    Raises:
        Malformed: it is no address, or its checksum is wrong (most often a typing error).
    """
    if type(text) is not str or _ADDRESS_TEXT.fullmatch(text) is None:
        raise Malformed("address", "is not 0x and 40 hex digits")
    address = bytes.fromhex(text[2:])
    if text[2:] != address.hex() and text != checksum_address(address):
        raise Malformed("address", "has a wrong checksum in the case of its letters")
    return address
