"""What a process does between fork and bubblewrap: become nobody, in a view of the files where nobody can reach ours.

bubblewrap is never started by uid 0: a job in a sandbox that root made could write /proc/sys/kernel/core_pattern and so
become root on the host (measured). So a launcher that is root first drops to a uid that nobody uses. That uid cannot
read below a directory of mode 0700, where the interpreter (/root/.pyenv) and the data directory often are; so in a
mount namespace of its own, made while still root, the process binds just the directories that the sandbox is furnished
with under a path that it can read. An ordinary user's launcher needs none of this: it can read what it owns.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import pwd
import resource
import signal
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

FIRST_UID, LAST_UID = 64_000, 64_999
CLAIM_PARENTS = ("/run", "/var/lib")
"""A unit of an older version may write to the second only; who is root in a user namespace alone, to neither."""
CLAIMS = "hansa-launcher"
STAGE = "/mnt"
DISK_OPTIONS = "noinit_itable,barrier=0"
"""For what is empty at first and never needed after a crash."""
UID_MAP, GID_MAP = Path("/proc/self/uid_map"), Path("/proc/self/gid_map")
MORE_UIDS = "map 65536 uids and gids into it (as podman does with /etc/subuid), or run as an ordinary user"
OOM_SCORE = 500
OOM_SCORE_PREPARED = 900
"""Of a sandbox that has no run yet."""

LEAST_FILE_BYTES = 1 << 28

_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_MS_NOEXEC, _MS_NOATIME = 8, 1024
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _AT_FDCWD = 1, 4, -100


class ClaimedUid:
    """A uid that no user has and no other launcher on this machine uses, for as long as this object is held.

    The claim is the kernel's lock on a file that nobody but this user can open, so it ends with the process that made
    it, however that ends, and no stranger can take one. (Names of abstract sockets, which it was before, are
    anybody's.) Not every launcher need see every other's files, and a killed one's sandbox dies a moment after it; so a
    uid is also taken while any process lives under it.
    """

    def __init__(self, parents: Sequence[str] = ()) -> None:
        """Claim the first that is free.

        Args:
            parents: where the directory of claims may be, if not where all launchers look for it; it is in the first
                in which strangers can exchange nothing.

        Raises:
            OSError: all are taken, or there is no such directory.
        """
        directory = _open_claims(parents)
        try:
            for uid in range(FIRST_UID, LAST_UID + 1):
                with contextlib.suppress(KeyError):
                    pwd.getpwuid(uid)
                    continue
                claim = _lock_file(str(uid), directory)
                if claim is None:
                    continue
                if uid in _uids_alive():
                    _unlock_file(claim)
                    continue
                self.uid = uid
                self._claim: int | None = claim
                return
        finally:
            os.close(directory)
        raise OSError("every uid for sandboxes is in use")

    def release(self) -> None:
        """Let others have it."""
        claim, self._claim = self._claim, None
        if claim is not None:
            _unlock_file(claim)


def _open_claims(parents: Sequence[str]) -> int:
    """The directory of claims, made if it is not there."""
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    parents = parents or (*CLAIM_PARENTS, *([own] if own.startswith("/") else []))
    why = ""
    for parent in parents:
        path = Path(parent, CLAIMS)
        try:
            _check_closed(Path(parent))
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            _check_closed(path)
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as fault:
            why = f"{fault.strerror or fault}: {path}"
    raise PermissionError(errno.EACCES, f"nowhere to claim uids for sandboxes, which needs {parents[0]}: {why}")


def _check_closed(path: Path) -> None:
    """Whether only root and this user can make and exchange what lies in a directory."""
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is no directory", str(path))
    if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, "others may write there", str(path))


def _lock_file(name: str, directory: int) -> int | None:
    """A descriptor that holds a file's lock until it is closed everywhere; ``None`` if another has the lock."""
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock_file(descriptor: int) -> None:
    """Give a lock back, also where a fork of ours still has the file open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def staged(sources: Sequence[str]) -> Callable[[str], str]:
    """Where each of these paths, or one below them, will be found after `stage`."""
    places = {source: f"{STAGE}/{number}" for number, source in enumerate(sources)}

    def place(path: str) -> str:
        for source, at in places.items():
            if path == source:
                return at
            if path.startswith(source + "/"):
                return at + path[len(source) :]
        return path

    return place


def hold(path: str, owner_uid: int | None = None) -> int:
    """A descriptor of what a path names at this moment, for `stage`; it cannot be exchanged any more.

    Args:
        path: a directory or a socket.
        owner_uid: whom it must belong to, if that matters.

    Raises:
        OSError: there is nothing, or it is a link or another kind of thing.
        PermissionError: it belongs to somebody else.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    facts = os.fstat(descriptor)
    if owner_uid is not None and facts.st_uid != owner_uid:
        os.close(descriptor)
        raise PermissionError(f"{path} does not belong to the daemon")
    if not (stat.S_ISDIR(facts.st_mode) or stat.S_ISSOCK(facts.st_mode)):
        os.close(descriptor)
        raise NotADirectoryError(f"{path} is neither a directory nor a socket")
    return descriptor


def stage(sources: Sequence[str], held: Mapping[str, int], *, writable: str | None = None) -> None:
    """In a new mount namespace, bind these paths read-only where `staged` says. Needs root.

    Args:
        sources: the paths.
        held: what some of them named when they were looked at (`hold`); they must name the same now.
        writable: the one among them that may be written to, if there is one.

    Raises:
        OSError: the kernel refused, or a path names something else by now.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.unshare(_CLONE_NEWNS), "a mount namespace of its own")
    # Nothing that follows may be seen outside.
    _mount(libc, None, "/", None, _MS_REC | _MS_PRIVATE)
    # Mounted over what is there, so first hold on to sources that lie below.
    opened = [_open_again(source, held.get(source)) for source in sources]
    _mount(libc, "hansa", STAGE, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=64k")
    for number, (source, descriptor) in enumerate(zip(sources, opened, strict=True)):
        at = Path(STAGE, str(number))
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            at.mkdir()
        else:
            at.touch()
        _mount(libc, f"/proc/self/fd/{descriptor}", str(at), None, _MS_BIND)
        flags = _MS_BIND | _MS_REMOUNT | _MS_NOSUID | _MS_NODEV
        _mount(libc, None, str(at), None, flags if source == writable else flags | _MS_RDONLY)
        os.close(descriptor)


def staged_disk(name: str) -> str:
    """Where a disk's directory for the job will be found after `mount_disk`."""
    return f"{STAGE}/disk-{name}/files"


def mount_disk(name: str, device: str, uid: int) -> None:
    """After `stage`, mount a device where `staged_disk` says, for this uid. Needs root.

    Raises:
        OSError: the kernel refused.
    """
    files = Path(staged_disk(name))
    files.parent.mkdir()
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    _mount(ctypes.CDLL(None, use_errno=True), device, str(files.parent), "ext4", flags, DISK_OPTIONS)
    files.mkdir(mode=0o700)
    os.chown(files, uid, uid)


def mount_memory(name: str, size_bytes: int, uid: int) -> None:
    """After `stage`, where there is no real disk: memory of this size where `staged_disk` says. Needs root.

    Raises:
        OSError: the kernel refused.
    """
    files = Path(staged_disk(name))
    files.parent.mkdir()
    options = f"size={size_bytes},mode=0755"
    _mount(ctypes.CDLL(None, use_errno=True), "hansa", str(files.parent), "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    files.mkdir(mode=0o700)
    os.chown(files, uid, uid)


def take_tree(path: str) -> int:
    """A descriptor of what is mounted at a path, to be mounted once more elsewhere, with the same flags. Needs root.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC)
    tree: int = libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, path.encode(), flags)
    _call(min(tree, 0), f"taking {path}")
    return tree


def enter_mounts(process_fd: int) -> None:
    """Enter the mount namespace of a process, and see its files and mounts from its root on. Needs root.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.setns(process_fd, _CLONE_NEWNS), "the mounts of a sandbox")


def put_tree(tree: int, path: str, *, writable: bool) -> None:
    """Mount what `take_tree` gave at a path of the mount namespace that this process is in now, and look at it.

    Raises:
        OSError: the kernel refused, or what is there now is less closed than it must be.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    moved = libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, path.encode(), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH))
    _call(moved, f"mounting {path}")
    wanted = os.ST_NOSUID | os.ST_NODEV | (0 if writable else os.ST_RDONLY)
    if os.statvfs(path).f_flag & wanted != wanted:
        raise PermissionError(f"{path} could be used for more than it is for")


def mount_empty(path: str) -> None:
    """After `stage`, a small directory in memory for what only the run's own processes may see. Needs root.

    Unlike all else it is not mounted nosuid: a user namespace could not remount it read-only then, as gVisor does. All
    that lies in it is root's.

    Raises:
        OSError: the kernel refused.
    """
    Path(path).mkdir()
    _mount(ctypes.CDLL(None, use_errno=True), "hansa", path, "tmpfs", 0, "mode=0755,size=4m")


def _open_again(path: str, held: int | None) -> int:
    """A descriptor in our own mount namespace; the kernel binds nothing that was opened in another."""
    if held is None:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not os.path.samestat(os.fstat(descriptor), os.fstat(held)):
        raise PermissionError(f"{path} was exchanged while the sandbox was made")
    return descriptor


def why_not_become(*uids: int) -> str:
    """Why root here cannot become these users, or nothing: in a user namespace there are only those mapped into it."""
    for file in (UID_MAP, GID_MAP):
        try:
            text = file.read_text()
        except FileNotFoundError:  # this kernel was built without user namespaces
            continue
        starts = [tuple(map(int, line.split())) for line in text.splitlines()]
        for uid in uids:
            if not any(first <= uid < first + count for first, _outside, count in starts):
                return f"root here is that of a user namespace without uid {uid}"
    return ""


def drop_to(uid: int) -> None:
    """Become this uid, in no group but its own, for good. Also where no /proc is to be seen."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    assert os.getuid() == uid, "still somebody else"


def set_limits(*, file_bytes: int | None, processes: int | None, oom_score: int = OOM_SCORE) -> None:
    """Limits that hold per process, and the number of a uid's processes where no cgroup counts them.

    RLIMIT_AS is not among them: Ray, torch and CUDA reserve tens of GB that they never touch.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(file_bytes, LEAST_FILE_BYTES),) * 2)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 65_536 if most == resource.RLIM_INFINITY else min(65_536, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if processes is not None:
        _, most = resource.getrlimit(resource.RLIMIT_NPROC)
        wanted = _threads_of(os.getuid()) + processes  # the kernel counts what the user runs elsewhere, too
        wanted = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NPROC, (wanted, wanted))
    Path("/proc/self/oom_score_adj").write_text(str(oom_score))  # if memory runs out, a guest goes first


@contextlib.contextmanager
def own_processes() -> Iterator[bool]:
    """Who is forked in here is the first in a process namespace: when it ends, the kernel ends all below it at once.

    Gives whether that could be had. It takes rights of root, and a kernel that lets us fork into our own one again.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.ExitStack() as held:
        is_had = False
        with contextlib.suppress(OSError):
            own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            held.callback(os.close, own)
            # First what must not fail afterwards.
            is_had = libc.setns(own, _CLONE_NEWPID) == 0 and libc.unshare(_CLONE_NEWPID) == 0
        try:
            yield is_had
        finally:
            if is_had:
                _call(libc.setns(own, _CLONE_NEWPID), "our own processes again")


def show_processes() -> None:
    """After `stage`, mount /proc anew: the processes of the namespace in which this one is. Needs root.

    Raises:
        OSError: the kernel refused.
    """
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount(ctypes.CDLL(None, use_errno=True), "proc", "/proc", "proc", flags)


def own_number() -> int:
    """Our process number as /proc has it."""
    return int(Path("/proc/self").readlink().name)


def open_stat() -> int:
    """A descriptor for `die_with`, to be opened before /proc shows other processes."""
    return os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)


def die_with(parent: int, number: signal.Signals = signal.SIGKILL, *, stat_fd: int | None = None) -> None:
    """Be signalled when the thread that forked us ends; launchers have one thread, which lives as long as they do.

    Args:
        parent: its process number.
        number: the signal.
        stat_fd: from `open_stat`, for who may be in another process namespace than the parent, and cannot ask for it;
            then the parent's is its `own_number`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "a signal at the parent's death")
    # Only now: the kernel gives an orphan its new parent first, and looks then which signal it wants.
    now = os.getppid() if stat_fd is None else int(os.read(stat_fd, 4096).rpartition(b")")[2].split()[1])
    if now != parent:
        os._exit(125)


def adopt_orphans() -> None:
    """Be the parent of whatever below us loses its own, instead of process 1."""
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "the orphans below this process")


def _uids_alive() -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.add(entry.stat().st_uid)
    return found


def _threads_of(uid: int) -> int:
    count = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                count += sum(1 for _ in entry.joinpath("task").iterdir())
    return count


def _mount(  # noqa: PLR0917 - the system call's own order
    libc: ctypes.CDLL, source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _call(libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mounting {target}")


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
