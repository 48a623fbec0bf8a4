"""Jobs that wait for money, said again, so that nobody forgets them: at once, after an hour, and then ever more seldom.

Nothing here moves money or wakes a job. It is said in the log, and counted for those who look at figures.
"""

from dataclasses import dataclass
from typing import Any, Final

from hansa.node.api.views import money_warning
from hansa.node.engine.state import NodeState
from hansa.proto.units import UnixMs

FIRST_PAUSE_MS: Final = 3_600_000
LONGEST_PAUSE_MS: Final = 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    next_ms: UnixMs
    pause_ms: int


def jobs_that_wait(state: NodeState) -> list[dict[str, Any]]:
    """Each job of this node's that could go on, were there more money: its id, its name, and what to do."""
    return [
        {"job": key.hex(), "name": job.spec.name, "warning": money_warning(state, job)}
        for key, job in state.jobs.live.items()
        if job.waits_for_money
    ]


class MoneyReminders:
    """What was said of whom, and when it is due again."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self._said: dict[str, _Said] = {}

    def due(self, state: NodeState, at_ms: UnixMs) -> list[str]:
        """The lines to be said now. A job that went on, and waits again, is said at once."""
        waiting = jobs_that_wait(state)
        self._said = {view["job"]: self._said[view["job"]] for view in waiting if view["job"] in self._said}
        lines = []
        for view in waiting:
            said = self._said.get(view["job"])
            if said is not None and at_ms < said.next_ms:
                continue
            pause_ms = min(LONGEST_PAUSE_MS, 2 * said.pause_ms) if said is not None else FIRST_PAUSE_MS
            self._said[view["job"]] = _Said(next_ms=at_ms + pause_ms, pause_ms=pause_ms)
            lines.append(f"job {view['job'][:12]}: {view['warning']}")
        return lines
