"""The content keys of this buyer's sealed jobs, on its own disk and nowhere else.

One file for each job, encrypted under a key that comes from the account's, whose own file a password opens. A copy of
this node's directory therefore opens nothing only where that password lies elsewhere (in a systemd credential, say):
``hansa init`` by itself leaves it beside the account, so that the node starts unattended.

No key is in the journal, which says what was traded and is kept for as long as anybody may ask. A key goes with its
job, and with it everything that was ever sealed under it, wherever copies of that may lie.
"""

import secrets
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hansa.node.faults import ConfigError
from hansa.node.secret_files import ensure_private_directory, read_file, write_new_secret
from hansa.node.storage.sealing import ContentKey
from hansa.proto.signing import SigningKey

SUFFIX: Final = ".key"
NONCE_BYTES: Final = 12
_OF_ACCOUNT: Final = b"hansa keys of sealed jobs 1"


class JobKeys:
    """Content keys by job. Small files, read once each."""

    def __init__(self, directory: Path, account: SigningKey) -> None:
        """Keep them in ``directory``, which is made if it is new. Raises ``ConfigError`` if others may enter it."""
        ensure_private_directory(directory)
        self._directory = directory
        for half_written in directory.glob(f".*{SUFFIX}.*"):
            half_written.unlink(missing_ok=True)
        wrapping = HKDF(algorithm=SHA256(), length=32, salt=None, info=_OF_ACCOUNT)
        self._cipher = AESGCM(wrapping.derive(account.secret()))
        self._known: dict[bytes, ContentKey] = {}
        self._new: set[bytes] = set()
        self._lock = threading.Lock()

    def keep(self, job: bytes, key: ContentKey) -> None:
        """Have a new job's key on the disk. Blocks. Raises ``ConfigError`` if that cannot be."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        with self._lock:
            write_new_secret(self._path(job), nonce + self._cipher.encrypt(nonce, key.secret(), job))
            self._new.add(job)
            self._known[job] = key

    def find(self, job: bytes) -> ContentKey | None:
        """A job's key; ``None`` if it is lost, or was kept by another account."""
        if job not in self._known:
            try:
                content = read_file(self._path(job), private=True)
                secret = self._cipher.decrypt(content[:NONCE_BYTES], content[NONCE_BYTES:], job)
                self._known[job] = ContentKey(secret)
            except (ConfigError, InvalidTag, ValueError):
                return None
        return self._known[job]

    def keep_only(self, jobs: Collection[bytes]) -> None:
        """Forget the keys of jobs that this node knows no more. One that was kept before its job was known stays."""
        # Another thread may be keeping one: its file must not be seen before its job is known to be new.
        with self._lock:
            self._new.difference_update(jobs)
            stay = {*jobs, *self._new}
            for job in set(self._known) - stay:
                self._known.pop(job, None)
            names = {job.hex() for job in stay}
            for path in self._directory.glob(f"*{SUFFIX}"):
                if path.stem not in names:
                    path.unlink(missing_ok=True)

    def _path(self, job: bytes) -> Path:
        return self._directory / f"{job.hex()}{SUFFIX}"
