"""What a job's code imports and would not find: told before anything is sent, since a run would cost time to say it.

A warning and no refusal: code may look for a module in ways that no reading finds, and a provider may have more.
So nothing is said of a job with packages or an image of its own, nor of imports that the code itself is ready to miss.
"""

import ast
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

MOST_TOLD = 8


def unknown_imports(source: Path, directory: Path) -> dict[str, int]:
    """What modules a file imports that come neither with Python, with Hansa nor with the job; each with its line.

    Args:
        source: the file, in the job's directory; its syntax is in order.
        directory: the job's.
    """
    lines: dict[str, int] = {}
    for name, line in _imports(ast.parse(source.read_bytes(), filename=str(source))):
        lines.setdefault(name, line)
    return {name: line for name, line in lines.items() if not _is_known(name, {source.parent, directory})}


def warnings(source: Path, directory: Path) -> Iterator[str]:
    """A line for each of them, with the remedy."""
    for name, line in list(unknown_imports(source, directory).items())[:MOST_TOLD]:
        yield (
            f"warning: {source.name}:{line} imports {name}, which jobs do not have by themselves; name its package in"
            f' job.toml: [environment] dependencies = ["{name}"]'
        )


def _imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module and not node.level:
                yield node.module.split(".")[0], node.lineno
        elif not isinstance(node, ast.Try | ast.If):
            pending.extend(ast.iter_child_nodes(node))


def _is_known(name: str, places: set[Path]) -> bool:
    if name in sys.stdlib_module_names:
        return True
    if any((place / f"{name}.py").exists() or (place / name).exists() for place in places):
        return True
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return True  # a module that is there and odd
