"""The key that this process proves itself with on bulk channels: made at its start, in memory only, gone with it.

Its certificate says this node's peer id. A peer hears of it over the libp2p connection that proved that very id, so
nobody can pass another node's certificate off as its own.
"""

import os
import secrets
import ssl
from collections.abc import Iterable
from pathlib import Path

from hansa.node.storage.pinned_tls import (
    SECRET_BYTES,
    certificate_in,
    check_certificate,
    dialling_context,
    make_pem,
    serving_context,
)


class BulkIdentity:
    """Key and certificate of one process."""

    def __init__(self, peer_id: str) -> None:
        """Make both. Raises ``OSError`` where there are no files that live in memory."""
        self._is_closed = False
        pem = make_pem(secrets.token_bytes(SECRET_BYTES), lambda _key: name_of(peer_id))
        self.certificate = certificate_in(pem)
        self._file = os.memfd_create("hansa-bulk", os.MFD_CLOEXEC)
        os.write(self._file, pem)
        # `ssl` reads keys from paths only. This one names a file that no directory holds.
        self._path = Path(f"/proc/self/fd/{self._file}")

    def serving(self, trusted: Iterable[bytes]) -> ssl.SSLContext:
        """What we are knocked at with."""
        return serving_context(self._path, trusted)

    def dialling(self, trusted: bytes) -> ssl.SSLContext:
        """What we knock with at the one who has this certificate."""
        return dialling_context(self._path, [trusted])

    def close(self) -> None:
        """Forget the key; said again, it changes nothing."""
        if not self._is_closed:
            self._is_closed = True
            os.close(self._file)


def name_of(peer_id: str) -> str:
    """What a peer's certificate must be called."""
    return f"hansa {peer_id}"


def certificate_of(peer_id: str, data: bytes) -> bytes:
    """The certificate that this peer announced. Raises ``Malformed`` if it is none of its own."""
    return check_certificate(data, lambda _key: name_of(peer_id))
