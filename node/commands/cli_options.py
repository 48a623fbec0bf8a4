"""What several commands have in common: ``--data``, ``--json``, and JSON on standard output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def with_data(command: Command) -> Command:
    """Give a command ``--data DIR``."""
    return click.option(
        "--data",
        "data_dir",
        type=click.Path(path_type=Path, file_okay=False),
        callback=_data_dir,
        help="The node's data directory. Default: $HANSA_DATA, else ~/.hansa.",
    )(command)


def _data_dir(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path:
    if value is not None:
        return value.absolute()
    from hansa.node.settings.config import default_data_dir

    return default_data_dir()


def with_json(command: Command) -> Command:
    """Give a command ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(command)


def print_json(value: Any) -> None:
    """One JSON document on one line."""
    click.echo(json.dumps(value, separators=(",", ":")))
