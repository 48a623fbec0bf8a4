"""TLS between two machines that know each other's very certificate: no authority, no names to forge, only TLS 1.3.

A certificate here is self-signed with an Ed25519 key and says one name. Whoever is to trust it got it over a way that
was authentic already: a join line (``hansa.node.agents.agent_keys``) or a libp2p connection
(``hansa.node.storage.bulk_identity``).
"""

import datetime as dt
import hashlib
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from hansa.proto.errors import Malformed

SECRET_BYTES = 32
MAX_CERTIFICATE_BYTES = 1 << 10
"""Ours have some 300 bytes."""
_BEGINNING = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_NEVER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
"""RFC 5280's date for a certificate without an end: a pinned key ends when nobody pins it any more."""

Naming = Callable[[bytes], str]
"""What a certificate must be called, by the 32 bytes of its public key."""


def pin_of(certificate: bytes) -> bytes:
    """SHA-256 of a certificate."""
    return hashlib.sha256(certificate).digest()


def make_pem(secret: bytes, naming: Naming) -> bytes:
    """Key and certificate. The same secret always gives the same bytes: there is no chance or time of day in them."""
    key = Ed25519PrivateKey.from_private_bytes(secret)
    name = _subject(key.public_key(), naming)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_BEGINNING)
        .not_valid_after(_NEVER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + certificate.public_bytes(Encoding.PEM)


def certificate_in(pem: bytes) -> bytes:
    """The certificate of such a file, as DER."""
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def check_certificate(data: bytes, naming: Naming) -> bytes:
    """A certificate as we make them ourselves, under the name that it must have.

    Raises:
        Malformed: it is anything else; so what is trusted later has one form only.
    """
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise Malformed("certificate", "is none that a machine makes")
    try:
        certificate = x509.load_der_x509_certificate(data)
        key = certificate.public_key()
        certificate.verify_directly_issued_by(certificate)
    except Exception as error:
        raise Malformed("certificate", "is none that a machine makes") from error
    if not isinstance(key, Ed25519PublicKey) or certificate.subject != _subject(key, naming):
        raise Malformed("certificate", "is none that a machine makes")
    return data


def serving_context(own: Path, trusted: Iterable[bytes]) -> ssl.SSLContext:
    """What one listens with: these certificates and no others get through. ``own`` holds key and certificate."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, own)
    context.num_tickets = 0  # a resumed session would not show its certificate again
    _trust(context, trusted)
    return context


def dialling_context(own: Path, trusted: Iterable[bytes] = ()) -> ssl.SSLContext:
    """What one dials with. With nobody trusted whom it reached is known by the pin, which the caller must compare."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, own)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the handshake proves the key; which key it must be, the pin says
    if trusted:
        _trust(context, trusted)
    return context


def _context(protocol: int, own: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(own)
    return context


def _trust(context: ssl.SSLContext, trusted: Iterable[bytes]) -> None:
    context.load_verify_locations(cadata="".join(ssl.DER_cert_to_PEM_cert(one) for one in trusted))
    context.verify_mode = ssl.CERT_REQUIRED


def _subject(key: Ed25519PublicKey, naming: Naming) -> x509.Name:
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, naming(raw))])
