"""What a job's code imports and would not find: told before anything is sent, since a run would cost time to say it.

The file of the entry is read, and from there whatever it imports of the job's own. A warning and no refusal: code may
look for a module in ways that no reading finds, and a provider may have more. So nothing is said of a job with packages
or an image of its own, nor of imports that the code itself is ready to miss.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MOST_TOLD = 8
MOST_FILES = 500
LARGEST_FILE_BYTES = 1 << 20


def warnings(source: Path, directory: Path) -> Iterator[str]:
    """A line with its place and the remedy for each import that would fail; of many the first."""
    told: dict[str, str] = {}
    for file, name, line in _read(source, directory):
        place = f"{file.relative_to(directory)}:{line}"
        if name is None:
            told.setdefault(place, f"warning: {place}: is no valid Python, so that its import fails; correct it")
        elif not _is_known(name, directory):
            told.setdefault(
                name,
                f"warning: {place} imports {name}, which jobs do not have by themselves; name its package in"
                f' job.toml: [environment] dependencies = ["{name}"]',
            )
    yield from list(told.values())[:MOST_TOLD]


def _read(source: Path, directory: Path) -> Iterator[tuple[Path, str | None, int]]:
    """Each import of something that is none of the job's, with its file and line; no name where a file is no Python."""
    pending, seen = [source], {source}
    while pending and len(seen) <= MOST_FILES:
        file = pending.pop(0)
        try:
            content = file.read_bytes() if file.stat().st_size <= LARGEST_FILE_BYTES else b""
            tree = ast.parse(content, filename=str(file))
        except SyntaxError as fault:
            yield file, None, fault.lineno or 1
            continue
        except (OSError, ValueError):
            continue  # one that cannot be read is told of when it is to be packed
        for above, name, line in _imports(tree, file):
            found = [path for path in _own_files(above or directory, name) if path not in seen]
            seen.update(found)
            pending += found
            if above is None:
                yield file, name.split(".")[0], line


def _imports(tree: ast.Module, file: Path) -> Iterator[tuple[Path | None, str, int]]:
    """The directory from which each import counts if it is a relative one, what it names, and its line."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.Import):
            yield from ((None, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = file.parents[min(node.level, len(file.parents)) - 1] if node.level else None
            module = f"{node.module}." if node.module else ""
            yield from ((above, f"{module}{alias.name}", node.lineno) for alias in node.names)
        elif not isinstance(node, ast.Try | ast.If):
            pending.extend(ast.iter_child_nodes(node))


def _own_files(base: Path, name: str) -> Iterator[Path]:
    """What of the job's own is run when this is imported. The last part may be a module, or something in one."""
    for part in name.split("."):
        yield from (path for path in (base / f"{part}.py", base / part / "__init__.py") if path.is_file())
        base /= part


def _is_known(name: str, directory: Path) -> bool:
    # From the job's directory alone: that is where its modules are looked for, wherever in it the entry lies.
    if name in sys.stdlib_module_names or (directory / f"{name}.py").exists() or (directory / name).exists():
        return True
    ours, whose = _ours(), _whose().get(name, ())
    if ours and whose:
        return any(canonicalize_name(package) in ours for package in whose)
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return True  # a module that is there and odd


@cache
def _whose() -> Mapping[str, list[str]]:
    """Which packages of this machine bring a module."""
    return packages_distributions()


@cache
def _ours() -> frozenset[str]:
    """Hansa and the packages that come with it: whatever else is installed here need not be anywhere else."""
    found: set[str] = set()
    pending = ["hansa"]
    while pending:
        name = canonicalize_name(pending.pop())
        if name in found:
            continue
        try:
            wanted = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        found.add(name)
        pending += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return frozenset(found)
