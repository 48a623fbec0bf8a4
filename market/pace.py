"""How a kind of job's rounds go: how large the state is that each brings, and how long shards work between two.

Learned from earlier rounds of jobs of this kind on this node, and stated in ``job.toml`` before there were any. It says
what a slow line costs: once a round, every shard of the gang waits for the state that takes longest.
"""

from dataclasses import dataclass, replace

from hansa.market.track_record import lower_median
from hansa.proto.units import Bytes32, DurationMs, Uint64, UnixMs

KEPT = 7
"""Of so many newest rounds the middle one counts."""
LONGEST_WORK_MS = 7 * 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The rounds of one kind of job.

    Attributes:
        kind: which (``hansa.market.track_record.job_kind``).
        state_bytes: what the newest state weighed.
        works_ms: how long the middle shard of each of the newest rounds worked, the newest last.
        at_ms: when the newest round was.
    """

    kind: Bytes32
    state_bytes: Uint64
    works_ms: tuple[DurationMs, ...]
    at_ms: UnixMs = 0

    @property
    def work_ms(self) -> int:
        """How long shards work between two rounds; at least 1."""
        return max(1, lower_median(self.works_ms))


def with_round(before: Pace | None, measured: Pace) -> Pace:
    """What is known of a kind's rounds with one more."""
    works_ms = (*(before.works_ms if before is not None else ()), *measured.works_ms)[-KEPT:]
    return replace(measured, works_ms=tuple(min(work_ms, LONGEST_WORK_MS) for work_ms in works_ms))
