"""Directories that are costly to make and never change: a job's packages, an image unpacked. Known by a digest.

Layout below one directory, all on one file system so that a rename publishes::

    work/                what a tool may write to: its own cache, and what is being made
    work/cache/          the tool's cache, which may be thrown away at any time
    ready/<digest>/tree  complete, immutable, shared by runs
    ready/<digest>/used  when it was last asked for (its time stamp)

What stands in ``ready`` was complete when it came there; whatever a crash left in ``work`` beside the cache is removed
at the next start. Over the quota the cache goes first, then the longest unused trees, and never one that a run uses.
"""

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import stat
import threading
from pathlib import Path

import trio

from hansa.node.isolation.build_room import TooDeep, make_work, tree_size
from hansa.node.isolation.tree_removal import remove_tree

EVERYBODY_READS, EVERYBODY_ENTERS = 0o444, 0o555
DEEPEST = 200
"""More directories inside each other than any package has, and fewer than trouble Python's own functions."""


class Trees:
    """The trees of one kind of one node. The methods block and may be called from threads."""

    def __init__(self, directory: Path, *, quota_bytes: int) -> None:
        """Open the place, making it if it is new, and clear away what a crash left half made."""
        self.directory = directory
        self.quota_bytes = quota_bytes
        self.work = directory / "work"
        self.cache = self.work / "cache"
        self._ready = directory / "ready"
        self.building = trio.Lock()
        """Held while tools work: some see all of ``work``, and are not to see what another is making."""
        self._lock = threading.Lock()
        self._users: dict[str, set[bytes]] = {}
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        for place in (self.work, self.cache):
            make_work(place)
        self._ready.mkdir(mode=0o711, exist_ok=True)
        for left in (*self.work.iterdir(), *self._ready.glob("gone-*")):
            if left != self.cache:
                remove_tree(left)

    def take(self, key: str, user: bytes) -> Path | None:
        """The tree of that key, if it is here; it stays until ``let_go``."""
        with self._lock:
            place = self._ready / key
            if not (place / "tree").is_dir():
                return None
            os.utime(place / "used")
            self._users.setdefault(key, set()).add(user)
            return place / "tree"

    def let_go(self, user: bytes) -> None:
        """This user needs nothing of all this any more."""
        with self._lock:
            for key in [key for key, users in self._users.items() if user in users]:
                self._users[key].discard(user)
                if not self._users[key]:
                    del self._users[key]

    def begin(self) -> Path:
        """A new empty directory that a tool may fill."""
        place = self.work / f"new-{secrets.token_hex(8)}"
        make_work(place)
        return place

    def publish(self, made: Path, key: str) -> None:
        """What was made is whole: give it its name, for everybody to read. If somebody was faster, it is dropped.

        Raises:
            NotADirectoryError: the tool left something else in its place.
            OSError: what it left is too deep to be looked at.
        """
        # As long as its name will be: what can be looked at here, can be there.
        coming = self._ready / f"gone-{secrets.token_hex(8)}".ljust(len(key), "-")
        coming.mkdir(mode=0o711)
        (coming / "used").touch()
        # Moved out of the tools' reach before it is looked at. A rename does not follow what it moves.
        made.rename(coming / "tree")
        try:
            if not stat.S_ISDIR((coming / "tree").lstat().st_mode):
                raise NotADirectoryError("the tool left no directory")
            open_to_everybody(coming / "tree")
            _write_through(coming)
            with self._lock:
                if not (self._ready / key).exists():
                    coming.rename(self._ready / key)
        finally:
            if coming.exists():
                remove_tree(coming)

    def discard(self, made: Path) -> None:
        """Nothing of it is wanted any more, if there is anything left."""
        remove_tree(made)
        try:
            tree_size(self.cache)
        except TooDeep:  # the next tool would be ended for it
            self._empty_cache()

    def make_room(self) -> None:
        """Come below the quota again, as far as what is in use allows. What nobody can count goes first."""
        weight = self._weight()
        if weight is not None and weight <= self.quota_bytes:
            return
        self._empty_cache()
        if weight is None:
            self._evict_the_uncountable()
        while (weight := self._weight()) is not None and weight > self.quota_bytes:
            if not self._evict_one():
                return

    def _empty_cache(self) -> None:
        for left in self.cache.iterdir():
            remove_tree(left)

    def used_bytes(self) -> int:
        """What all this weighs. Trees and the cache share files, which count once.

        Raises:
            TooDeep: nobody can say.
        """
        seen: set[tuple[int, int]] = set()
        return sum(tree_size(place, seen=seen)[0] for place in (self._ready, self.work))

    def _weight(self) -> int | None:
        """What all this weighs, if it can be counted: these directories may have got a longer path than they had."""
        try:
            return self.used_bytes()
        except TooDeep:
            return None

    def names(self) -> list[str]:
        """What is here, the longest unused first."""
        with self._lock:
            found = [place for place in self._ready.iterdir() if not place.name.startswith("gone-")]
            return [place.name for place in sorted(found, key=lambda place: (place / "used").stat().st_mtime_ns)]

    def _evict_the_uncountable(self) -> None:
        for key in self.names():
            try:
                tree_size(self._ready / key)
            except TooDeep:
                self._evict(key)

    def _evict_one(self) -> bool:
        return any(self._evict(key) for key in self.names())

    def _evict(self, key: str) -> bool:
        with self._lock:
            if key in self._users:
                return False
            gone = self._ready / f"gone-{secrets.token_hex(8)}"
            (self._ready / key).rename(gone)
        remove_tree(gone)
        return True


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file at another place, sharing its bytes where the file system can, and let everyone read it there."""
    source.chmod(0o444)
    try:
        os.link(source, target)
    except OSError as fault:
        if fault.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(source, target)
        target.chmod(0o444)


def open_to_everybody(directory: Path) -> None:
    """Let every user read what lies below, and nobody run it as its owner: a sandbox is another user than the tool was.

    Links are left alone and never followed.

    Raises:
        OSError: a directory in it is nested too deeply.
    """
    waiting = [(str(directory), 0)]
    while waiting:
        path, depth = waiting.pop()
        if depth > DEEPEST:
            raise OSError(errno.ENAMETOOLONG, f"directories are nested more than {DEEPEST} deep")
        _set_mode(path, os.lstat(path).st_mode)
        with os.scandir(path) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    waiting.append((entry.path, depth + 1))
                elif stat.S_ISREG(mode):
                    _set_mode(entry.path, mode)
                elif not stat.S_ISLNK(mode):
                    os.unlink(entry.path)  # noqa: PTH108 - a pipe, a socket or a device, which nobody has a use for


def _set_mode(path: str, mode: int) -> None:
    wanted = EVERYBODY_ENTERS | stat.S_IWUSR if stat.S_ISDIR(mode) else EVERYBODY_READS
    new = (stat.S_IMODE(mode) | wanted) & ~(stat.S_ISUID | stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH)
    if new != stat.S_IMODE(mode):
        os.chmod(path, new, follow_symlinks=True)  # noqa: PTH101 - it was seen to be no link, and nobody else writes here


def _write_through(directory: Path) -> None:
    """Have the file system write all down, so that no power cut leaves a whole tree of empty files."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None, use_errno=True).syncfs(descriptor)
    finally:
        os.close(descriptor)
