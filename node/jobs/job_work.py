"""What a job file says of the work: its name, the function that is called, how often, and with which parameters.

The entry's file is looked into, so that a misspelt function is found here and not on somebody's GPU.
"""

import ast
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hansa.node.toml_reader import TomlTable
from hansa.proto.frames import is_safe_path
from hansa.proto.workload import Parameter

LARGEST_PARAMETER_BYTES = 2048
MOST_PARAMETERS = 64
LONGEST_PARAMETER_NAME = 64
MOST_SHARDS = 1024
MOST_WORKERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done.

    Attributes:
        name: what its owner calls it.
        entry: file and function, relative to the job's directory.
        shards: in so many parts, each on a provider.
        workers: so many in each shard.
        parameters: what the function is told.
    """

    name: str
    entry: str
    shards: int
    workers: int
    parameters: tuple[Parameter, ...]


def read_work(top: TomlTable, directory: Path) -> Work:
    """Read and check it, with the code beside the file."""
    return Work(
        name=top.text("name"),
        entry=_entry(top, directory),
        shards=top.integer("shards", 1, least=1, most=MOST_SHARDS),
        workers=top.integer("workers", 1, least=1, most=MOST_WORKERS),
        parameters=_parameters(top.table("parameters")),
    )


def _entry(top: TomlTable, directory: Path) -> str:
    entry = top.text("entry")
    file, colon, function = entry.partition(":")
    if not colon or not file.endswith(".py") or not function.isidentifier():
        raise top.fault("entry", 'must be "FILE.py:FUNCTION"', 'for example entry = "train.py:train"')
    if not is_safe_path(file):
        raise top.fault("entry", "must name a file inside the job's directory", 'for example entry = "train.py:train"')
    source = directory / file
    if not source.is_file():
        near = difflib.get_close_matches(file, sorted(found.name for found in directory.glob("*.py")), n=1)
        hint = f"did you mean {near[0]}:{function}?" if near else f"write {source}, or correct the entry"
        raise top.fault("entry", f"there is no file {file} beside {top.file.name}", hint)
    names = _names_defined(top, source)
    if names is not None and function not in names:
        near = difflib.get_close_matches(function, sorted(names), n=1)
        hint = f"did you mean {file}:{near[0]}?" if near else f"write def {function}(context): ... in {file}"
        raise top.fault("entry", f"{file} defines no function {function}", hint)
    return entry


def _names_defined(top: TomlTable, source: Path) -> set[str] | None:
    """What a module binds at its top level; ``None`` when a star import makes that unknowable without running it."""
    try:
        tree = ast.parse(source.read_bytes(), filename=str(source))
    except SyntaxError as fault:
        raise top.fault(
            "entry", f"{source.name}:{fault.lineno}: {fault.msg}", "correct the Python code, then submit again"
        ) from None
    except (RecursionError, MemoryError):
        raise top.fault("entry", f"{source.name} is nested too deeply to be read", "correct the Python code") from None
    except (OSError, ValueError) as fault:
        raise top.fault("entry", f"{source.name} cannot be read: {fault}", "check the file") from None
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if any(alias.name == "*" for alias in node.names):
                return None
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                names.add(node.id)
        else:
            # Definitions may stand below a top-level if or try, and assignments hold their names below them.
            pending.extend(ast.iter_child_nodes(node))
    return names


def _parameters(table: TomlTable) -> tuple[Parameter, ...]:
    if len(table.values) > MOST_PARAMETERS:
        raise table.fault("", f"has more than {MOST_PARAMETERS} keys", "put large settings into a file beside the code")
    return tuple(Parameter(name=key, value=_parameter(table, key, value)) for key, value in table.values.items())


def _parameter(table: TomlTable, key: str, value: Any) -> str:
    if not key.isprintable() or not 0 < len(key.encode()) <= LONGEST_PARAMETER_NAME:
        raise table.fault(key, f"a parameter's name is 1 to {LONGEST_PARAMETER_NAME} printable characters", "rename it")
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise table.fault(key, "must be a finite number", "nan and inf have no JSON") from None
    except TypeError:
        raise table.fault(key, "is a date or a time, which JSON does not have", "write it as text in quotes") from None
    if len(text.encode()) > LARGEST_PARAMETER_BYTES:
        raise table.fault(key, f"is longer than {LARGEST_PARAMETER_BYTES} bytes", "put it into a file beside the code")
    return text
