"""What an award buys the running of: the job's code and inputs by their hashes, and how to start it.

The award carries only the workload's digest; the workload itself travels beside it, and the provider checks that the
two agree before it confirms.
"""

from dataclasses import dataclass

from hansa.proto.blob import BlobRef
from hansa.proto.units import Bytes32, DurationMs, Line, Note, Uint32, Uint64


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One named setting of a job; the value is JSON text."""

    name: Line
    value: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Everything that a provider needs to run any shard of a job.

    Attributes:
        job: the job's id.
        name: what its author calls it.
        package_root: root of the blob with the job's directory, packed (``hansa.node.packages``).
        package_bytes: that blob's size.
        entry: ``"file.py:function"`` inside the package.
        shards: how many shards the whole job has.
        workers: Ray workers that share one shard.
        parameters: handed to the job's code as they are.
        memory_bytes: main memory of the sandbox.
        scratch_bytes: room for files.
        output_bytes: the most that one shard's outputs may weigh.
        state_bytes: the most that one shard's model state or checkpoint may weigh.
        stall_ms: a run without progress for this long has failed.
        wall_ms: the longest a run may take.
    """

    job: Bytes32
    name: Line
    package_root: Bytes32
    package_bytes: Uint64
    entry: Line
    shards: Uint32
    workers: Uint32
    parameters: tuple[Parameter, ...]
    memory_bytes: Uint64
    scratch_bytes: Uint64
    output_bytes: Uint64
    state_bytes: Uint64
    stall_ms: DurationMs
    wall_ms: DurationMs

    @property
    def package(self) -> BlobRef:
        """The job's directory as a blob."""
        return BlobRef(root=self.package_root, size_bytes=self.package_bytes)
