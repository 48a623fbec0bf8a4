"""A job's directory as one deterministic tar, and the way back into a fresh directory on a stranger's machine.

Packing: sorted names, no times, owners or modes but "may be executed", so the same directory always has the same hash.
Unpacking trusts nothing: the headers are read here, block by block, and not by ``tarfile``, because all that a package
may hold is plain files and directories with plain names. That leaves no room for links, devices, sparse files, or the
extensions whose handling has been the trouble with tar archives ever since.
"""

import fnmatch
import os
import stat
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hansa.node.faults import ConfigError
from hansa.node.quantities import format_size
from hansa.proto.errors import Malformed, ProtocolError, TooLarge
from hansa.proto.frames import is_safe_path
from hansa.proto.typed_json import parse_json

IGNORE_FILE = ".hansaignore"
_TOOLS = (".git", ".hg", ".svn", "__pycache__", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", "*.pyc")
_LOGINS = (".ssh", ".aws", ".gnupg", ".netrc")
ALWAYS_IGNORED = _TOOLS + _LOGINS
NODE_KEY = "node.key"
LARGEST_KEYSTORE_BYTES = 65_536
LARGEST_PACKAGE_BYTES = 1 << 30
MOST_FILES = 10_000
DEEPEST = 32
BLOCK_BYTES = 512
COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What went into a package.

    Attributes:
        files: paths relative to the job's directory, in the archive's order.
        size_bytes: the archive's length.
    """

    files: tuple[str, ...]
    size_bytes: int


def pack(
    directory: Path,
    archive: BinaryIO,
    *,
    limit_bytes: int = LARGEST_PACKAGE_BYTES,
    left_out: Collection[str] = (),
) -> Packed:
    """Write a job's directory to ``archive`` as an uncompressed tar. What it holds is looked at before it is read.

    Args:
        directory: the job's.
        archive: where to write to.
        limit_bytes: what all files together may weigh.
        left_out: files and directories that are not packed, by their paths below the directory.

    Raises:
        ConfigError: the directory holds a link that leads out of it, something that is no file, or too much.
    """
    patterns = _ignore_patterns(directory)
    members = list(_members(directory, directory.resolve(), "", (patterns, frozenset(left_out)), 0))
    if len(members) > MOST_FILES:
        raise ConfigError(f"{directory}: more than {MOST_FILES} files", f"leave some out with a {IGNORE_FILE} file")
    if len({above for name, _ in members for above in _above(name)}) > MOST_FILES:
        raise ConfigError(f"{directory}: more than {MOST_FILES} directories", f"leave some out with {IGNORE_FILE}")
    total_bytes = sum(path.stat().st_size for _, path in members)
    if total_bytes > limit_bytes:
        largest, heaviest = max((path.stat().st_size, name) for name, path in members)
        raise ConfigError(
            f"{directory}: {format_size(total_bytes)} of files, and a package holds at most {format_size(limit_bytes)}",
            f"the largest is {heaviest} ({format_size(largest)}); leave files out with a {IGNORE_FILE} file",
        )
    start = archive.tell()
    # USTAR has no extension headers: what cannot be said in it is refused here, not invented.
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, path in members:
            _add(tar, name, path)
    return Packed(files=tuple(name for name, _ in members), size_bytes=archive.tell() - start)


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    try:
        with path.open("rb") as content:
            found = os.fstat(content.fileno())
            header = tarfile.TarInfo(name)
            header.size = found.st_size
            header.mode = 0o755 if found.st_mode & stat.S_IXUSR else 0o644
            tar.addfile(header, content)
    except OSError as fault:
        why = fault.strerror or "it changed while it was read"
        raise ConfigError(f"{path}: cannot be packed: {why}", f"correct it, or leave it out in {IGNORE_FILE}") from None
    except ValueError:
        raise ConfigError(f"{path}: its name is too long for a package", "shorten it to 100 bytes") from None


def _ignore_patterns(directory: Path) -> tuple[str, ...]:
    try:
        lines = (directory / IGNORE_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{directory / IGNORE_FILE}: cannot be read: {fault}", "write it as UTF-8 text") from None
    return ALWAYS_IGNORED + tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _is_ignored(name: str, patterns: tuple[str, ...]) -> bool:
    """A pattern with a slash is held against the whole path, one without against the last part; as shells match."""
    last = name.rpartition("/")[2]
    for pattern in patterns:
        bare = pattern.strip("/")
        if fnmatch.fnmatchcase(name if "/" in pattern.rstrip("/") else last, bare):
            return True
    return False


_KEY_HINT = "move it, or the job, to a directory of its own: everything in a job's directory is sent"


def leads_out(path: Path, directory: Path) -> bool:
    """Whether what stands in a job's directory is elsewhere: a link makes any file look like one of the job's own."""
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(directory)):
        return False
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def is_key(path: Path, size_bytes: int) -> bool:
    """Whether a file holds a node's or an account's key, which nobody means to send."""
    return path.name == NODE_KEY or (size_bytes <= LARGEST_KEYSTORE_BYTES and _is_keystore(path))


def entries_of(directory: Path, otherwise: str) -> list[Path]:
    """What stands in a job's directory or in one below it, sorted by name.

    Args:
        directory: which.
        otherwise: what helps but for making it readable.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return sorted(directory.iterdir(), key=lambda found: found.name)
    except OSError as fault:
        raise unreadable(directory, fault, otherwise) from None


def unreadable(directory: Path, fault: OSError, otherwise: str) -> ConfigError:
    """What is said of a directory that may not be listed, or not be entered."""
    hint = f"chmod u+rx {directory}, if it is yours; else {otherwise}"
    return ConfigError(f"{directory}: cannot be read: {fault.strerror}", hint)


def _is_keystore(path: Path) -> bool:
    """Whether a file is a Keystore V3, which holds an account's key."""
    try:
        content = path.read_bytes()
        # Nothing else is parsed: there may be many files, and deep ones.
        table = parse_json(content) if content.lstrip()[:1] == b"{" and b"crypto" in content.lower() else None
    except (OSError, ProtocolError):
        return False  # one that cannot be read is told of when it is to be packed
    return type(table) is dict and table.get("version") == 3 and any(key.lower() == "crypto" for key in table)


def _members(
    directory: Path, root: Path, prefix: str, without: tuple[tuple[str, ...], frozenset[str]], depth: int
) -> Iterator[tuple[str, Path]]:
    """Every file to be packed with its name, sorted. Links are followed only while they stay inside the directory."""
    if depth > DEEPEST:
        raise ConfigError(f"{directory}: more than {DEEPEST} directories deep", "a link may lead into itself")
    otherwise = f"name it in {IGNORE_FILE}"
    for path in entries_of(directory, otherwise):
        name = prefix + path.name
        if name in without[1] or _is_ignored(name, without[0]):
            continue
        if not is_safe_path(name):
            raise ConfigError(f"{path!s:.200}: such a name cannot be packed", f"rename it, or name it in {IGNORE_FILE}")
        try:
            target = path.resolve(strict=True)
            found = path.stat()
        except PermissionError as fault:
            raise unreadable(directory, fault, otherwise) from None
        except (OSError, RuntimeError):
            raise ConfigError(f"{path}: leads nowhere", f"remove the link, or name it in {IGNORE_FILE}") from None
        if not target.is_relative_to(root):
            raise ConfigError(f"{path}: leads out of the job's directory", "copy the file in: nothing else is sent")
        if stat.S_ISDIR(found.st_mode):
            yield from _members(path, root, name + "/", without, depth + 1)
        elif stat.S_ISREG(found.st_mode):
            if is_key(path, found.st_size):
                raise ConfigError(f"{path}: is a key, and a provider would get it", _KEY_HINT)
            yield name, path
        elif stat.S_ISSOCK(found.st_mode):
            raise ConfigError(
                f"{path}: is neither file nor directory", f"if a node lives in this directory: {_KEY_HINT}"
            )
        else:
            raise ConfigError(f"{path}: is neither file nor directory", f"remove it, or name it in {IGNORE_FILE}")


def unpack(archive: BinaryIO, directory: Path, *, limit_bytes: int, most_files: int = MOST_FILES) -> tuple[str, ...]:
    """Unpack a stranger's package into a directory that must not exist yet. Answers the names of the files.

    The files belong to the caller and are readable by all (the sandbox runs as another user). On an error whatever was
    unpacked until then stays for the caller to remove with the directory.

    Raises:
        Malformed: it holds anything but plain files and directories with plain, distinct names.
        TooLarge: it holds more bytes or files than allowed.
    """
    directory.mkdir(mode=0o755)
    reader = _Reader(archive)
    names: list[str] = []
    seen: set[str] = set()
    directories: set[str] = set()
    total_bytes = 0
    entries = 0
    while (header := reader.next_header()) is not None:
        entries += 1
        if entries > most_files:
            raise TooLarge("package", f"more than {most_files} files")
        total_bytes += header.size_bytes
        if total_bytes > limit_bytes:
            raise TooLarge("package", f"more than {limit_bytes} bytes of files")
        if header.name in seen:
            raise Malformed("package", "holds a name twice")
        seen.add(header.name)
        # A name may bring many directories that have no entry of their own: 31 for each file at the worst.
        directories.update(_above(header.name))
        if len(directories) > most_files:
            raise TooLarge("package", f"more than {most_files} directories")
        target = directory / header.name
        try:
            if header.is_directory:
                target.mkdir(mode=0o755, parents=True, exist_ok=True)
                continue
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            reader.copy(header.size_bytes, target, 0o755 if header.executable else 0o644)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise Malformed("package", "uses one name for a file and for a directory") from None
        names.append(header.name)
    return tuple(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    name: str
    size_bytes: int
    is_directory: bool
    executable: bool


class _Reader:
    """A USTAR stream read once from front to end, with every byte of every header accounted for."""

    def __init__(self, archive: BinaryIO) -> None:
        self._archive = archive

    def _block(self) -> bytes:
        block = self._archive.read(BLOCK_BYTES)
        if len(block) != BLOCK_BYTES:
            raise Malformed("package", "ends in the middle")
        return block

    def next_header(self) -> _Header | None:
        """The next file's or directory's header, or nothing at the archive's end."""
        block = self._block()
        if block == bytes(BLOCK_BYTES):
            return None
        checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if _octal(block[148:156]) != checksum or block[257:263] != b"ustar\0":
            raise Malformed("package", "is no archive of the allowed form")
        kind = block[156:157]
        if kind not in (b"0", b"5"):
            raise Malformed("package", "holds something that is neither a file nor a directory")
        parts = [_text(block[345:500]), _text(block[0:100])]
        name = "/".join(part for part in parts if part)
        is_directory = kind == b"5"
        if is_directory:
            name = name.removesuffix("/")
        if not is_safe_path(name) or name.count("/") > DEEPEST:
            raise Malformed("package", "holds a name that leads elsewhere")
        size_bytes = _octal(block[124:136])
        if is_directory and size_bytes:
            raise Malformed("package", "holds a directory with a size")
        executable = bool(_octal(block[100:108]) & stat.S_IXUSR)
        return _Header(name=name, size_bytes=size_bytes, is_directory=is_directory, executable=executable)

    def copy(self, size_bytes: int, target: Path, mode: int) -> None:
        """The content behind a header, to a file that must not exist yet."""
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            left = size_bytes
            while left:
                piece = self._archive.read(min(left, COPY_BYTES))
                if not piece:
                    raise Malformed("package", "ends in the middle")
                file.write(piece)
                left -= len(piece)
        padding = -size_bytes % BLOCK_BYTES
        if len(self._archive.read(padding)) != padding:
            raise Malformed("package", "ends in the middle")


def _above(name: str) -> Iterator[str]:
    """The directories in which a file lies, by their names in the package."""
    parts = name.split("/")
    return ("/".join(parts[:end]) for end in range(1, len(parts)))


def _octal(field: bytes) -> int:
    """A number of a header. GNU's binary form for giants has its first bit set and is no digit here."""
    text = field.rstrip(b"\0 ")
    if not text or len(text) > 12 or any(byte not in b"01234567" for byte in text):
        raise Malformed("package", "holds a number that is none")
    return int(text, 8)


def _text(field: bytes) -> str:
    try:
        return field.split(b"\0", 1)[0].decode()
    except UnicodeDecodeError:
        raise Malformed("package", "holds a name that is no UTF-8") from None
