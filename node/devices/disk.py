"""A real disk for what one run writes: a file without a name, as a loop device, with a file system of the paid size.

Files on it are no memory, and their number is limited. Everything about it ends by itself, whatever is killed: the file
has no name and so goes with the last who has it open, which is the loop device; the device clears itself when it is
unmounted; and it is mounted in no other mount namespace than the run's (`hansa.node.isolation.confine`).

The room is taken when the disk is made, so that no run meets a full disk halfway. Of the paid size the file system
needs some two hundredths for itself.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ON_DISK: Final = "ext4 on a loop device"
IN_MEMORY: Final = "tmpfs, counts as memory"
BLOCK_BYTES: Final = 4096
LEAST_BYTES: Final = 1 << 20
BYTES_A_FILE: Final = 16 << 10
LEAST_FILES: Final = 1024
MAKING_S: Final = 60.0

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_AUTOCLEAR, _DIRECT_IO = 4, 16
_ATTEMPTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk that nobody has mounted yet. It goes when nobody has it open or mounted.

    Attributes:
        device: its path.
        descriptor: keeps it from going; to be closed once it is mounted, or not wanted.
    """

    device: str
    descriptor: int


def scratch_directory() -> Path:
    """Where the files are: what the operator says, else the unit's own directory, else where large files belong."""
    for name in ("HANSA_SCRATCH", "STATE_DIRECTORY"):
        if os.environ.get(name, "").startswith("/"):
            return Path(os.environ[name])
    return Path("/var/tmp")  # noqa: S108 - the file never has a name there


def make_disk(size_bytes: int, directory: Path) -> Disk:
    """A new disk of this size. Needs root, and what makes file systems.

    Raises:
        OSError: it cannot be made; with ``ENOSPC`` because there is no room for it.
    """
    size_bytes = max(size_bytes, LEAST_BYTES) // BLOCK_BYTES * BLOCK_BYTES
    program = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "there is no program mkfs.ext4")
    with tempfile.TemporaryFile(dir=directory) as file:
        _take_room(file.fileno(), size_bytes)
        _make_file_system(program, file.fileno(), size_bytes)
        return _attach(file.fileno())


def _take_room(descriptor: int, size_bytes: int) -> None:
    room = os.fstatvfs(descriptor)
    if room.f_bavail * room.f_frsize < size_bytes:  # what is kept for root is not for jobs
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, size_bytes)  # a file system that cannot promise room


def _make_file_system(program: str, descriptor: int, size_bytes: int) -> None:
    # The file reads as zeros, so there is nothing to initialise; and nothing of this needs to survive a crash.
    command = [program, "-q", "-F", "-b", str(BLOCK_BYTES), "-O", "^has_journal,^resize_inode", "-m", "0"]
    command += ["-N", str(max(LEAST_FILES, size_bytes // BYTES_A_FILE)), "-E", "nodiscard,lazy_itable_init=1"]
    command.append(f"/proc/self/fd/{descriptor}")
    try:
        done = subprocess.run(
            command,
            pass_fds=(descriptor,),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MAKING_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, "mkfs.ext4 did not end") from error
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip()[-200:]
        raise OSError(errno.EIO, f"mkfs.ext4 failed: {words}")


def _attach(descriptor: int) -> Disk:
    """Make the file a device, of which nothing remains when its last user goes."""
    flags = _AUTOCLEAR | _DIRECT_IO  # without the second, what is written would be cached twice
    info = struct.pack("<5Q4I64s64s32s2Q", 0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    configuration = struct.pack("<II", descriptor, BLOCK_BYTES) + info + bytes(64)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, configuration)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was quicker
                    raise
            else:
                return Disk(device=path, descriptor=device)
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "others took every loop device first")


def make_disks(sizes: dict[str, int], directory: Path) -> dict[str, Disk]:
    """A disk for each of these sizes, or none at all where this process may make none.

    Raises:
        OSError: they could be made, but there is no room.
    """
    made: dict[str, Disk] = {}
    try:
        for name, size_bytes in sizes.items():
            made[name] = make_disk(size_bytes, directory)
    except OSError as error:
        close_disks(made)
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"no room for {sum(sizes.values()) >> 20} MiB", str(directory)) from error
        return {}
    return made


def close_disks(disks: dict[str, Disk]) -> None:
    """Let go of them: those that are mounted stay until they are not."""
    for disk in disks.values():
        with contextlib.suppress(OSError):
            os.close(disk.descriptor)
