"""What the shards of a buyer's jobs printed: one file a shard, bounded, read back line by line."""

import json
from collections.abc import Iterator
from pathlib import Path

from hansa.proto.units import UnixMs

MOST_BYTES = 32 << 20
"""Of one shard's output. The rest is counted as dropped; the job's own outputs are the place for more."""


class JobLogs:
    """Files below one directory. A log is not worth an fsync."""

    def __init__(self, directory: Path) -> None:
        """Keep logs in ``directory``."""
        self._directory = directory

    def _path(self, job: bytes, shard: int) -> Path:
        return self._directory / job.hex() / f"shard-{shard}.jsonl"

    def append(self, job: bytes, shard: int, text: str, at_ms: UnixMs) -> None:
        """Keep a piece of output."""
        path = self._path(job, shard)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = json.dumps({"shard": shard, "at_ms": at_ms, "text": text}) + "\n"
        if path.exists() and path.stat().st_size + len(line) > MOST_BYTES:
            return
        with path.open("a") as file:
            file.write(line)

    def read(self, job: bytes, shards: int, after: dict[int, int]) -> Iterator[dict[str, object]]:
        """Lines that came since the last call with the same ``after``, which keeps the place in each shard's file."""
        for shard in range(shards):
            path = self._path(job, shard)
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(after.get(shard, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    after[shard] = after.get(shard, 0) + len(line)
                    yield json.loads(line)
