"""What the store of blobs holds: its books, what must stay, and what goes when room is needed.

The methods block and may be called from threads, one lock guarding the books.
"""

import contextlib
import json
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from hansa.node.storage.blob_files import create, sync, sync_folder
from hansa.proto.blob import BlobRef

PART_LIFE_S = 7 * 86_400
"""How long a part file that nobody goes on with is kept, where nothing else wants its room."""


class BlobMissing(Exception):
    """The store does not hold this blob."""

    def __init__(self, ref: BlobRef) -> None:
        """Keep which."""
        super().__init__(str(ref))
        self.ref = ref


class NoRoom(Exception):
    """The quota does not allow this blob, even with everything evicted that may be."""

    def __init__(self, wanted_bytes: int, quota_bytes: int) -> None:
        """Keep both figures."""
        super().__init__(f"{wanted_bytes} bytes do not fit into the quota of {quota_bytes}")
        self.wanted_bytes = wanted_bytes
        self.quota_bytes = quota_bytes


@dataclass(slots=True)
class Entry:
    """A whole blob, and when it was last of use."""

    size_bytes: int
    used_s: float


class BlobShelf:
    """Which blobs are on disk, for what reason, and within which quota."""

    def __init__(self, directory: Path, *, quota_bytes: int) -> None:
        """Open the shelf, making it if it is new, and clear away what a crash left half written."""
        self.directory = directory
        self.quota_bytes = quota_bytes
        self.evicted = 0
        self._lock = threading.RLock()
        self._whole = directory / "whole"
        self._parts = directory / "part"
        self._new = directory / "new"
        for folder in (directory, self._whole, self._parts, self._new):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left_over in self._new.iterdir():
            left_over.unlink()
        self._pins = self._read_pins()
        self._unwritten = False
        self._resting: set[str] = set()
        self._open: Counter[str] = Counter()
        self._entries = {
            path.name: Entry(path.stat().st_size, path.stat().st_mtime)
            for path in self._whole.iterdir()
            if path.suffix != ".tree" and path.with_suffix(".tree").exists()
        }
        self._reserved = {
            path.name: int(path.name.partition(".")[2])
            for path in self._parts.iterdir()
            if path.suffix != ".tree" and not self._forget_old_part(path)
        }

    # Books.

    @property
    def size_bytes(self) -> int:
        """What the store holds and has promised to part files."""
        with self._lock:
            return sum(entry.size_bytes for entry in self._entries.values()) + sum(self._reserved.values())

    def has(self, ref: BlobRef) -> bool:
        """Whether the whole blob is here."""
        with self._lock:
            entry = self._entries.get(str(ref))
            return entry is not None and entry.size_bytes == ref.size_bytes

    def path(self, ref: BlobRef) -> Path | None:
        """Where the whole blob lies, or None. Read it and leave it alone: the store believes in what it has written."""
        with self._lock:
            if not self.has(ref):
                return None
            self._touch(ref)
            return self._whole / str(ref)

    def pin(self, ref: BlobRef, why: str) -> None:
        """Never evict this blob, whether it is here yet or not, until the same reason is taken back."""
        with self._lock:
            self._pins.setdefault(str(ref), [])
            if why not in self._pins[str(ref)]:
                self._pins[str(ref)].append(why)
                self._write_pins()

    def unpin(self, ref: BlobRef, why: str) -> None:
        """Take one reason back; taking back what was never given is no fault."""
        with self._lock:
            reasons = self._pins.get(str(ref), [])
            if why in reasons:
                reasons.remove(why)
                if not reasons:
                    del self._pins[str(ref)]
                self._write_pins()

    def pin_exactly(self, refs: Collection[BlobRef], why: str) -> None:
        """Have this reason hold these blobs and no others, also against what an earlier process pinned for it."""
        wanted = {str(ref) for ref in refs}
        with self._lock:
            before = {name for name, reasons in self._pins.items() if why in reasons}
            for name in wanted - before:
                self._pins.setdefault(name, []).append(why)
            for name in before - wanted:
                self._pins[name].remove(why)
                if not self._pins[name]:
                    del self._pins[name]
            if wanted != before or self._unwritten:
                self._write_pins()

    def retain(self, refs: Collection[BlobRef], why: str, rest_s: float) -> None:
        """As ``pin_exactly``, and what this reason held before is deleted: it was replaced by something newer.

        That happens once nothing else holds it and nobody has read it for ``rest_s``: somebody may still be copying it.
        Until then it may be evicted for the sake of other blobs.
        """
        with self._lock:
            self._resting |= {name for name, reasons in self._pins.items() if why in reasons}
            self.pin_exactly(refs, why)
            now_s = time.time()
            for name in list(self._resting):
                entry = self._entries.get(name)
                if entry is None or name in self._pins:
                    self._resting.discard(name)
                elif now_s - entry.used_s >= rest_s:
                    self._resting.discard(name)
                    self._remove(name)

    def forget_pins(self, prefix: str) -> None:
        """Take back every reason that begins so: what an earlier process held for things that ended with it."""
        with self._lock:
            kept = {
                name: [why for why in reasons if not why.startswith(prefix)] for name, reasons in self._pins.items()
            }
            kept = {name: reasons for name, reasons in kept.items() if reasons}
            if kept != self._pins:
                self._pins = kept
                self._write_pins()

    def delete(self, ref: BlobRef) -> None:
        """Forget a blob at once, pinned or not."""
        with self._lock:
            self._remove(str(ref))

    def check_quota(self, size_bytes: int) -> None:
        """Raise ``NoRoom`` for what could never fit."""
        if size_bytes > self.quota_bytes:
            raise NoRoom(size_bytes, self.quota_bytes)

    def _make_room(self, wanted_bytes: int) -> None:
        """Evict the longest unused of what is not pinned, or raise without having evicted anything.

        What was broken off goes before what is whole: its sizes are a stranger's word, and it is of use to nobody yet.
        """
        free_bytes = self.quota_bytes - self.size_bytes
        loose = sorted((entry.used_s, name) for name, entry in self._entries.items() if name not in self._pins)
        idle = self._idle_parts()
        loose_bytes = sum(self._entries[name].size_bytes for _, name in loose)
        if wanted_bytes > free_bytes + loose_bytes + sum(self._reserved[path.name] for path in idle):
            raise NoRoom(wanted_bytes, self.quota_bytes)
        for path in idle:
            if wanted_bytes <= free_bytes:
                break
            free_bytes += self._reserved[path.name]
            self._release(path)
        for _, name in loose:
            if wanted_bytes <= free_bytes:
                break
            free_bytes += self._entries[name].size_bytes
            self._remove(name)
            self.evicted += 1

    def _idle_parts(self) -> list[Path]:
        """Parts that nobody is fetching and nothing pins, the oldest first. A writer's room has no dot in its name."""
        found = []
        for name in self._reserved:
            root, dot, _ = name.partition(".")
            if dot and not self._open[name] and root not in self._pins:
                path = self._parts / name
                with contextlib.suppress(OSError):
                    found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def _remove(self, name: str) -> None:
        self._entries.pop(name, None)
        target = self._whole / name
        target.unlink(missing_ok=True)
        target.with_suffix(".tree").unlink(missing_ok=True)

    def _touch(self, ref: BlobRef) -> None:
        entry = self._entries[str(ref)]
        entry.used_s = time.time()
        # For the next start only. That a disk takes no more notes is no reason not to read what it has.
        with contextlib.suppress(OSError):
            os.utime(self._whole / str(ref))

    def _release(self, path: Path) -> None:
        # In this order: what cannot be removed goes on being counted, for it goes on taking room.
        path.unlink(missing_ok=True)
        self._reserved.pop(path.name, None)
        path.with_name(f"{path.name}.tree").unlink(missing_ok=True)

    def close_part(self, path: Path) -> None:
        """A fetch stops for now."""
        with self._lock:
            self._open[path.name] -= 1
            if self._open[path.name] <= 0:
                del self._open[path.name]

    def _forget_old_part(self, path: Path) -> bool:
        old = path.stat().st_mtime < time.time() - PART_LIFE_S
        if old:
            path.unlink()
            path.with_name(f"{path.name}.tree").unlink(missing_ok=True)
        return old

    # Pins.

    def _read_pins(self) -> dict[str, list[str]]:
        """Those that were written. A damaged file says no more than a lost one: the state pins its blobs anew."""
        try:
            raw = json.loads((self.directory / "pins.json").read_bytes())
            return {str(name): [str(why) for why in reasons] for name, reasons in raw.items()}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return {}

    def _write_pins(self) -> None:
        self._unwritten = True
        temporary = self._new / secrets.token_hex(16)
        with create(temporary) as file:
            file.write(json.dumps(self._pins).encode())
            sync(file)
        temporary.rename(self.directory / "pins.json")
        sync_folder(self.directory)
        self._unwritten = False
