"""From a job file to blobs in the daemon's store: the package, the files beside it, and the list that names those.

Every file is hashed here first, and only what the daemon does not have is sent: a data set goes over once, not with
every job.
"""

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hansa.node.faults import ConfigError
from hansa.node.jobs.job_environment import LOCK_NAME
from hansa.node.jobs.job_file import JobFile
from hansa.node.jobs.job_lock import lock_of
from hansa.node.quantities import format_size
from hansa.node.storage.file_lists import heaviest_bytes, read_file_list
from hansa.node.storage.packages import IGNORE_FILE, pack
from hansa.node.storage.sealing import ContentKey, SealingReader
from hansa.proto.blob import CHUNK_BYTES, BlobRef, chunk_hash, root_of
from hansa.proto.codec import encode
from hansa.proto.errors import ProtocolError
from hansa.proto.workload import FILE_IMAGE, FILE_INPUT, FILE_LOCK, FILE_WHEEL, FileList, ListedFile
from hansa.scheduler.job_spec import JobSpec

if TYPE_CHECKING:
    from hansa.node.api.cli_client import DaemonClient

ASKED_AT_ONCE = 2_000
IMAGE_NAME = "image.tar"
LARGEST_IMAGE_BYTES = 64 << 30
SHOWN_FROM_BYTES = 32 << 20
"""What is smaller is there before a bar would be seen."""

Say = Callable[[str], None]


def upload_package(daemon: "DaemonClient", found: JobFile, key: ContentKey | None = None) -> dict[str, Any]:
    """Pack the job's directory and send it, sealed if there is a key; the answer names the blob."""
    entry_file = found.spec.entry.partition(":")[0]
    with tempfile.TemporaryFile() as archive:
        packed = pack(found.directory, archive, left_out=found.left_out)
        if entry_file not in packed.files:
            hint = f"correct {found.directory / IGNORE_FILE}, or take it out of the directory of an input"
            raise ConfigError(f"{entry_file} is left out of the package", hint)
        archive.seek(0)
        return daemon.put_blob(archive if key is None else SealingReader(archive, key.shared))


def upload_files(
    daemon: "DaemonClient", found: JobFile, say: Say, key: ContentKey | None = None
) -> tuple[dict[str, Any] | None, JobSpec]:
    """Send what the job brings beside its package; answer the list's blob and the spec with what a shard fetches.

    With a key all of it is sealed on its way, each file for those shards that get it. Nothing of it is there already.
    """
    with tempfile.TemporaryDirectory() as scratch:
        sources = _files_beside(found, Path(scratch), say)
        if not sources and not found.environment.reference:
            return None, found.spec
        # The place of each blob was taken by an empty one until all of them are known.
        if key is None:
            blobs = _upload(daemon, sorted({source for _, source in sources}), say) if sources else {}
            listed = [replace(file, blob=blobs[source]) for file, source in sources]
        else:
            listed = _upload_sealed(daemon, sources, key, say)
    files = FileList(
        image=found.environment.reference,
        files=tuple(sorted(listed, key=lambda file: (file.kind, file.path, file.shards))),
    )
    data = encode(files)
    try:
        read_file_list(data, found.spec.shards)
    except ProtocolError as fault:
        raise ConfigError(f"the job's files cannot be listed: the list {fault.why}", "see [inputs]") from None
    plain = io.BytesIO(data)
    blob = daemon.put_blob(plain if key is None else SealingReader(plain, key.shared))
    return blob, replace(found.spec, fetch_bytes=heaviest_bytes(files, found.spec.shards))


def _files_beside(found: JobFile, scratch: Path, say: Say) -> list[tuple[ListedFile, Path]]:
    """What goes beside the package, each with where it lies here; the blobs are not known yet."""
    files = [(_listed(FILE_INPUT, file.path, file.shards), file.source) for file in found.inputs]
    environment = found.environment
    lock = lock_of(environment, found.directory, say)
    if lock is not None:
        (scratch / LOCK_NAME).write_text(lock.text)
        files.append((_listed(FILE_LOCK, LOCK_NAME), scratch / LOCK_NAME))
        files += [(_listed(FILE_WHEEL, wheel.name), wheel) for wheel in lock.wheels]
    if environment.archive is not None:
        archive = environment.archive
        if archive.is_dir():
            archive = scratch / IMAGE_NAME
            with archive.open("xb") as written:
                pack(environment.archive, written, limit_bytes=LARGEST_IMAGE_BYTES)
        files.append((_listed(FILE_IMAGE, IMAGE_NAME), archive))
    return files


def _listed(kind: str, path: str, shards: tuple[int, ...] = ()) -> ListedFile:
    return ListedFile(kind=kind, path=path, blob=BlobRef(root=bytes(32), size_bytes=0), shards=shards)


def _upload(daemon: "DaemonClient", sources: list[Path], say: Say) -> dict[Path, BlobRef]:
    total_bytes = sum(source.stat().st_size for source in sources)
    with _progress("hashing", total_bytes) as advance:
        blobs = {source: _hash(source, advance) for source in sources}
    missing = [source for batch in _batches(sources) for source in _missing(daemon, batch, blobs)]
    sent_bytes = sum(blobs[source].size_bytes for source in missing)
    with _progress("sending", sent_bytes) as advance:
        for source in missing:
            with source.open("rb") as content:
                answer = daemon.put_blob(_Watched(content, advance))
            if answer.get("root") != blobs[source].root.hex():
                raise ConfigError(f"{source}: changed while it was sent", "submit again when nobody writes to it")
    here = f", {format_size(total_bytes - sent_bytes)} of it there already" if sent_bytes < total_bytes else ""
    say(f"{len(sources)} file{'s' * (len(sources) != 1)} beside the package, {format_size(total_bytes)}{here}")
    return blobs


def _upload_sealed(
    daemon: "DaemonClient", sources: list[tuple[ListedFile, Path]], key: ContentKey, say: Say
) -> list[ListedFile]:
    listed, total_bytes = [], sum(source.stat().st_size for _, source in sources)
    with _progress("sealing and sending", total_bytes) as advance:
        for file, source in sources:
            # A file of several shards is none of one shard only.
            under = key.own(file.shards[0]) if len(file.shards) == 1 else key.shared
            try:
                with source.open("rb") as content:
                    watched: Any = _Watched(content, advance)
                    answer = daemon.put_blob(SealingReader(watched, under))
            except OSError as fault:
                raise ConfigError(f"{source}: cannot be read: {fault.strerror}", "check its permissions") from None
            blob = BlobRef(root=bytes.fromhex(answer["root"]), size_bytes=answer["size_bytes"])
            listed.append(replace(file, blob=blob))
    if sources:
        say(f"{len(sources)} file{'s' * (len(sources) != 1)} beside the package, {format_size(total_bytes)}, sealed")
    return listed


def _missing(daemon: "DaemonClient", batch: list[Path], blobs: dict[Path, BlobRef]) -> Iterator[Path]:
    named = [{"root": str(blobs[source]), "size_bytes": blobs[source].size_bytes} for source in batch]
    seen: set[BlobRef] = set()
    for index in daemon.post("/v1/blobs/missing", {"blobs": named})["missing"]:
        source = batch[index]
        if blobs[source] not in seen:
            seen.add(blobs[source])
            yield source


def _batches(sources: list[Path]) -> Iterable[list[Path]]:
    return (sources[at : at + ASKED_AT_ONCE] for at in range(0, len(sources), ASKED_AT_ONCE))


def _hash(source: Path, advance: Callable[[int], None]) -> BlobRef:
    hashes, size_bytes = [], 0
    try:
        with source.open("rb") as content:
            while chunk := content.read(CHUNK_BYTES):
                hashes.append(chunk_hash(chunk))
                size_bytes += len(chunk)
                advance(len(chunk))
    except OSError as fault:
        raise ConfigError(f"{source}: cannot be read: {fault.strerror}", "check its permissions") from None
    return BlobRef(root=root_of(size_bytes, hashes), size_bytes=size_bytes)


class _Watched:
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self._file = file
        self._advance = advance

    def read(self, size_bytes: int, /) -> bytes:
        """The next piece."""
        piece = self._file.read(size_bytes)
        self._advance(len(piece))
        return piece


@contextmanager
def _progress(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal's error stream, where there is a terminal and enough to wait for."""
    from rich.console import Console  # noqa: PLC0415 - it takes long to import, and most jobs have nothing to send
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    console = Console(stderr=True)
    if total_bytes < SHOWN_FROM_BYTES or not console.is_terminal:
        yield lambda _size_bytes: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total_bytes)
        yield lambda size_bytes: progress.advance(task, size_bytes)
