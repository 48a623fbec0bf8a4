"""The commands of a job's life: submit, jobs, watch, logs, results, top-up, cancel."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json
from hansa.node.faults import ConfigError, OperatorError

if TYPE_CHECKING:
    from hansa.node.api.cli_client import DaemonClient
    from hansa.proto.blob import BlobRef

PATIENCE_S = 60.0
"""How long ``watch`` waits for a daemon that restarts: the job goes on meanwhile."""
SHORT_ID = 12
_TIMES = {"keep_failed": "keep_failed_ms", "queue": "queue_ms", "deadline": "deadline_after_ms"}
_NEEDS = "needs"
_SHARDS = "shards"
"""Among a job's changes the one that is no field of it, but read with its file."""
_ONLY_BIDS = "--dry-run-bids"
_NO_CHANGES: Mapping[str, Any] = {}


class _Submit(click.Command):
    """``--dry-run`` may have a value, and what stands after it without one is the job file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the one value that it may have as an option of its own."""
        for arg in args[: args.index("--")] if "--" in args else args:
            if arg.startswith("--dry-run=") and arg != "--dry-run=bids":
                raise click.UsageError(f"{arg[:60]!r}: say --dry-run, or --dry-run=bids", ctx)
        return super().parse_args(ctx, [_ONLY_BIDS if arg == "--dry-run=bids" else arg for arg in args])


@click.command(cls=_Submit)
@click.argument("jobfile", type=click.Path(path_type=Path))
@click.option("--watch", "and_watch", is_flag=True, help="Follow the job until it has ended.")
@click.option("--keep-failed", metavar="TIME", help='Keep a run that failed for so long, e.g. "1h", to look at it.')
@click.option("--queue", metavar="TIME", help='Wait for providers for so long, e.g. "2h", instead of failing at once.')
@click.option("--deadline", metavar="TIME", help='So long from now the job is worth nothing, e.g. "6h".')
@click.option(
    "--needs", metavar="TEXT", help='What a shard needs, e.g. "8xH100 and region = eu", not as the file says.'
)
@click.option("--shards", type=click.IntRange(1, 1024), metavar="N", help="In so many parts, not as the file says.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check and pack it and show whom it would ask; send nothing. --dry-run=bids asks them, shows their bids and"
    " awards none.",
)
@click.option(_ONLY_BIDS, "only_bids", is_flag=True, hidden=True)
@with_data
@with_json
def submit(
    jobfile: Path,
    *,
    and_watch: bool,
    dry_run: bool,
    only_bids: bool,
    shards: int | None,
    data_dir: Path,
    as_json: bool,
    **said: str | None,
) -> int:
    """Put a job on the market. JOBFILE is a job.toml or the directory it lies in."""
    from hansa.node.api.cli_client import DaemonClient

    changes: dict[str, Any] = {
        field: _duration_ms(text, f"--{name.replace('_', '-')}")
        for name, field in _TIMES.items()
        if (text := said[name]) is not None
    }
    if said["needs"] is not None:
        changes[_NEEDS] = said["needs"]
    if shards is not None:
        changes[_SHARDS] = shards
    with closing(DaemonClient(data_dir)) as daemon:
        if only_bids:
            return _show_bids(daemon, jobfile, changes, as_json)
        if dry_run:
            return _dry_run(daemon, jobfile, changes, as_json)
        job = submit_job(daemon, jobfile, changes=changes)
        if as_json:
            print_json({"job": job})
        else:
            click.echo(f"job {job}")
        if and_watch:
            return _follow(daemon.watch(job, PATIENCE_S), as_json, job)
        if not as_json:
            click.echo(f"follow it: hansa watch {job[:SHORT_ID]}")
    return 0


def _say(line: str) -> None:
    """To the error stream: what is printed may be JSON that somebody reads."""
    click.echo(line, err=True)


def _dry_run(daemon: "DaemonClient", jobfile: Path, changes: Mapping[str, Any], as_json: bool) -> int:
    """Everything up to the tender. What is packed stays with this node, and goes when its room is needed."""
    from hansa.node.commands.cli_market import print_dry_run

    view = daemon.post("/v1/dry-run", {"spec": packed_job(daemon, jobfile, changes, _say)["spec"]})
    if as_json:
        print_json(view)
    else:
        print_dry_run(view)
    return 0 if view.get("enough") else 1


def _show_bids(daemon: "DaemonClient", jobfile: Path, changes: Mapping[str, Any], as_json: bool) -> int:
    """A tender like any other, of which nothing is awarded: the bids, and why those who made none did not."""
    from hansa.node.commands.cli_market import print_bids, print_why

    job = submit_job(daemon, jobfile, changes={**changes, "only_bids": True, "queue_ms": 0})
    for _ in daemon.watch(job, PATIENCE_S):
        pass
    view = daemon.get(f"/v1/jobs/{job}/bids")
    offered = any(
        bid.get("result") != "excluded" for tender in view.get("tenders", ()) for bid in tender.get("bids", ())
    )
    if as_json:
        print_json(view)
    else:
        print_bids(view)
        if not offered:
            print_why(daemon.get(f"/v1/jobs/{job}/why"))
    return 0 if offered else 1


def submit_job(
    daemon: "DaemonClient",
    jobfile: Path,
    *,
    changes: Mapping[str, Any] = _NO_CHANGES,
    say: Callable[[str], None] = _say,
) -> str:
    """Check a job file, pack its directory, upload it and put the job on the market; answer the job's id.

    Args:
        daemon: the node that buys.
        jobfile: the file, or its directory.
        changes: fields of the job that are not to be as the file says, what it ``needs`` and its ``shards``.
        say: told what is done, one line at a time.
    """
    return str(daemon.post("/v1/jobs", packed_job(daemon, jobfile, changes, say))["job"])


def packed_job(
    daemon: "DaemonClient", jobfile: Path, changes: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Check a job file and upload what belongs to it; answer what the daemon is asked with."""
    from hansa.node.api.job_json import spec_to_json
    from hansa.node.jobs.job_environment import JobEnvironment
    from hansa.node.jobs.job_file import check_deadline, read_job_file
    from hansa.node.jobs.job_imports import warnings
    from hansa.node.jobs.job_upload import upload_files, upload_package
    from hansa.node.storage.sealing import new_content_key
    from hansa.proto.sealed import is_sealed

    found = read_job_file(jobfile, changes.get(_NEEDS), changes.get(_SHARDS))
    fields = {name: value for name, value in changes.items() if name not in (_NEEDS, _SHARDS)}
    found = replace(found, spec=replace(found.spec, **fields))
    check_deadline(found.spec)
    if found.environment == JobEnvironment():
        for warning in warnings(found.directory / found.spec.entry.partition(":")[0], found.directory):
            say(warning)
    key = new_content_key() if is_sealed(found.spec.requirements) else None
    files, spec = upload_files(daemon, found, say, key)
    package = upload_package(daemon, found, key)
    for left_out in sorted(found.left_out):
        say(f"kept out of the package: {left_out}")
    body = {"spec": spec_to_json(spec), "package": package, "files": files}
    if key is None:
        return body
    say("sealed: code, inputs, states, checkpoints and outputs; not its name, parameters, metrics and what it prints")
    return body | {"key": key.secret().hex()}


def _duration_ms(text: str, option: str) -> int:
    from hansa.market.value_forms import duration_ms

    try:
        return duration_ms(text)
    except ValueError as fault:
        raise ConfigError(f"{option}: {fault}", f"for example {option} 1h") from None


def _follow(views: Iterable[dict[str, Any]], as_json: bool, job: str) -> int:
    """Show a job to its end. The exit code says whether it succeeded."""
    try:
        return _followed(views, as_json)
    except KeyboardInterrupt:
        # Whoever stops watching may think that this ends the job; it goes on, and to cost money.
        name = job[:SHORT_ID]
        _say(f"\nnot watched any more; the job goes on. See it: hansa watch {name}; end it: hansa cancel {name}")
        raise


def _followed(views: Iterable[dict[str, Any]], as_json: bool) -> int:
    last: Any = None
    if as_json:
        for view in views:
            print_json(view)
            last = view
    else:
        from hansa.node.commands.cli_advice import last_words
        from hansa.node.commands.cli_screen import follow

        last = follow(views)
        for line in last_words(last or {}):
            click.echo(line)
    return 0 if last is not None and last.get("phase") == "succeeded" else 1


@click.command()
@click.argument("jobfile", type=click.Path(path_type=Path))
def lock(jobfile: Path) -> None:
    """Write hansa.lock: exact versions of a job's dependencies. JOBFILE is a job.toml or its directory.

    hansa submit does so too when the lock is missing or the dependencies have changed. This command takes the newest
    versions that fit, and needs no daemon.
    """
    from hansa.node.jobs.job_file import read_job_file
    from hansa.node.jobs.job_lock import write_lock
    from hansa.node.runs.locks import parse_lock

    found = read_job_file(jobfile)
    if not found.environment.dependencies:
        raise ConfigError(f"{jobfile}: has no dependencies to lock", 'add [environment] dependencies = ["einops>=0.8"]')
    packages = parse_lock(write_lock(found.environment, found.directory))
    for package in packages:
        click.echo(f"{package.name} {package.version}")


@click.command()
@with_data
@with_json
def jobs(data_dir: Path, as_json: bool) -> None:
    """List this node's jobs, newest first."""
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.commands.cli_tables import print_jobs

    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.get("/v1/jobs")
    if as_json:
        print_json(answer)
    else:
        print_jobs(answer["jobs"])


@click.command()
@click.argument("job")
@with_data
@with_json
def watch(job: str, data_dir: Path, as_json: bool) -> int:
    """Follow a job: who bid what and why the winner won, every shard, every round, the money.

    JOB is an id or its first digits. Exit code 0 only if the job succeeded. Ctrl-C stops watching, not the job.
    """
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon:
        wanted = job_path_part(job)
        return _follow(daemon.watch(wanted, PATIENCE_S), as_json, wanted)


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Wait for more until the job has ended.")
@click.option("--shard", type=click.IntRange(min=0), help="Only this shard's lines.")
@with_data
@with_json
def logs(job: str, follow: bool, shard: int | None, data_dir: Path, as_json: bool) -> None:
    """Show what a job's code printed."""
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.plain_text import plain

    parameters = {"follow": "1" if follow else "0"} | ({} if shard is None else {"shard": str(shard)})
    with (
        closing(DaemonClient(data_dir)) as daemon,
        closing(daemon.lines(f"/v1/jobs/{job_path_part(job)}/logs", **parameters)) as lines,
    ):
        line = None
        for line in lines:
            if as_json:
                print_json(line)
            else:
                click.echo(f"[{plain(line.get('shard'), 8)}] {plain(line.get('text'))}")
        if line is None:
            _explain_silence(daemon, job_path_part(job), shard, as_json=as_json)


def _explain_silence(daemon: "DaemonClient", job: str, shard: int | None, *, as_json: bool) -> None:
    shards = len(daemon.get(f"/v1/jobs/{job}").get("shards", ()))
    if shard is not None and shard >= shards:
        have = f"shards 0 to {shards - 1}" if shards > 1 else "one shard, number 0"
        raise OperatorError(
            f"there is no shard {shard}: the job has {have}", "choose one of them, or leave --shard out"
        )
    if not as_json:
        _say(f"it printed nothing; how it goes, or why it ended: hansa watch {job[:SHORT_ID]}")


@click.command()
@click.argument("job")
@click.option(
    "-o",
    "--output",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where to write; it may be there already. Default: results-JOB here.",
)
@with_data
@with_json
def results(job: str, directory: Path | None, data_dir: Path, as_json: bool) -> None:
    """Fetch a job's outputs into DIR (default: results-JOB), one directory for each shard.

    What is wrong with one output keeps no other from being fetched; the exit code is 2 then.
    """
    from hansa.node.api.cli_client import DaemonAway, DaemonClient

    written: list[str] = []
    faults: list[OperatorError] = []
    with closing(DaemonClient(data_dir)) as daemon:
        view = daemon.get(f"/v1/jobs/{job_path_part(job)}")
        target = directory or Path(f"results-{str(view['job'])[:SHORT_ID]}")
        for output in view.get("outputs", []):
            try:
                written.append(str(_fetch(daemon, view, output, target)))
            except DaemonAway:
                raise
            except OperatorError as fault:  # each shard's provider names its own, and one may lie
                faults.append(fault)
    if faults and not written:
        raise faults[0]
    if as_json:
        lacking = {"not_fetched": [fault.what for fault in faults]} if faults else {}
        print_json({"job": view["job"], "directory": str(target), "files": written, **lacking})
    else:
        if not written:
            click.echo(f"job {view['phase']}: there are no outputs" + ("" if view.get("ended_ms") else " yet"))
        for path in written:
            click.echo(path)
    if faults:
        count = f"{len(faults)} of {len(faults) + len(written)} outputs"
        raise OperatorError(f"{count} could not be fetched: {faults[0].what}", faults[0].hint)


def _fetch(daemon: "DaemonClient", view: dict[str, Any], output: dict[str, Any], target: Path) -> Path:
    from hansa.node.commands.cli_results import write_opened, write_output
    from hansa.proto.sealed import plain_size_bytes

    shard, path = output.get("shard"), output.get("path")
    blob = _blob_of(output)
    if blob is None or type(shard) is not int or shard < 0 or type(path) is not str:
        raise OperatorError("the daemon names an output that is none", "use the daemon's own version")
    if view.get("sealed") is True:
        pieces = daemon.output(str(view["job"]), blob)
        return write_opened(target, shard, path, plain_size_bytes(blob.size_bytes), pieces)
    return write_output(target, shard, path, blob, daemon.blob(blob))


def _blob_of(output: dict[str, Any]) -> "BlobRef | None":
    from hansa.proto.blob import MAX_BLOB_BYTES, BlobRef

    size_bytes = output.get("size_bytes")
    try:
        root = bytes.fromhex(str(output.get("root")))
    except ValueError:
        return None
    if len(root) != 32 or type(size_bytes) is not int or not 0 <= size_bytes <= MAX_BLOB_BYTES:
        return None
    return BlobRef(root=root, size_bytes=size_bytes)


@click.command()
@click.argument("job")
@with_data
@with_json
def cancel(job: str, data_dir: Path, as_json: bool) -> None:
    """Stop a job. What was delivered until now is paid for, and no more."""
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.post(f"/v1/jobs/{job_path_part(job)}/cancel")
    if as_json:
        print_json(answer)
    else:
        click.echo(f"job {answer['job']} {answer['phase']}")


@click.command("top-up")
@click.argument("job")
@click.argument("amount")
@with_data
@with_json
def top_up(job: str, amount: str, data_dir: Path, as_json: bool) -> None:
    """Let a job cost AMOUNT more, in its currency. What waited for money goes on from its last checkpoints.

    An AMOUNT of 0 changes nothing but lets it try again: after the wallet was filled, for example.
    """
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon:
        answer = daemon.post(f"/v1/jobs/{job_path_part(job)}/top-up", {"amount": amount})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"job {answer['job']} may cost {answer['budget']} in all")


def job_path_part(job: str) -> str:
    """A job's id as a part of an URL's path. Anything but hex digits is refused before it becomes another path."""
    wanted = job.strip().lower().removeprefix("0x")
    if not wanted or len(wanted) > 64 or any(digit not in "0123456789abcdef" for digit in wanted):
        raise OperatorError(f"{job!r:.80} is no job's id: hex digits, at least 4 of them", "hansa jobs lists them")
    return wanted


JOB_COMMANDS = (submit, lock, jobs, watch, logs, results, top_up, cancel)
