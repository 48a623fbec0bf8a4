"""A container image as a sandbox's root: which of its entries are shown, and what runs the runner on it.

The image stays as it was unpacked, and need hold no mount points: its entries are bound one by one into a root of the
sandbox's own, which has room beside them for Hansa's directories. Only what lies at the top, in /etc and in /opt is
looked at here, so a large image costs no more than a small one.
"""

import os
import platform
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hansa.node.isolation.sandbox_equipment import Equipment, SandboxUnavailable

OURS = frozenset({"proc", "sys", "dev", "tmp", "run", "job", "etc", "opt"})
"""Top entries that every sandbox has of its own."""
OURS_IN = {
    "etc": frozenset({"passwd", "group", "hosts", "nsswitch.conf", "resolv.conf", "hostname", "mtab"}),
    "opt": frozenset({"hansa", "py", "environment", "driver"}),
}
MOST_ENTRIES = 2000
MOST_LINKS = 40
LOADERS = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}

DRIVER_DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
)
DRIVER_LIBRARIES = (
    "libcuda.so*",
    "libcudadebugger.so*",
    "libnvidia-ml.so*",
    "libnvidia-ptxjitcompiler.so*",
    "libnvidia-nvvm*.so*",
    "libnvidia-gpucomp.so*",
    "libnvidia-pkcs11*.so*",
)
"""What of the driver runs in the job's processes, and must be of the very version of the kernel's part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRoot:
    """How an image is used.

    Attributes:
        flags: bubblewrap's, that furnish the root.
        python: the interpreter that runs the runner, as the sandbox sees it.
        packages: where the image keeps packages for that interpreter's version.
    """

    flags: tuple[str, ...]
    python: str
    packages: tuple[str, ...]


def furnish_from_image(equipment: Equipment, held: str, source: str) -> ImageRoot:
    """Show an image instead of this machine's system.

    Args:
        equipment: what the sandbox is furnished with otherwise.
        held: where this process can look at the unpacked image.
        source: where bubblewrap will find it.

    Raises:
        SandboxUnavailable: nothing that runs the runner could run on it.
    """
    python = equipment.python if equipment.is_movable else _own_python(held)
    loader = LOADERS.get(platform.machine())
    if equipment.is_movable and loader is not None and find_inside(held, loader) is None:
        raise SandboxUnavailable("the image has no glibc", "use one made from Debian, Ubuntu, Fedora or the like")
    flags: list[str] = []
    for directory, ours in (("", OURS), ("etc", OURS_IN["etc"]), ("opt", OURS_IN["opt"])):
        if directory:
            flags += ["--dir", f"/{directory}"]
        flags += _entry_flags(held, source, directory, ours)
    return ImageRoot(flags=tuple(flags), python=python, packages=tuple(_packages_in(held)))


def driver_flags() -> list[str]:
    """The driver's libraries, each under the names by which programs ask for it, in a directory of their own."""
    flags, seen = [], set()
    for directory in DRIVER_DIRECTORIES:
        for pattern in DRIVER_LIBRARIES:
            for path in sorted(Path(directory).glob(pattern)):
                if path.name not in seen:
                    seen.add(path.name)
                    flags += ["--ro-bind-try", str(path), f"/opt/driver/{path.name}"]
    return flags


def find_inside(root: str, path: str) -> str | None:
    """What a path means to somebody whose root this is: links are followed, but never out of it. ``None``: nothing."""
    done: list[str] = []
    waiting = [part for part in reversed(path.split("/")) if part]
    for _ in range(MOST_LINKS * 20):
        if not waiting:
            return "/".join((root, *done))
        part = waiting.pop()
        if part in (".", ".."):
            done = done[:-1] if part == ".." else done
            continue
        here = "/".join((root, *done, part))
        try:
            mode = os.lstat(here).st_mode
            if not stat.S_ISLNK(mode):
                done.append(part)
                continue
            target = str(Path(here).readlink())
        except OSError:
            return None
        done = [] if target.startswith("/") else done
        waiting += [part for part in reversed(target.split("/")) if part]
    return None


def _own_python(held: str) -> str:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (f"/usr/local/bin/{name}", f"/usr/bin/{name}", f"/opt/conda/bin/{name}"):
        found = find_inside(held, path)
        if found is not None and os.access(found, os.X_OK):
            return path
    raise SandboxUnavailable(
        f"the image has no {name}, and this provider's own cannot leave its system", f"use an image with {name}"
    )


def _packages_in(held: str) -> Iterator[str]:
    """Where images keep packages for our version of Python, as their makers install them."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [
        f"/opt/venv/lib/{name}/site-packages",
        f"/opt/conda/lib/{name}/site-packages",
        f"/usr/local/lib/{name}/site-packages",
        f"/usr/local/lib/{name}/dist-packages",
        f"/usr/lib/{name}/site-packages",
    ]
    if find_inside(held, f"/usr/bin/{name}") is not None:
        candidates.append("/usr/lib/python3/dist-packages")  # Debian's, for whatever its one version is
    for path in candidates:
        found = find_inside(held, path)
        if found is not None and Path(found).is_dir():
            yield path


def _entry_flags(held: str, source: str, directory: str, ours: frozenset[str]) -> Iterator[str]:
    """Flags that show what a directory of the image holds, but what every sandbox has of its own."""
    below = f"{directory}/" if directory else ""
    place = f"{held}/{directory}" if directory else held
    if directory and not stat.S_ISDIR(_mode(place)):
        return
    names = sorted(path.name for path in Path(place).iterdir())
    if len(names) > MOST_ENTRIES:
        raise SandboxUnavailable(f"the image has more than {MOST_ENTRIES} entries in /{directory}", "use another image")
    for name in names:
        if name in ours or (directory == "opt" and name.startswith("site")):
            continue
        mode = _mode(f"{place}/{name}")
        if stat.S_ISLNK(mode):
            yield from ("--symlink", str(Path(place, name).readlink()), f"/{below}{name}")
        elif stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            yield from ("--ro-bind", f"{source}/{below}{name}", f"/{below}{name}")


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0
