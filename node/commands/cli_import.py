"""``hansa import``: another system's description of a job, as far as it goes, as a ``job.toml``."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hansa.node.commands.cli_options import print_json, with_json
from hansa.node.faults import ConfigError

if TYPE_CHECKING:
    from hansa.node.jobs.import_job import Draft
    from hansa.node.jobs.import_writer import Imported

FORMATS = ("akash", "skypilot", "dstack", "bacalhau", "prime", "vast")
FILE_NAME = "job.toml"


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("-f", "--format", "named", type=click.Choice(FORMATS), help="Which system's it is. Default: found out.")
@click.option("-o", "--output", "directory", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write DIR/job.toml. Default: print it.")  # fmt: skip
@click.option("--part", default="", metavar="NAME", help="Which service or task of it; or which line, by its number.")
@click.option(
    "--set", "values", multiple=True, metavar="NAME=VALUE", help="Fill in a {{.NAME}} of Bacalhau's; repeatable."
)
@with_json
def import_spec(file: Path, *, directory: Path | None, as_json: bool, **told: Any) -> None:
    """Turn another system's description of a job into a job.toml, and say what it could not carry over.

    FILE is an SDL of Akash, a task of SkyPilot or dstack, a job of Bacalhau, a requirement string of Prime Intellect or
    a query of Vast.ai; - reads standard input. Without --output the job.toml is printed, and the rest goes to the error
    stream. A file that cannot become a job is refused with the reason, exit code 2. Needs no daemon and no network.
    """
    from hansa.node.jobs.import_formats import read_spec
    from hansa.node.jobs.import_writer import write_job

    name = "standard input" if str(file) == "-" else file.name
    draft = read_spec(_read(file), file, named=told["named"] or "", part=told["part"], values=_values(told["values"]))
    made = write_job(draft, name)
    written = None if directory is None else _write(directory, made.text)
    if as_json:
        print_json(_as_json(made, file, written))
        return
    if written is None:
        click.echo(made.text, nl=False)
    _print_summary(made.draft, name, written)


def _read(file: Path) -> bytes:
    from hansa.node.jobs.import_yaml import LARGEST_BYTES

    if str(file) == "-":
        return sys.stdin.buffer.read(LARGEST_BYTES + 1)
    try:
        with file.open("rb") as stream:
            return stream.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file", "check the path") from None
    except OSError as fault:
        raise ConfigError(f"{file}: cannot be read: {fault.strerror}", "name a file") from None


def _values(values: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {text[:60]}: has no value", "for example --set steps=100")
        found[name.strip().removeprefix(".")] = value
    return found


def _write(directory: Path, text: str) -> Path:
    """A new file; what is there is somebody's work."""
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise ConfigError(f"{path}: is there already", "name another directory, or move it away") from None
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be written: {fault.strerror}", "name another directory") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    return path


def _as_json(made: "Imported", file: Path, written: Path | None) -> dict[str, Any]:
    draft = made.draft
    remarks = {
        key: [{"place": one.place, "what": one.what, "how": one.how} for one in found]
        for key, found in (("carried", draft.carried), ("left_out", draft.left_out))
    }
    return {
        "file": str(file),
        "system": draft.system,
        "written": None if written is None else str(written),
        "job_toml": made.text,
        **remarks,
        "to_write": draft.to_write,
    }


def _print_summary(draft: "Draft", name: str, written: Path | None) -> None:
    """What became of everything; beside the file itself, so that that can be piped."""
    from hansa.node.plain_text import plain

    to_errors = written is None
    click.echo(f"{plain(name, 120)}: {draft.system}", err=to_errors)
    for title, remarks in (("carried over", draft.carried), ("not carried over", draft.left_out)):
        if remarks:
            click.echo(f"\n{title}", err=to_errors)
        for remark in remarks:
            what = f": {plain(remark.what, 100)}" if remark.what else ""
            click.echo(f"  {plain(remark.place, 120)}{what}", err=to_errors)
            click.echo(
                f"      {'→' if remarks is draft.carried else 'because'} {plain(remark.how, 400)}", err=to_errors
            )
    click.echo("\nyours to write", err=to_errors)
    for line in draft.to_write:
        click.echo(f"  {plain(line, 500)}", err=to_errors)
    if written is not None:
        click.echo(f"\nwrote {plain(written, 500)}; when the rest is there: hansa submit {plain(written.parent, 500)}")


IMPORT_COMMANDS = (import_spec,)
