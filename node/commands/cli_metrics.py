"""``hansa metrics``: what a job's code reported, as CSV, JSON, or a file for TensorBoard."""

import csv
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_jobs import SHORT_ID, job_path_part
from hansa.node.commands.cli_options import print_json, with_data, with_json
from hansa.node.faults import OperatorError

LONGEST_NAME = 120
FORMULA_SIGNS = "=+-@"


@click.command()
@click.argument("job")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values (the default).")
@click.option(
    "--tensorboard",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write an event file below DIR, for tensorboard --logdir DIR.",
)
@with_data
@with_json
def metrics(job: str, as_csv: bool, directory: Path | None, data_dir: Path, as_json: bool) -> None:
    """Export what a job's code reported, step by step, each step from the shard that was there first.

    The newest 1,000 steps are kept. It may be run again while the job goes on.
    """
    from hansa.node.api.cli_client import DaemonClient

    if as_csv + as_json + (directory is not None) > 1:
        raise OperatorError("--csv, --json and --tensorboard exclude each other", "choose one of them")
    with closing(DaemonClient(data_dir)) as daemon:
        view = daemon.get(f"/v1/jobs/{job_path_part(job)}")
    points = [point for point in view.get("history", []) if isinstance(point, dict)]
    if directory is not None:
        _write_events(view, points, directory)
    elif as_json:
        steps = [{"step": point["round"], "at_ms": point["at_ms"], "metrics": _values(point)} for point in points]
        print_json({"job": view["job"], "name": view["name"], "steps": steps})
    else:
        _print_csv(points)


def _values(point: Mapping[str, Any]) -> dict[str, float]:
    found = point.get("metrics")
    return {str(name): float(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _print_csv(points: Sequence[Mapping[str, Any]]) -> None:
    from hansa.node.plain_text import plain

    names = list(dict.fromkeys(name for point in points for name in _values(point)))
    # A cell that begins like a formula is one, to a spreadsheet; and names come from machines that are not ours.
    shown = [
        f"'{name}" if name[:1] in FORMULA_SIGNS else name for name in (plain(name, LONGEST_NAME) for name in names)
    ]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["step", "time", *shown])
    for point in points:
        values = _values(point)
        at = datetime.fromtimestamp(int(point["at_ms"]) / 1000, UTC).isoformat(timespec="milliseconds")
        writer.writerow([int(point["round"]), at, *(values.get(name, "") for name in names)])


def _write_events(view: Mapping[str, Any], points: Sequence[Mapping[str, Any]], directory: Path) -> None:
    from hansa.node.commands.event_file import Scalars, event_file

    job = str(view["job"])[:SHORT_ID]
    target = directory / job / f"events.out.tfevents.{int(view['submitted_ms']) // 1000:010d}.hansa.{job}"
    scalars = [Scalars(step=int(point["round"]), at_ms=int(point["at_ms"]), values=_values(point)) for point in points]
    if not scalars:
        raise OperatorError("the job has reported nothing yet", "its code reports with ctx.report(step=…, loss=…)")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A TensorBoard that reads along must not find half a record.
        partial = target.with_name(f".{target.name}.part")
        partial.write_bytes(b"".join(event_file(scalars)))
        partial.replace(target)
    except OSError as fault:
        raise OperatorError(f"cannot write below {directory}: {fault.strerror}", "choose another DIR") from None
    click.echo(f"{target}\nlook at it: tensorboard --logdir {directory}")


METRICS_COMMANDS = (metrics,)
