"""What a run is told to be: the job's code, its place among the shards, and everything that it may use at the most."""

import stat
from dataclasses import dataclass
from pathlib import Path

from hansa.node.sandbox import SandboxSpec
from hansa.proto.blob import BlobRef
from hansa.proto.workload import Parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """What one run may use.

    Attributes:
        cpu_millis: thousandths of a CPU.
        processes: processes and threads; Ray alone needs some 150, and 600 is a sound floor.
        scratch_bytes: room for files, which counts against memory.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder:
    """Everything needed to start a run.

    Attributes:
        run: its id.
        entry: ``"file.py:function"`` below ``code``.
        code: directory with the job's code, unpacked. Nothing in it is changed but the right to read it.
        inputs: directory with its inputs, if it has any.
        workers: Ray workers that share the shard.
        gpu_minors: minor numbers of the leased GPUs' device nodes.
        checkpoint: where to go on from.
        round: the round in which it joins the others.
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
    gpu_minors: tuple[int, ...] = ()
    checkpoint: BlobRef | None = None
    round: int = 0


def spec_of(order: RunOrder) -> SandboxSpec:
    """The sandbox that the order's limits describe."""
    limits = order.limits
    return SandboxSpec(
        program="hansa.worker.runner",
        code=str(order.code.resolve()),
        inputs=None if order.inputs is None else str(order.inputs.resolve()),
        memory_bytes=limits.memory_bytes,
        cpu_millis=limits.cpu_millis,
        processes=limits.processes,
        scratch_bytes=limits.scratch_bytes,
        output_bytes=limits.output_bytes,
        gpu_minors=order.gpu_minors,
    )


def open_to_readers(directory: Path) -> None:
    """Let everyone read what lies in a directory; the directories above it still keep everyone out.

    A launcher that is root starts the sandbox as a uid that is neither owner nor group of these files.
    """
    for path in (directory, *directory.rglob("*")):
        mode = path.lstat().st_mode
        wanted = 0o555 if stat.S_ISDIR(mode) else 0o444
        if (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and mode & wanted != wanted:
            path.chmod(stat.S_IMODE(mode) | wanted)
