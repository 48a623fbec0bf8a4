"""What an award buys the running of: the job's code and inputs by their hashes, and how to start it.

The award carries only the workload's digest; the workload itself travels beside it, and the provider checks that the
two agree before it confirms.
"""

from dataclasses import dataclass
from typing import Annotated

from hansa.proto.blob import BlobRef
from hansa.proto.units import AtMost, Bytes32, DurationMs, Line, Note, Uint32, Uint64


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
        package_root: root of the blob with the job's directory, packed (``hansa.node.storage.packages``).
        package_bytes: that blob's size.
        entry: ``"file.py:function"`` inside the package.
        shards: how many shards the whole job has.
        workers: Ray workers that share one shard.
        parameters: handed to the job's code as they are.
        files_root: root of the blob with the encoded ``FileList``; 32 zero bytes if there is none.
        files_bytes: that blob's size.
        fetch_bytes: the most that the listed files of one shard weigh together.
        memory_bytes: main memory of the sandbox.
        shared_memory_bytes: size of its /dev/shm, which counts against the main memory.
        scratch_bytes: room for files.
        egress_bytes: the most that may pass to and from the outside, where the tender asked for that.
        output_bytes: the most that one shard's outputs may weigh.
        state_bytes: the most that one shard's model state or checkpoint may weigh.
        stall_ms: a run without progress for this long has failed.
        wall_ms: the longest a run may take.
        keep_failed_ms: a run that failed stays for so long, to be looked at; the lease's limits go on to hold.
    """

    job: Bytes32
    name: Line
    package_root: Bytes32
    package_bytes: Uint64
    entry: Line
    shards: Uint32
    workers: Uint32
    parameters: tuple[Parameter, ...]
    files_root: Bytes32
    files_bytes: Uint64
    fetch_bytes: Uint64
    memory_bytes: Uint64
    shared_memory_bytes: Uint64
    scratch_bytes: Uint64
    egress_bytes: Uint64
    output_bytes: Uint64
    state_bytes: Uint64
    stall_ms: DurationMs
    wall_ms: DurationMs
    keep_failed_ms: DurationMs

    @property
    def package(self) -> BlobRef:
        """The job's directory as a blob."""
        return BlobRef(root=self.package_root, size_bytes=self.package_bytes)

    @property
    def files(self) -> BlobRef | None:
        """The list of the files beside the package, if there are any."""
        return BlobRef(root=self.files_root, size_bytes=self.files_bytes) if self.files_bytes else None


FILE_INPUT = "input"
FILE_WHEEL = "wheel"
FILE_LOCK = "lock"
FILE_IMAGE = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """One file that a job brings beside its package.

    Attributes:
        kind: ``"input"`` (appears below ``ctx.inputs``), ``"wheel"`` (a Python package of the job's own), ``"lock"``
            (the hash-pinned list of packages; at most one) or ``"image"`` (an OCI archive; at most one).
        path: where it appears, relative and plain; a wheel's or archive's file name.
        blob: its bytes.
        shards: which shards get it; none named means all.
    """

    kind: Line
    path: Line
    blob: BlobRef
    shards: tuple[Uint32, ...]


LARGEST_SIZE_BYTES = (1 << 50) - 1
"""No machine has more memory, or room for files: what is more, or none at all, no sandbox can be told."""
MAX_FILES = 100_000
MAX_FILE_LIST_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileList:
    """Everything that a job brings beside its package; itself a blob, named by the workload.

    Attributes:
        image: an image in a registry, ``"registry/name@sha256:…"``, or empty.
        files: in the order of kind and path.
    """

    image: Note
    files: Annotated[tuple[ListedFile, ...], AtMost(MAX_FILES)]
