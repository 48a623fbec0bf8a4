"""``[environment]`` of a job file: the Python packages, the Python and the image that a job runs on."""

import os
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from hansa.node.runs.locks import OURS, PINNED, check_wheel_name
from hansa.node.storage.file_lists import IMAGE_REFERENCE
from hansa.node.storage.packages import leads_out
from hansa.node.toml_reader import TomlTable
from hansa.proto.errors import Malformed
from hansa.proto.market_documents import FEATURE_DEPENDENCIES, FEATURE_IMAGE

PYTHONS = ("3.11", "3.12", "3.13")
OLDEST_PYTHON = PYTHONS[0]
LOCK_NAME = "hansa.lock"
MOST_DEPENDENCIES = 500
MOST_WHEELS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnvironment:
    """What a job asks to run on.

    Attributes:
        dependencies: as written, to be locked.
        lock: a lock that is used as it is, in place of dependencies.
        wheels: wheels that the job brings.
        python: the version that it asks for; empty where any will do.
        reference: an image in a registry, by its digest; empty if there is none.
        archive: an image beside the job, as an OCI archive or an OCI layout.
        sources: what of all this lies on disk and is no part of the package.
    """

    dependencies: tuple[str, ...] = ()
    lock: Path | None = None
    wheels: tuple[Path, ...] = ()
    python: str = ""
    reference: str = ""
    archive: Path | None = None
    sources: tuple[Path, ...] = field(default=())

    @property
    def features(self) -> tuple[str, ...]:
        """What a provider must have for it."""
        wanted = {
            FEATURE_DEPENDENCIES: bool(self.dependencies or self.lock),
            FEATURE_IMAGE: bool(self.reference or self.archive),
            f"python{self.python}": bool(self.python),
        }
        return tuple(feature for feature, needed in wanted.items() if needed)


def read_environment(table: TomlTable, directory: Path) -> JobEnvironment:
    """Read and check the table.

    Raises:
        ConfigError: something in it is wrong or not there.
    """
    dependencies = table.texts("dependencies", (), most=MOST_DEPENDENCIES)
    for text in dependencies:
        _check_dependency(table, text)
    lock = _path(table, "lock", directory)
    if lock is not None and not lock.is_file():
        raise table.fault("lock", f"there is no file {lock}", "hansa lock writes one from dependencies")
    if lock is not None and dependencies:
        raise table.fault("lock", "stands beside dependencies, and it is not clear which of them holds", "remove one")
    folder = _path(table, "wheels", directory)
    wheels = () if folder is None else _wheels(table, folder, directory)
    if wheels and lock is None and not dependencies:
        raise table.fault("wheels", "and nothing asks for them", "name the packages in dependencies")
    python = table.choice("python", "", ("", *PYTHONS)) if table.has("python") else ""
    reference, archive = _image(table, directory)
    table.finish()
    sources = tuple(path for path in (folder, archive) if path is not None)
    return JobEnvironment(
        dependencies=dependencies,
        lock=lock,
        wheels=wheels,
        python=python,
        reference=reference,
        archive=archive,
        sources=sources,
    )


def _path(table: TomlTable, key: str, directory: Path) -> Path | None:
    return _inside(table, key, directory / table.text(key, most=4096), directory) if table.has(key) else None


def _inside(table: TomlTable, key: str, path: Path, directory: Path) -> Path:
    """A path, unless a link makes something else of it than it shows."""
    if leads_out(path, directory):
        hint = f"if that is what you mean, name where it leads: {os.path.realpath(path)}"
        raise table.fault(key, f"{path} is a link out of the job's directory", hint)
    return path


def _check_dependency(table: TomlTable, text: str) -> None:
    try:
        wanted = Requirement(text)
    except InvalidRequirement:
        raise table.fault("dependencies", f"{text!r:.80} is no requirement", 'for example "einops>=0.8"') from None
    if wanted.url:
        hint = 'put its wheel into a directory, and name that: wheels = "wheels/"'
        raise table.fault("dependencies", f"{wanted.name} comes from an address, and only an index is asked", hint)
    name = canonicalize_name(wanted.name)
    if name in OURS:
        raise table.fault("dependencies", f"{name} is in every sandbox already", "remove it")
    if name == PINNED and not wanted.specifier.contains(version(PINNED)):
        what = f"{name} {version(PINNED)} is in every sandbox, and cannot be another"
        raise table.fault("dependencies", what, f'remove it, or write "{name}=={version(PINNED)}"')


def _wheels(table: TomlTable, folder: Path, directory: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise table.fault("wheels", f"there is no directory {folder}", "build wheels into it: pip wheel -w wheels .")
    found = tuple(sorted(folder.glob("*.whl")))
    if not found:
        raise table.fault("wheels", f"there is no wheel in {folder}", "build wheels into it: pip wheel -w wheels .")
    if len(found) > MOST_WHEELS:
        raise table.fault("wheels", f"more than {MOST_WHEELS} wheels", "leave to the index what is there")
    for wheel in found:
        _inside(table, "wheels", wheel, directory)
        try:
            check_wheel_name(wheel.name)
        except Malformed:
            raise table.fault("wheels", f"{wheel.name} has no wheel's name", "build it again") from None
    return found


def _image(table: TomlTable, directory: Path) -> tuple[str, Path | None]:
    if not table.has("image"):
        return "", None
    text = table.text("image", most=1024)
    if IMAGE_REFERENCE.fullmatch(text):
        return text, None
    path = _inside(table, "image", directory / text, directory)
    if os.path.lexists(path):
        if path.is_file() or (path / "index.json").is_file():
            return "", path
        raise table.fault("image", f"{path} is neither an OCI archive nor an OCI layout", "skopeo copy makes both")
    if "@" in text or ":" in text:
        hint = 'for example "docker.io/library/python@sha256:…"; skopeo inspect shows a tag\'s digest'
        raise table.fault("image", "must name its registry and its digest, since a tag may mean another tomorrow", hint)
    raise table.fault("image", f"there is no {path}", 'name an OCI archive, or "registry/name@sha256:…"')
