"""``job.toml``: a developer's job as a file beside its code, read into a ``JobSpec`` or refused in words.

Only ``name`` and ``entry`` have no default. Every complaint names the file, the line and the key, and says what to
write instead; the entry's file is looked into, so that a misspelt function is found here and not on somebody's GPU.
"""

import ast
import difflib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hansa.market.isolation import STRENGTH
from hansa.market.requirements import MOST_CHOICES
from hansa.market.sale_events import RECLAIMED, RECLAIMED_EARLY
from hansa.market.sale_funding import UNFUNDED
from hansa.market.shares import device_ms
from hansa.node.faults import ConfigError
from hansa.node.job_environment import JobEnvironment, read_environment
from hansa.node.job_inputs import JobInput, read_inputs
from hansa.node.job_needs import check_least, check_once, read_needs, read_policy, read_share, width_of
from hansa.node.quantities import format_duration, format_size
from hansa.node.splits_config import read_splits
from hansa.node.toml_reader import TomlTable, read_toml
from hansa.proto.egress import normalise
from hansa.proto.frames import is_safe_path
from hansa.proto.gpu_models import canonical
from hansa.proto.market_documents import (
    FEATURE_EGRESS,
    FEATURE_MIRRORS,
    FEATURE_SEALED,
    FEATURE_SEVERAL_MACHINES,
    KIND_CPU,
    KIND_GPU,
    LEASE_ANY,
    LEASE_FIRM,
    LEASE_SPOT,
    TIER_SANDBOX,
    DeviceChoice,
    Requirements,
)
from hansa.proto.sealed import is_sealed
from hansa.proto.units import Amount, DurationMs, PriceE18, amount_for, format_amount
from hansa.proto.workload import Parameter
from hansa.scheduler.job_losses import WORDS
from hansa.scheduler.job_spec import WORTH_RETRYING, JobSpec

FILE_NAME = "job.toml"
LARGEST_PARAMETER_BYTES = 2048
MOST_PARAMETERS = 64
LONGEST_PARAMETER_NAME = 64
LEAST_SHARED_MEMORY_BYTES = 128 << 20
"""Ray's object store takes at least 75 MiB, and with less than this nothing is left beside it."""
MOST_HOSTS = 256
RETRIABLE = tuple(sorted(WORDS.keys() - {RECLAIMED, RECLAIMED_EARLY, UNFUNDED}))
"""A lease whose devices are taken back is moved in any case, and one that lacked money when there is some."""
MOST_SHARDS = 1024
MOST_WORKERS = 64


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
class _Network:
    hosts: tuple[str, ...]
    most_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retry:
    on: tuple[str, ...]
    most: int
    same_provider: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Budget:
    total: Amount
    ceiling_e18: PriceE18
    currency: str
    max_prepay_ms: DurationMs


def read_job_file(path: Path, needs: str | None = None) -> JobFile:
    """Read a ``job.toml``, named itself or by its directory.

    Args:
        path: the file or the directory.
        needs: what the command line says in place of the file's ``resources.needs``; it goes before the older keys.

    Raises:
        ConfigError: it is missing, or anything in it is wrong.
    """
    if path.is_dir():
        if not (path / FILE_NAME).exists():
            raise ConfigError(
                f"{path}: there is no {FILE_NAME} in it", f"write one, or name the file: {path}/NAME.toml"
            )
        path = path / FILE_NAME
    top = read_toml(path)
    directory = path.absolute().parent
    name = top.text("name")
    entry = _entry(top, directory)
    shards = top.integer("shards", 1, least=1, most=MOST_SHARDS)
    workers = top.integer("workers", 1, least=1, most=MOST_WORKERS)
    parameters = _parameters(top.table("parameters"))
    limits = _limits(top.table("limits"))
    retry = _retry(top.table("retry"), limits.retries)
    inputs = read_inputs(top.table("inputs"), directory, shards)
    network = _network(top.table("network"))
    resources = top.table("resources")
    shared_memory_bytes = resources.size_bytes("shared_memory", "192 MiB", least=LEAST_SHARED_MEMORY_BYTES)
    environment = read_environment(top.table("environment"), directory)
    mirror = _mirror(top.table("checkpoints"), shards)
    said = read_needs(resources, needs)
    requirements = said.applied_to(_requirements(resources, limits.wall_ms, network, environment))
    check_least(requirements, resources)
    requirements = _with_features(
        requirements,
        {FEATURE_MIRRORS: mirror, FEATURE_SEALED: _sealed(top.table("data"), requirements, environment)},
    )
    if shared_memory_bytes > requirements.memory_bytes:
        hint = f"it counts against memory, which is {format_size(requirements.memory_bytes)}"
        raise resources.fault("shared_memory", "is more than the memory", hint)
    tender = top.table("tender")
    bid_window_ms = tender.duration_ms("bids", "5 s", least=100)
    meter_interval_ms = tender.duration_ms("meter", "10 s", least=100)
    queue_ms = tender.duration_ms("queue_timeout", "0 s", least=0)
    check_once(tender, "deadline", "deadline", said=needs is None and said.deadline_ms is not None)
    deadline_after_ms = tender.duration_ms("deadline", "0 s", least=0)
    if (late := _too_soon(limits.wall_ms, deadline_after_ms)) is not None:
        raise tender.fault("deadline", *late)
    if needs is None and (late := _too_soon(limits.wall_ms, said.deadline_ms or 0)) is not None:
        raise resources.fault("needs", f"its deadline {late[0]}", late[1])
    check_once(tender, "lease", "lease", said=needs is None and bool(said.lease))
    lease, most_each = tender.choice("lease", LEASE_ANY, (LEASE_ANY, LEASE_SPOT, LEASE_FIRM)), _most_each(tender)
    tender.finish()
    prices = top.table("budget")
    ceiling_e18 = said.price_e18_per_device_ms
    check_once(prices, "price_ceiling_per_hour", "price", said=needs is None and ceiling_e18 is not None)
    first_ms = device_ms(min(meter_interval_ms, limits.wall_ms), width_of(requirements, resources))
    budget = _budget(prices, first_ms, ceiling_e18)
    policy = read_policy(top.table("policy"), budget.max_prepay_ms)
    round_bytes, round_every_ms = _rounds(top.table("rounds"), limits.state_bytes)
    splits = read_splits(top, "splits")
    top.finish()
    spec = JobSpec(
        name=name,
        entry=entry,
        shards=shards,
        workers=workers,
        parameters=parameters,
        requirements=requirements,
        currency=budget.currency,
        budget=budget.total,
        price_ceiling_e18_per_device_ms=budget.ceiling_e18,
        meter_interval_ms=meter_interval_ms,
        bid_window_ms=bid_window_ms,
        round_timeout_ms=limits.round_ms,
        round_bytes=round_bytes,
        round_every_ms=round_every_ms,
        stall_ms=limits.stall_ms,
        silence_ms=limits.silence_ms,
        retries=retry.most,
        output_bytes=limits.output_bytes,
        state_bytes=limits.state_bytes,
        fetch_bytes=0,
        shared_memory_bytes=shared_memory_bytes,
        egress_bytes=network.most_bytes,
        keep_failed_ms=limits.keep_failed_ms,
        retry_on=retry.on,
        retry_same_provider=retry.same_provider,
        mirror=mirror,
        max_prepay_ms=budget.max_prepay_ms,
        most_each=most_each,
        splits=splits,
        queue_ms=queue_ms,
        deadline_after_ms=deadline_after_ms if said.deadline_ms is None else said.deadline_ms,
        lease=said.lease or lease,
        facts=policy,
    )
    return JobFile(
        directory=directory,
        spec=spec,
        inputs=inputs.files,
        environment=environment,
        left_out=_inside(directory, (*inputs.sources, *environment.sources)),
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


def _network(table: TomlTable) -> _Network:
    """Which hosts the code may speak to, in the one way in which the market writes them."""
    hosts: set[str] = set()
    for text in table.texts("allow", (), most=MOST_HOSTS):
        try:
            hosts.add(normalise(text))
        except ValueError as fault:
            raise table.fault(
                "allow", f"{text!r:.80}: {fault}", 'for example ["pypi.org:443", "*.example.org"]'
            ) from None
    most_bytes = table.size_bytes("bytes", "1 GiB", least=1)
    table.finish()
    return _Network(hosts=tuple(sorted(hosts)), most_bytes=most_bytes if hosts else 0)


def _most_each(tender: TomlTable) -> int:
    """How many shards one provider may have."""
    return tender.integer("per_provider", 0, least=0, most=MOST_SHARDS)


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


def _with_features(requirements: Requirements, wanted: Mapping[str, bool]) -> Requirements:
    features = {*requirements.features, *(feature for feature, is_wanted in wanted.items() if is_wanted)}
    return replace(requirements, features=tuple(sorted(features)))


def _sealed(table: TomlTable, requirements: Requirements, environment: JobEnvironment) -> bool:
    """Whether everything that the job moves is sealed, which goes with some features and not with others."""
    sealed = table.boolean("sealed", default=False) or is_sealed(requirements)
    if sealed and (environment.wheels or environment.archive is not None):
        hint = "name packages by dependencies and an image by its digest, or put the code into the job's directory"
        raise table.fault("sealed", "goes with no wheels and no image archive, which providers keep unpacked", hint)
    if sealed and FEATURE_SEVERAL_MACHINES in requirements.features:
        hint = "leave several_machines out: a provider's other machines keep what runs were given"
        raise table.fault("sealed", "goes with one machine for each shard only", hint)
    table.finish()
    return sealed


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


def _requirements(
    table: TomlTable, wall_ms: DurationMs, network: _Network, environment: JobEnvironment
) -> Requirements:
    kind = table.choice("kind", "any", ("any", KIND_CPU, KIND_GPU))
    models = table.texts("gpu_models", (), most=MOST_CHOICES)
    if models and kind != KIND_GPU:
        raise table.fault("gpu_models", f'makes no sense with kind = "{kind}"', 'set kind = "gpu", or remove the line')
    several = (FEATURE_SEVERAL_MACHINES,) if table.boolean("several_machines", False) else ()
    devices = table.integer("devices", 1, least=1, most=64)
    requirements = Requirements(
        clauses=read_share(table),
        kind=kind,
        choices=tuple(dict.fromkeys(DeviceChoice(devices=devices, model=canonical(model)) for model in models)),
        devices=devices,
        device_memory_bytes=table.size_bytes("device_memory", "0 B"),
        cores_milli=table.cores_milli("cores", 1),
        memory_bytes=table.size_bytes("memory", "2 GiB", least=64 << 20),
        scratch_bytes=table.size_bytes("disk", "2 GiB", least=1 << 20),
        tier=table.choice("tier", TIER_SANDBOX, STRENGTH),
        features=tuple(sorted((*environment.features, *((FEATURE_EGRESS,) if network.hosts else ()), *several))),
        egress=network.hosts,
        wall_ms=wall_ms,
    )
    table.finish()
    return requirements


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
