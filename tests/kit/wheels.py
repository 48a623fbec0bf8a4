"""Wheels made by hand, and an index that serves them from a directory: nothing of it needs a network."""

import hashlib
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path


def a_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str | bytes],
    *,
    requires: tuple[str, ...] = (),
    links: Mapping[str, str] | None = None,
    tag: str = "py3-none-any",
) -> Path:
    """A wheel with these files. ``links`` are entries that say they are symbolic links."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
    every: dict[str, str | bytes] = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{path},,\n" for path in (*every, *(links or {}), f"{info}/RECORD"))
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inside, data in {**every, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(inside), data, zipfile.ZIP_DEFLATED)
        for inside, target in (links or {}).items():
            entry = zipfile.ZipInfo(inside)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, target)
    return path


def sha256(path: Path) -> str:
    """The hash by which a lock names a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def an_index(folder: Path, *wheels: Path) -> str:
    """The address of an index of these wheels, as ``pip`` and ``uv`` read it."""
    by_name: dict[str, list[Path]] = {}
    for wheel in wheels:
        by_name.setdefault(wheel.name.partition("-")[0].replace("_", "-").lower(), []).append(wheel)
    for name, found in by_name.items():
        page = folder / "simple" / name
        page.mkdir(parents=True)
        links = "".join(
            f'<a href="../../files/{wheel.name}#sha256={sha256(wheel)}">{wheel.name}</a>\n' for wheel in found
        )
        (page / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")
        for wheel in found:
            target = folder / "files" / wheel.name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(wheel.read_bytes())
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return f"file://{folder}/simple"


def lock_line(wheel: Path) -> str:
    """A lock's line for one wheel."""
    name, version, *_ = wheel.name.split("-")
    return f"{name}=={version} --hash=sha256:{sha256(wheel)}\n"
