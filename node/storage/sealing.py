"""Sealing bytes for those who have a key, and opening them again, piece by piece and with little in memory.

Each blob has a salt, and so a key of its own: HKDF-SHA256 makes 64 bytes of the secret and the salt, an AES-256 key and
a commitment. The commitment stands in the header, so that a wrong key is told from changed bytes, and no bytes open
under two keys. The segments are encrypted with AES-GCM as in the STREAM construction: the nonce is the segment's number
and whether it is the last, so none can be left out, repeated, moved, or brought over from another blob.

A job has one content key, which never leaves its buyer's node. From it come one key for what all shards read, and one
for each shard: a provider is given the former and those of the shards that it runs, so what mirrors another shard's
checkpoint cannot read it.
"""

import hmac
import io
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hansa.proto.sealed import (
    COMMITMENT_BYTES,
    HEADER_BYTES,
    MAGIC,
    SALT_BYTES,
    SEALED_SEGMENT_BYTES,
    SEGMENT_BYTES,
    TAG_BYTES,
    plain_size_bytes,
    sealed_size_bytes,
    segment_count,
)

SECRET_BYTES: Final = 32
_OF_BLOB: Final = b"hansa sealed blob 1"
_OF_JOB: Final = b"hansa content key 1 job"
_OF_SHARD: Final = b"hansa content key 1 shard "


class SealBroken(Exception):
    """Bytes that were to be opened and are not what this key sealed.

    Attributes:
        why: in words.
    """

    def __init__(self, why: str) -> None:
        """Keep why."""
        super().__init__(why)
        self.why = why


class _Secret:
    """32 secret bytes. Nothing that prints it shows them, and it is not to be copied by accident."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if type(secret) is not bytes or len(secret) != SECRET_BYTES:
            raise ValueError("a key is exactly 32 bytes")
        self._secret: Final = secret

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __reduce__(self) -> str:
        # A pickle or a deep copy of a key is a secret in a place that nobody guards.
        raise TypeError("a key is not to be copied or pickled")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash((type(self), self._secret))

    def secret(self) -> bytes:
        """The bytes, for whoever wraps them for somebody or writes them to a key file."""
        return self._secret


class BlobKey(_Secret):
    """What seals and opens blobs."""

    __slots__ = ()

    def for_blob(self, salt: bytes) -> tuple[AESGCM, bytes]:
        """The cipher of one blob, and its commitment."""
        made = HKDF(algorithm=SHA256(), length=32 + COMMITMENT_BYTES, salt=salt, info=_OF_BLOB).derive(self._secret)
        return AESGCM(made[:32]), made[32:]


class ContentKey(_Secret):
    """A job's content key, from which the others come."""

    __slots__ = ()

    @property
    def shared(self) -> BlobKey:
        """For what all shards read: the code, the list of files, files of all shards, what rounds came to."""
        return self._derived(_OF_JOB)

    def own(self, shard: int) -> BlobKey:
        """For what is of one shard only: its own files, its states, checkpoints and outputs."""
        return self._derived(_OF_SHARD + shard.to_bytes(4, "big"))

    def of_shard(self, shard: int) -> "ShardKeys":
        """What the provider of a shard gets."""
        return ShardKeys(shared=self.shared, own=self.own(shard))

    def _derived(self, info: bytes) -> BlobKey:
        # The content key is random, so there is nothing that a salt would add.
        return BlobKey(HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=None, info=info).derive(self._secret))


def new_content_key() -> ContentKey:
    """A fresh one."""
    return ContentKey(secrets.token_bytes(SECRET_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardKeys:
    """What somebody has who runs a shard, or reads what it made."""

    shared: BlobKey
    own: BlobKey

    @property
    def both(self) -> tuple[BlobKey, BlobKey]:
        """Each blob says by its commitment which of them it is sealed under."""
        return self.shared, self.own


class Sealer:
    """Seals bytes that come in order, in pieces of any size. A segment at most is in memory beside the piece."""

    def __init__(self, key: BlobKey) -> None:
        """Begin a blob, with a salt that no other has."""
        salt = secrets.token_bytes(SALT_BYTES)
        self._cipher, commitment = key.for_blob(salt)
        self._ready = bytearray(MAGIC + salt + commitment)
        self._waiting = bytearray()
        self._number = 0

    def push(self, data: bytes) -> bytes:
        """Take the next bytes; give what is ready of the sealed ones."""
        self._waiting += data
        at = 0
        # One segment stays behind: whether it is the last is known only when more comes, or nothing.
        while len(self._waiting) - at > SEGMENT_BYTES:
            self._seal(bytes(self._waiting[at : at + SEGMENT_BYTES]), last=False)
            at += SEGMENT_BYTES
        del self._waiting[:at]
        return self._take()

    def finish(self) -> bytes:
        """There is no more: the rest of the sealed bytes."""
        self._seal(bytes(self._waiting), last=True)
        self._waiting.clear()
        return self._take()

    def _seal(self, segment: bytes, *, last: bool) -> None:
        self._ready += self._cipher.encrypt(_nonce(self._number, last=last), segment, None)
        self._number += 1

    def _take(self) -> bytes:
        ready = bytes(self._ready)
        self._ready.clear()
        return ready


class SealingReader:
    """A file as its sealed bytes, for whoever sends it."""

    def __init__(self, file: BinaryIO, key: BlobKey) -> None:
        """Read ``file`` from where it stands."""
        self._file = file
        self._sealer: Sealer | None = Sealer(key)

    def read(self, size_bytes: int, /) -> bytes:
        """The next sealed bytes, about as many; none at the end."""
        while self._sealer is not None:
            data = self._file.read(max(1, size_bytes))
            if data:
                ready = self._sealer.push(data)
                if ready:
                    return ready
            else:
                rest, self._sealer = self._sealer.finish(), None
                return rest
        return b""


def seal(key: BlobKey, data: bytes) -> bytes:
    """These bytes, sealed."""
    sealer = Sealer(key)
    return sealer.push(data) + sealer.finish()


def open_sealed(file: BinaryIO, keys: Sequence[BlobKey]) -> BinaryIO:
    """What a sealed file holds, as a file that is opened segment by segment as it is read. It closes the other.

    Every byte that it gives has been checked. Who must know that all of it is whole reads it to its end.

    Raises:
        SealBroken: it is not sealed, or not under one of these keys. Reading raises it too, when it comes to a segment
            that was changed.
    """
    try:
        return io.BufferedReader(_Opened(file, keys), SEGMENT_BYTES)
    except BaseException:
        file.close()
        raise


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes((last,))


class _Opened(io.RawIOBase):
    """Segments are read where they are wanted, so that one may also read from the middle."""

    def __init__(self, file: BinaryIO, keys: Sequence[BlobKey]) -> None:
        super().__init__()
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
            raise SealBroken("it is not sealed")
        salt, commitment = header[len(MAGIC) : -COMMITMENT_BYTES], header[-COMMITMENT_BYTES:]
        ciphers = [cipher for cipher, made in (key.for_blob(salt) for key in keys) if _is_same(made, commitment)]
        if not ciphers:
            raise SealBroken("it is sealed under another key")
        self._plain_bytes = plain_size_bytes(size_bytes)
        if sealed_size_bytes(self._plain_bytes) != size_bytes:
            raise SealBroken("it was cut short")
        self._cipher = ciphers[0]
        self._file = file
        self._last = segment_count(self._plain_bytes) - 1
        self._at = 0
        self._number = -1
        self._segment = b""
        # Also where there is not a byte to read: that there is none is to be proved, too.
        self._open(0)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go on elsewhere, counted in the bytes that were sealed."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._plain_bytes}[whence]
        if start + offset < 0:
            raise ValueError("before the beginning")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """Where it stands."""
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """The rest of a segment, as far as there is room for it."""
        if self._at >= self._plain_bytes:
            return 0
        number, within = divmod(self._at, SEGMENT_BYTES)
        self._open(number)
        piece = self._segment[within : within + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def close(self) -> None:
        """The file below, too."""
        if not self.closed and hasattr(self, "_file"):
            self._segment = b""
            self._file.close()
        super().close()

    def _open(self, number: int) -> None:
        if number == self._number:
            return
        start = number * SEALED_SEGMENT_BYTES
        self._file.seek(HEADER_BYTES + start)
        whole_bytes = min(SEALED_SEGMENT_BYTES, self._plain_bytes + TAG_BYTES * (self._last + 1) - start)
        sealed = self._file.read(whole_bytes)
        try:
            self._segment = self._cipher.decrypt(_nonce(number, last=number == self._last), sealed, None)
        except (InvalidTag, ValueError):
            raise SealBroken("it was changed or cut short") from None
        self._number = number


def _is_same(one: bytes, other: bytes) -> bool:
    return hmac.compare_digest(one, other)
