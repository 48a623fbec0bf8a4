"""``[inputs]`` of a job file: the files and directories of this machine that a job finds below ``ctx.inputs``.

A path may be relative to the job's directory or absolute, and may hold ``{shard}``: then every shard has a file or
directory of its own there, and fetches no other's.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hansa.node.faults import ConfigError
from hansa.node.storage.packages import DEEPEST, entries_of, is_key, leads_out, unreadable
from hansa.node.toml_reader import TomlTable
from hansa.proto.frames import is_safe_path
from hansa.proto.workload import MAX_FILES

SHARD = "{shard}"
LONGEST_PATH_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInput:
    """One file that a job brings as an input.

    Attributes:
        path: where the code finds it, below ``ctx.inputs``.
        source: where it lies here.
        shards: who gets it; none named means all.
        size_bytes: as it was found.
    """

    path: str
    source: Path
    shards: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All of a job's inputs.

    Attributes:
        files: one by one.
        sources: the files and directories that were named; those in the job's directory stay out of its package.
    """

    files: tuple[JobInput, ...]
    sources: tuple[Path, ...]


def read_inputs(table: TomlTable, directory: Path, shards: int) -> Inputs:
    """Read the table and look for everything that it names.

    Raises:
        ConfigError: something is not there, is no file or directory, or may not be sent.
    """
    files: list[JobInput] = []
    sources: list[Path] = []
    for name in table.values:
        text = table.text(name, most=4096)
        if not is_safe_path(name):
            raise table.fault(name, "is no plain relative path", f'for example {table.name}."data/train.npy" = "..."')
        for number in range(shards) if SHARD in text else [None]:
            source = directory / (text if number is None else text.replace(SHARD, str(number)))
            if leads_out(source, directory):
                hint = f"if that is what you mean, name where it leads: {os.path.realpath(source)}"
                raise table.fault(name, f"{source} is a link out of the job's directory", hint)
            sources.append(source)
            for path, file in _files_at(table, name, source):
                found = file.stat()
                if is_key(file, found.st_size):
                    raise table.fault(name, f"{file} is a key, and a provider would get it", "name other files")
                if len(path.encode()) > LONGEST_PATH_BYTES:
                    raise table.fault(name, f"a path in it is longer than {LONGEST_PATH_BYTES} bytes", "shorten it")
                own = () if number is None else (number,)
                files.append(JobInput(path=path, source=file, shards=own, size_bytes=found.st_size))
                if len(files) > MAX_FILES:
                    raise table.fault(name, f"more than {MAX_FILES} files", "pack them into fewer, larger ones")
    _refuse_overlap(table, files)
    return Inputs(files=tuple(files), sources=tuple(sources))


def _files_at(table: TomlTable, name: str, source: Path) -> Iterator[tuple[str, Path]]:
    try:
        mode = source.stat().st_mode
    except OSError:
        hint = f"every shard needs one of its own; this is {source}" if SHARD in table.text(name, most=4096) else ""
        if table.text(name, most=4096).startswith("~"):
            hint = "write the whole path: a ~ is not read as your home directory here"
        raise table.fault(name, f"{source} is not there", hint or "check the path") from None
    if stat.S_ISREG(mode):
        yield name, source
    elif stat.S_ISDIR(mode):
        yield from _below(source, source.resolve(), name, 0)
    else:
        raise table.fault(name, f"{source} is neither file nor directory", "name a file or a directory")


def _below(directory: Path, root: Path, prefix: str, depth: int) -> Iterator[tuple[str, Path]]:
    """Every file below a directory, sorted. Links are followed only while they stay inside it, as in a package."""
    if depth > DEEPEST:
        raise ConfigError(f"{directory}: more than {DEEPEST} directories deep", "a link may lead into itself")
    otherwise = "name the files and directories beside it one by one"
    for path in entries_of(directory, otherwise):
        name = f"{prefix}/{path.name}"
        if not is_safe_path(name):
            raise ConfigError(f"{path!s:.200}: such a name cannot be sent", "rename it")
        try:
            target, mode = path.resolve(strict=True), path.stat().st_mode
        except PermissionError as fault:
            raise unreadable(directory, fault, otherwise) from None
        except (OSError, RuntimeError):
            raise ConfigError(f"{path}: leads nowhere", "remove the link") from None
        if not target.is_relative_to(root):
            raise ConfigError(f"{path}: leads out of {root}", "copy the file in, or name the directory that it is in")
        if stat.S_ISDIR(mode):
            yield from _below(path, root, name, depth + 1)
        elif stat.S_ISREG(mode):
            yield name, path
        else:
            raise ConfigError(f"{path}: is neither file nor directory", "remove it")


def _refuse_overlap(table: TomlTable, files: list[JobInput]) -> None:
    """Two inputs may not meet: no name twice for a shard, and none that is a file here and a directory there."""
    taken: dict[str, set[int] | None] = {}
    for file in files:
        before = taken.get(file.path, set())
        if before is None or (file.path in taken and not file.shards) or before & set(file.shards):
            raise table.fault("", f"two inputs appear as {file.path}", "give them other names")
        taken[file.path] = before | set(file.shards) if file.shards else None
    for path in taken:
        for parent in map(str, Path(path).parents):
            if parent in taken:
                raise table.fault("", f"{parent} is a file, and {path} would lie below it", "give one another name")
