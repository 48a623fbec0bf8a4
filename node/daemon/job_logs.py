"""What the shards of a buyer's jobs printed: one file a shard, bounded, read back line by line."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hansa.node.engine.logs import log_line, warn
from hansa.node.storage.disk_faults import in_words
from hansa.proto.units import UnixMs

MOST_BYTES = 32 << 20
"""Of one shard's output. The rest is counted as dropped; the job's own outputs are the place for more."""

LONGEST_LINE_CHARS = 4096
"""Of one line, as it is read back. A job that never ends its lines is cut."""

Entry = dict[str, Any]


class JobLogs:
    """Files below one directory. A log is not worth an fsync, nor a run or a daemon: what cannot be kept is counted."""

    def __init__(self, directory: Path) -> None:
        """Keep logs in ``directory``."""
        self._directory = directory
        self._fails = False
        self.counters: Counter[str] = Counter()

    def _path(self, job: bytes, shard: int) -> Path:
        return self._directory / job.hex() / f"shard-{shard}.jsonl"

    def append(self, job: bytes, shard: int, text: str, at_ms: UnixMs) -> None:
        """Keep a piece of output, or count it as dropped."""
        path, size_bytes = self._path(job, shard), None
        line = json.dumps({"shard": shard, "at_ms": at_ms, "text": text}) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            size_bytes = path.stat().st_size if path.exists() else 0
            if size_bytes + len(line) > MOST_BYTES:
                self.counters["job logs: more than is kept of a shard"] += 1
                return
            with path.open("a") as file:
                file.write(line)
        except OSError as fault:
            if size_bytes is not None:
                with contextlib.suppress(OSError):
                    os.truncate(path, size_bytes)  # half a line would spoil the next one
            self.counters["job logs: could not be written"] += 1
            if not self._fails:
                warn(f"what jobs print is not kept as long as this lasts: {in_words(fault)}")
            self._fails = True
            return
        if self._fails:
            log_line("what jobs print is kept again")
        self._fails = False

    def tail(self, job: bytes, shards: Sequence[int]) -> "Tail":
        """What these shards printed, to be read line by line from the beginning."""
        return Tail([(shard, self._path(job, shard)) for shard in shards])


class Tail:
    """A place in each shard's file. A line may have come in several pieces, and a piece may hold several lines."""

    def __init__(self, files: Sequence[tuple[int, Path]]) -> None:
        """Stand at the beginning of each file."""
        self._files = files
        self._places: dict[int, int] = {}
        self._begun: dict[int, Entry] = {}

    def lines(self, *, last: bool) -> Iterator[Entry]:
        """The lines that were completed since the call before. The ``last`` call gives what has no end, too."""
        for shard, path in self._files:
            if path.exists():
                yield from self._new_lines(shard, path)
        if last:
            yield from (entry for entry in self._begun.values() if entry["text"])
            self._begun.clear()

    def _new_lines(self, shard: int, path: Path) -> Iterator[Entry]:
        with path.open("rb") as file:
            file.seek(self._places.get(shard, 0))
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                self._places[shard] = file.tell()
                entry: Entry = json.loads(raw)
                before = self._begun.pop(shard, None)
                at_ms, text = (before["at_ms"], before["text"]) if before else (entry["at_ms"], "")
                *whole, rest = (text + entry["text"]).split("\n")
                for line in whole:
                    yield {"shard": shard, "at_ms": at_ms, "text": line}
                    at_ms = entry["at_ms"]
                while len(rest) > LONGEST_LINE_CHARS:
                    yield {"shard": shard, "at_ms": at_ms, "text": rest[:LONGEST_LINE_CHARS]}
                    rest = rest[LONGEST_LINE_CHARS:]
                if rest:
                    self._begun[shard] = {"shard": shard, "at_ms": at_ms, "text": rest}
