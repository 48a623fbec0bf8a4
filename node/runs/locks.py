"""A job's lock of Python packages: exact versions with the hashes of their files, and nothing else.

The text is what ``uv pip compile --generate-hashes`` writes, but it comes from a stranger. In the format of such files,
a line may also name an index, a URL, a path, a directory to install, another file to include or an environment
variable; so it never reaches uv. It is read here into names, versions, markers and hashes, and a
requirements file of our own is written from those.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from hansa.proto.errors import Malformed, TooLarge

LARGEST_LOCK_BYTES = 4 << 20
MOST_PACKAGES = 2_000
MOST_HASHES = 500
LONGEST_MARKER_CHARS = 500
PINNED = "ray"
OURS = frozenset({"hansa"})
"""What is in every sandbox and cannot be another one."""

_HEAD = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9.+!_-]{1,100})"
    r"(?: ?; ?(?P<marker>[A-Za-z0-9 .,_()<>=!~'\"+*-]+))?",
    re.ASCII,
)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """One package of a lock.

    Attributes:
        name: in the one way in which indexes write it.
        version: likewise.
        marker: where it is wanted; empty means everywhere.
        hashes: sha256 of every file that it may be, sorted.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def parse_lock(text: str) -> tuple[Locked, ...]:
    """Every package of a lock, in its order.

    Raises:
        TooLarge: it is longer than any lock.
        Malformed: it holds anything but exact versions with sha256 hashes; says in which line.
    """
    if len(text) > LARGEST_LOCK_BYTES:
        raise TooLarge("lock", f"more than {LARGEST_LOCK_BYTES} characters")
    found: list[Locked] = []
    for number, line in _joined(text):
        head, *hashes = line.split(" --hash")
        found.append(_package(f"lock line {number}", head.strip(), [f"--hash{part}".strip() for part in hashes]))
        if len(found) > MOST_PACKAGES:
            raise TooLarge("lock", f"more than {MOST_PACKAGES} packages")
    return tuple(found)


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that end in a backslash joined to the next; each with its number."""
    # Parts, and one text at the end: a line that went on a million times would else be copied a million times.
    pending: list[str] = []
    start = 0
    for number, line in enumerate(text.split("\n"), start=1):
        bare = line.strip()
        if not bare or bare.startswith("#"):
            if pending:
                raise Malformed(f"lock line {start}", "goes on and then does not")
            continue
        start = start if pending else number
        if part := bare.removesuffix("\\").strip():
            pending.append(part)
        if not bare.endswith("\\"):
            yield start, " ".join(pending)
            pending = []
    if pending:
        raise Malformed(f"lock line {start}", "goes on and then does not")


def _package(where: str, head: str, hashes: list[str]) -> Locked:
    match = _HEAD.fullmatch(head)
    if match is None:
        raise Malformed(where, "is not name==version, with a marker or without")
    digests = [_HASH.fullmatch(text) for text in hashes]
    if not digests or len(digests) > MOST_HASHES:
        raise Malformed(where, f"has no hash, or more than {MOST_HASHES}")
    if any(digest is None for digest in digests):
        raise Malformed(where, "has an option that is no --hash=sha256:…")
    try:
        version = str(Version(match["version"]))
    except InvalidVersion:
        raise Malformed(where, "has a version that is none") from None
    return Locked(
        name=canonicalize_name(match["name"]),
        version=version,
        marker=_marker(where, match["marker"] or ""),
        hashes=tuple(sorted({digest[1] for digest in digests if digest is not None})),
    )


def _marker(where: str, text: str) -> str:
    if len(text) > LONGEST_MARKER_CHARS:
        raise Malformed(where, "has a marker that is too long")
    try:
        return str(Marker(text)) if text.strip() else ""
    except (InvalidMarker, RecursionError):
        raise Malformed(where, "has a marker that is none") from None


def chosen(locked: Iterable[Locked], environment: Mapping[str, str] | None = None) -> tuple[Locked, ...]:
    """What of a lock is wanted on this machine's Python, or on another that ``environment`` describes; sorted.

    Raises:
        Malformed: a package is wanted in two versions.
    """
    wanted: dict[str, Locked] = {}
    for package in locked:
        try:
            if package.marker and not Marker(package.marker).evaluate(dict(environment) if environment else None):
                continue
        except (UndefinedComparison, UndefinedEnvironmentName, InvalidVersion, RecursionError):
            raise Malformed("lock", f"has a marker for {package.name} that means nothing") from None
        other = wanted.setdefault(package.name, package)
        if other.version != package.version:
            raise Malformed("lock", f"wants {package.name} in two versions")
        hashes = tuple(sorted({*other.hashes, *package.hashes}))
        wanted[package.name] = Locked(name=package.name, version=package.version, marker="", hashes=hashes)
    return tuple(wanted[name] for name in sorted(wanted))


def without_provided(locked: Iterable[Locked], pinned_version: str) -> tuple[Locked, ...]:
    """A lock without what every sandbox has.

    Raises:
        Malformed: it wants another version of that, or a Hansa.
    """
    kept = []
    for package in locked:
        if package.name in OURS:
            raise Malformed("lock", f"holds {package.name}, which is in every sandbox and cannot be another")
        if package.name != PINNED:
            kept.append(package)
        elif package.version != pinned_version:
            raise Malformed("lock", f"holds {PINNED} {package.version}, and the sandbox has {pinned_version}")
    return tuple(kept)


def requirements_text(locked: Iterable[Locked]) -> str:
    """Packages as a requirements file, every character of it ours."""
    lines = []
    for package in locked:
        marker = f" ; {package.marker}" if package.marker else ""
        hashes = " ".join(f"--hash=sha256:{digest}" for digest in package.hashes)
        lines.append(f"{package.name}=={package.version}{marker} {hashes}\n")
    return "".join(lines)


def check_wheel_name(name: str) -> None:
    """Refuse a file name that no wheel can have.

    Raises:
        Malformed: it is none.
    """
    try:
        parse_wheel_filename(name)
    except (InvalidWheelFilename, InvalidVersion):
        raise Malformed("wheels", "holds a file whose name is no wheel's") from None


def digest_of(locked: Iterable[Locked], wheels: Iterable[str], python: str, platform: str) -> str:
    """The name of what comes of a lock: equal for two jobs exactly if the same would be built for both.

    Args:
        locked: what is to be installed, as ``chosen`` gives it.
        wheels: sha256 of the job's own wheels among them.
        python: the interpreter's version and kind.
        platform: the machine's kind.
    """
    lines = [requirements_text(locked), *sorted(wheels), python, platform]
    return hashlib.sha256("\0".join(lines).encode()).hexdigest()
