"""What a run is told to be: the job's code, its place among the shards, and everything that it may use at the most."""

import stat
from dataclasses import dataclass, field
from pathlib import Path

from hansa.node.isolation.sandbox import SandboxSpec
from hansa.node.storage.sealing import ShardKeys
from hansa.proto.blob import BlobRef
from hansa.proto.workload import Parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """What one run may use.

    Attributes:
        cpu_millis: thousandths of a CPU.
        processes: processes and threads; Ray alone needs some 150, and 600 is a sound floor.
        scratch_bytes: room for files, which counts against memory.
        shared_memory_bytes: size of /dev/shm, which does too.
        keep_failed_ms: a run that failed stays for so long, to be looked at.
        wall_ms: the longest it may run, without pauses.
        stall_ms: the longest it may run without doing anything that shows, unless it waits for a round.
        log_bytes: what is kept of its output; the rest is dropped.
    """

    memory_bytes: int
    cpu_millis: int
    processes: int
    scratch_bytes: int
    wall_ms: int
    stall_ms: int
    state_bytes: int
    output_bytes: int
    log_bytes: int
    shared_memory_bytes: int = 192 << 20
    keep_failed_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder:
    """Everything needed to start a run.

    Attributes:
        run: its id.
        entry: ``"file.py:function"`` below ``code``.
        code: directory with the job's code, unpacked. Nothing in it is changed but the right to read it.
        inputs: directory with its inputs, if it has any.
        environment: directory with its own Python packages, if it has any.
        image: directory of an unpacked container image that is the root file system, if it has one.
        egress: unix socket of the run's way out, if it has one.
        tier: how strongly it is walled in.
        workers: Ray workers that share the shard.
        gpu_minors: minor numbers of the leased GPUs' device nodes.
        device_nodes: further nodes of theirs.
        cuda_devices: what CUDA calls them.
        rocm_devices: what ROCm calls them.
        checkpoint: where to go on from.
        round: the round in which it joins the others.
        keys: under which its states, checkpoints and outputs are sealed, if they are.
    """

    run: bytes
    entry: str
    code: Path
    inputs: Path | None
    shard: int
    shards: int
    workers: int
    parameters: tuple[Parameter, ...]
    limits: RunLimits
    environment: Path | None = None
    image: Path | None = None
    egress: Path | None = None
    tier: str = "sandbox"
    gpu_minors: tuple[int, ...] = ()
    device_nodes: tuple[str, ...] = ()
    cuda_devices: tuple[str, ...] = ()
    rocm_devices: tuple[str, ...] = ()
    checkpoint: BlobRef | None = None
    round: int = 0
    keys: ShardKeys | None = field(default=None, repr=False)


def gpu_count(order: RunOrder) -> int:
    """How many GPUs it has: several slices share one node, and AMD's have no minor number."""
    return max(len(order.gpu_minors), len(order.cuda_devices) + len(order.rocm_devices))


def spec_of(order: RunOrder) -> SandboxSpec:
    """The sandbox that the order's limits describe."""
    limits = order.limits
    return SandboxSpec(
        program="hansa.worker.runner",
        code=str(order.code.resolve()),
        inputs=_path(order.inputs),
        environment=_path(order.environment),
        image=_path(order.image),
        egress=_path(order.egress),
        tier=order.tier,
        memory_bytes=limits.memory_bytes,
        shared_memory_bytes=limits.shared_memory_bytes,
        cpu_millis=limits.cpu_millis,
        processes=limits.processes,
        scratch_bytes=limits.scratch_bytes,
        output_bytes=limits.output_bytes,
        gpu_minors=order.gpu_minors,
        device_nodes=order.device_nodes,
        cuda_devices=order.cuda_devices,
        rocm_devices=order.rocm_devices,
    )


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def open_to_readers(directory: Path) -> None:
    """Let everyone read what lies in a directory; the directories above it still keep everyone out.

    A launcher that is root starts the sandbox as a uid that is neither owner nor group of these files.
    """
    for path in (directory, *directory.rglob("*")):
        mode = path.lstat().st_mode
        wanted = 0o555 if stat.S_ISDIR(mode) else 0o444
        if (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and mode & wanted != wanted:
            path.chmod(stat.S_IMODE(mode) | wanted)
