"""What a job file says of the machines that it needs: devices, memory, network, packages, what is sealed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hansa.market.isolation import STRENGTH
from hansa.market.requirements import MOST_CHOICES, Needs
from hansa.node.jobs.job_environment import JobEnvironment
from hansa.node.jobs.job_needs import check_least, read_share
from hansa.node.quantities import format_size
from hansa.node.toml_reader import TomlTable
from hansa.proto.egress import normalise
from hansa.proto.gpu_models import canonical
from hansa.proto.market_documents import (
    FEATURE_EGRESS,
    FEATURE_MIRRORS,
    FEATURE_SEALED,
    FEATURE_SEVERAL_MACHINES,
    KIND_CPU,
    KIND_GPU,
    TIER_SANDBOX,
    DeviceChoice,
    Requirements,
)
from hansa.proto.sealed import is_sealed
from hansa.proto.units import DurationMs

LEAST_SHARED_MEMORY_BYTES = 128 << 20
"""Ray's object store takes at least 75 MiB, and with less than this nothing is left beside it."""
MOST_HOSTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Which hosts the code may speak to, and how much."""

    hosts: tuple[str, ...]
    most_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What is asked of a provider for one shard."""

    requirements: Requirements
    shared_memory_bytes: int


def read_network(table: TomlTable) -> Network:
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
    return Network(hosts=tuple(sorted(hosts)), most_bytes=most_bytes if hosts else 0)


def read_resources(
    table: TomlTable,
    data: TomlTable,
    said: Needs,
    wall_ms: DurationMs,
    *,
    network: Network,
    environment: JobEnvironment,
    mirror: bool,
) -> Resources:
    """Requirements out of the table, what was said in one sentence in place of it, and what else the file asks for.

    Args:
        table: ``[resources]``.
        data: ``[data]``.
        said: ``needs``.
        wall_ms: the longest that a run may take.
        network: which hosts it wants to reach.
        environment: what it runs on.
        mirror: whether providers hold copies of each other's checkpoints.
    """
    shared_memory_bytes = table.size_bytes("shared_memory", "192 MiB", least=LEAST_SHARED_MEMORY_BYTES)
    requirements = said.applied_to(_requirements(table, wall_ms, network, environment))
    check_least(requirements, table)
    sealed = _sealed(data, requirements, environment)
    requirements = _with_features(requirements, {FEATURE_MIRRORS: mirror, FEATURE_SEALED: sealed})
    if shared_memory_bytes > requirements.memory_bytes:
        hint = f"it counts against memory, which is {format_size(requirements.memory_bytes)}"
        raise table.fault("shared_memory", "is more than the memory", hint)
    return Resources(requirements=requirements, shared_memory_bytes=shared_memory_bytes)


def _requirements(table: TomlTable, wall_ms: DurationMs, network: Network, environment: JobEnvironment) -> Requirements:
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


def _with_features(requirements: Requirements, wanted: Mapping[str, bool]) -> Requirements:
    features = {*requirements.features, *(feature for feature, is_wanted in wanted.items() if is_wanted)}
    return replace(requirements, features=tuple(sorted(features)))
