"""``job.toml``: a developer's job as a file beside its code, read into a ``JobSpec`` or refused in words.

Only ``name`` and ``entry`` have no default. Every complaint names the file, the line and the key, and says what to
write instead. What the code is stands in ``hansa.node.jobs.job_work``, what it needs of machines in ``job_resources``.
"""

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hansa.market.requirements import Needs
from hansa.market.sale_events import RECLAIMED, RECLAIMED_EARLY
from hansa.market.sale_funding import UNFUNDED
from hansa.market.shares import device_ms
from hansa.node.faults import ConfigError
from hansa.node.jobs.job_environment import JobEnvironment, read_environment
from hansa.node.jobs.job_inputs import JobInput, read_inputs
from hansa.node.jobs.job_needs import check_once, read_needs, read_policy, width_of
from hansa.node.jobs.job_resources import read_network, read_resources
from hansa.node.jobs.job_work import MOST_SHARDS, Work, read_work
from hansa.node.quantities import format_duration, format_size
from hansa.node.settings.splits_config import read_splits
from hansa.node.toml_reader import TomlTable, read_toml
from hansa.proto.market_documents import LEASE_ANY, LEASE_FIRM, LEASE_SPOT
from hansa.proto.units import Amount, DurationMs, PriceE18, amount_for, format_amount
from hansa.scheduler.job_losses import WORDS
from hansa.scheduler.job_spec import WORTH_RETRYING, JobSpec

FILE_NAME = "job.toml"
RETRIABLE = tuple(sorted(WORDS.keys() - {RECLAIMED, RECLAIMED_EARLY, UNFUNDED}))
"""A lease whose devices are taken back is moved in any case, and one that lacked money when there is some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFile:
    """A job as it was found on disk.

    Attributes:
        directory: what is packed and sent.
        spec: what is asked of the market; what the files beside the package weigh is known once they are uploaded.
        inputs: files that are sent beside the package.
        environment: what the code is to run on.
        left_out: what lies in the directory and is none of the package, relative to it.
    """

    directory: Path
    spec: JobSpec
    inputs: tuple[JobInput, ...]
    environment: JobEnvironment
    left_out: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    wall_ms: DurationMs
    stall_ms: DurationMs
    silence_ms: DurationMs
    round_ms: DurationMs
    retries: int
    output_bytes: int
    state_bytes: int
    keep_failed_ms: DurationMs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retry:
    on: tuple[str, ...]
    most: int
    same_provider: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bidding:
    window_ms: DurationMs
    meter_interval_ms: DurationMs
    queue_ms: DurationMs
    deadline_after_ms: DurationMs
    lease: str
    most_each: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Budget:
    total: Amount
    ceiling_e18: PriceE18
    currency: str
    max_prepay_ms: DurationMs


def read_job_file(path: Path, needs: str | None = None, shards: int | None = None) -> JobFile:
    """Read a ``job.toml``, named itself or by its directory.

    Args:
        path: the file or the directory.
        needs: what the command line says in place of the file's ``resources.needs``; it goes before the older keys.
        shards: their number, in place of the file's.

    Raises:
        ConfigError: it is missing, or anything in it is wrong.
    """
    if path.is_dir():
        if not (path / FILE_NAME).exists():
            raise ConfigError(
                f"{path}: there is no {FILE_NAME} in it", f"write one, or name the file: {path}/NAME.toml"
            )
        path = path / FILE_NAME
    if path.suffix == ".py":
        raise ConfigError(f"{path}: is code and no job file", f"name the {FILE_NAME} beside it, or its directory")
    top = read_toml(path)
    if shards is not None:
        top.values["shards"] = shards
    directory = path.absolute().parent
    work = read_work(top, directory)
    inputs = read_inputs(top.table("inputs"), directory, work.shards)
    environment = read_environment(top.table("environment"), directory)
    spec = _spec(top, work, environment, needs)
    top.finish()
    return JobFile(
        directory=directory,
        spec=spec,
        inputs=inputs.files,
        environment=environment,
        left_out=_inside(directory, (*inputs.sources, *environment.sources)),
    )


def _spec(top: TomlTable, work: Work, environment: JobEnvironment, needs: str | None) -> JobSpec:
    """What is asked of the market for this work."""
    limits = _limits(top.table("limits"))
    retry = _retry(top.table("retry"), limits.retries)
    network = read_network(top.table("network"))
    mirror = _mirror(top.table("checkpoints"), work.shards)
    resources = top.table("resources")
    said = read_needs(resources, needs)
    data = top.table("data")
    asked = read_resources(
        resources, data, said, limits.wall_ms, network=network, environment=environment, mirror=mirror
    )
    bidding = _bidding(top.table("tender"), resources, said, limits.wall_ms, is_files_word=needs is None)
    prices = top.table("budget")
    ceiling_e18 = said.price_e18_per_device_ms
    check_once(prices, "price_ceiling_per_hour", "price", said=needs is None and ceiling_e18 is not None)
    first_ms = device_ms(min(bidding.meter_interval_ms, limits.wall_ms), width_of(asked.requirements, resources))
    budget = _budget(prices, first_ms, ceiling_e18)
    round_bytes, round_every_ms = _rounds(top.table("rounds"), limits.state_bytes)
    return JobSpec(
        name=work.name,
        entry=work.entry,
        shards=work.shards,
        workers=work.workers,
        parameters=work.parameters,
        requirements=asked.requirements,
        currency=budget.currency,
        budget=budget.total,
        price_ceiling_e18_per_device_ms=budget.ceiling_e18,
        meter_interval_ms=bidding.meter_interval_ms,
        bid_window_ms=bidding.window_ms,
        round_timeout_ms=limits.round_ms,
        round_bytes=round_bytes,
        round_every_ms=round_every_ms,
        stall_ms=limits.stall_ms,
        silence_ms=limits.silence_ms,
        retries=retry.most,
        output_bytes=limits.output_bytes,
        state_bytes=limits.state_bytes,
        fetch_bytes=0,
        shared_memory_bytes=asked.shared_memory_bytes,
        egress_bytes=network.most_bytes,
        keep_failed_ms=limits.keep_failed_ms,
        retry_on=retry.on,
        retry_same_provider=retry.same_provider,
        mirror=mirror,
        max_prepay_ms=budget.max_prepay_ms,
        most_each=bidding.most_each,
        splits=read_splits(top, "splits"),
        queue_ms=bidding.queue_ms,
        deadline_after_ms=bidding.deadline_after_ms,
        lease=bidding.lease,
        facts=read_policy(top.table("policy"), budget.max_prepay_ms),
    )


def check_deadline(spec: JobSpec) -> None:
    """Refuse a deadline that no run could be sure to keep, wherever it was said."""
    found = _too_soon(spec.requirements.wall_ms, spec.deadline_after_ms)
    if found is not None:
        raise ConfigError(f"the deadline {found[0]}", found[1])


def _too_soon(wall_ms: DurationMs, deadline_ms: DurationMs) -> tuple[str, str] | None:
    """A run may take all of its ``wall``. A job whose deadline is sooner than that could never be tendered."""
    if not 0 < deadline_ms < wall_ms:
        return None
    wall, deadline = format_duration(wall_ms), format_duration(deadline_ms)
    why = f"is {deadline} after the job is submitted, sooner than a run of {wall} could end"
    return why, "lower limits.wall to what a run really takes at the most, or allow more time"


def _inside(directory: Path, sources: Iterable[Path]) -> frozenset[str]:
    """Those of some paths that lie in the job's directory, as its package would name them."""
    normal = [Path(os.path.normpath(source)) for source in sources]
    return frozenset(str(path.relative_to(directory)) for path in normal if path.is_relative_to(directory))


def _limits(table: TomlTable) -> _Limits:
    limits = _Limits(
        wall_ms=table.duration_ms("wall", "1 h", least=1_000),
        stall_ms=table.duration_ms("stall", "5 min", least=1_000),
        silence_ms=table.duration_ms("silence", "60 s", least=1_000),
        round_ms=table.duration_ms("round", "2 min", least=100),
        retries=table.integer("retries", 3, least=0, most=100),
        output_bytes=table.size_bytes("outputs", "256 MiB"),
        state_bytes=table.size_bytes("state", "256 MiB"),
        keep_failed_ms=table.duration_ms("keep_failed", "0 s", least=0),
    )
    table.finish()
    return limits


def _bidding(
    table: TomlTable, resources: TomlTable, said: Needs, wall_ms: DurationMs, *, is_files_word: bool
) -> _Bidding:
    """How bids are taken, and what of the lease may stand in the needs instead, if these are the file's own."""
    window_ms = table.duration_ms("bids", "5 s", least=100)
    meter_interval_ms = table.duration_ms("meter", "10 s", least=100)
    queue_ms = table.duration_ms("queue_timeout", "0 s", least=0)
    check_once(table, "deadline", "deadline", said=is_files_word and said.deadline_ms is not None)
    deadline_after_ms = table.duration_ms("deadline", "0 s", least=0)
    if (late := _too_soon(wall_ms, deadline_after_ms)) is not None:
        raise table.fault("deadline", *late)
    if is_files_word and (late := _too_soon(wall_ms, said.deadline_ms or 0)) is not None:
        raise resources.fault("needs", f"its deadline {late[0]}", late[1])
    check_once(table, "lease", "lease", said=is_files_word and bool(said.lease))
    lease = table.choice("lease", LEASE_ANY, (LEASE_ANY, LEASE_SPOT, LEASE_FIRM))
    most_each = table.integer("per_provider", 0, least=0, most=MOST_SHARDS)
    table.finish()
    return _Bidding(
        window_ms=window_ms,
        meter_interval_ms=meter_interval_ms,
        queue_ms=queue_ms,
        deadline_after_ms=deadline_after_ms if said.deadline_ms is None else said.deadline_ms,
        lease=said.lease or lease,
        most_each=most_each,
    )


def _mirror(table: TomlTable, shards: int) -> bool:
    """Whether the shards hold each other's checkpoints. Their number is known by now, so a lone one is told."""
    mirror = table.boolean("mirror", default=False)
    if mirror and shards < 2:
        raise table.fault(
            "mirror", "needs a second shard, whose provider could hold the copy", "set shards = 2 or more"
        )
    table.finish()
    return mirror


def _rounds(table: TomlTable, state_bytes: int) -> tuple[int, DurationMs]:
    """What a round is expected to carry, and how long shards work between two: to choose the first providers by."""
    size_bytes = table.size_bytes("state", "0 B")
    every_ms = table.duration_ms("every", "0 s", least=0)
    if bool(size_bytes) != bool(every_ms):
        lacks = "every" if size_bytes else "state"
        raise table.fault(lacks, "is missing", 'a slow line is weighed by both: state = "200 MiB" and every = "10 min"')
    if size_bytes > state_bytes:
        raise table.fault("state", "is more than limits.state", f"raise limits.state, now {format_size(state_bytes)}")
    table.finish()
    return size_bytes, every_ms


def _retry(table: TomlTable, most: int) -> _Retry:
    """What is tried again. How often may stand in ``limits.retries`` as well, where it stood before there was this."""
    on = table.texts("on", WORTH_RETRYING, most=len(WORDS))
    for kind in on:
        if kind not in RETRIABLE:
            near = difflib.get_close_matches(kind, RETRIABLE, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"kinds of failure are {', '.join(RETRIABLE)}"
            raise table.fault("on", f"{kind!r} is no kind of failure that could be tried again", hint)
    retry = _Retry(
        on=tuple(sorted(set(on))),
        most=table.integer("most", most, least=0, most=100),
        same_provider=table.boolean("same_provider", default=True),
    )
    table.finish()
    return retry


def _budget(table: TomlTable, least_device_ms: int, said_e18: PriceE18 | None) -> _Budget:
    """The money, with the one check that needs no market: it must reach to one shard's first receipt."""
    ceiling_e18 = table.price_e18("price_ceiling_per_hour", "1.00", least=1)
    ceiling_e18 = ceiling_e18 if said_e18 is None else said_e18
    total = table.amount("total", "1.00", least=1)
    smallest = amount_for(least_device_ms, ceiling_e18)
    if total < smallest:
        raise table.fault(
            "total",
            f"{format_amount(total)} does not pay one shard until its first receipt at the price ceiling",
            f"allow at least {format_amount(smallest)}, or lower price_ceiling_per_hour",
        )
    currency = table.text("currency", "", empty=True, most=256)
    max_prepay_ms = table.duration_ms("max_prepay", "1 min", least=0)
    table.finish()
    return _Budget(total=total, ceiling_e18=ceiling_e18, currency=currency, max_prepay_ms=max_prepay_ms)
