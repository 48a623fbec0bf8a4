"""The form that every behaviour in Hansa has: a pure machine with a table that is its law.

A machine is a frozen state with a ``phase``, and a pure function ``advance(state, event) -> Step``. Its table says
which event is known in which phase and where it may lead. Late and repeated events are normal between machines that
crash and networks that repeat, so an event that the table does not know is ignored with a reason and counted, never
raised. A transition that leaves the table is a fault of ours and stops the daemon.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar


class Phased(Protocol):
    """Any state that a table can rule over."""

    @property
    def phase(self) -> str:
        """The name of the phase, as it stands in the table and in the diagram."""


State = TypeVar("State", bound=Phased)

SAME = "same"
"""In a row of a table: the phase does not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[State]):
    """What came of one event: the next state, the orders to the world, or the reason why nothing happened."""

    state: State
    effects: tuple[Any, ...] = ()
    ignored: str | None = None


def ignore(state: State, reason: str) -> Step[State]:
    """Nothing happens, and the reason is counted under its own text (so keep it short and constant)."""
    return Step(state=state, ignored=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Generic[State]):
    """The law of one machine.

    Attributes:
        name: the machine's name in counters and diagrams, e.g. ``"market.sale"``.
        start: the phase in which it is born.
        terminal: phases that it never leaves. Known events may still come there and be answered again.
        allowed: ``{(phase, event type): phases that may follow}``.
    """

    name: str
    start: str
    terminal: frozenset[str]
    allowed: Mapping[tuple[str, type], frozenset[str]]

    def advance(self, state: State, event: object, react: Callable[[State, Any], Step[State]]) -> Step[State]:
        """Look the event up, let ``react`` answer it, and hold the answer against the table."""
        allowed = self.allowed.get((state.phase, type(event)))
        if allowed is None:
            return ignore(state, f"{type(event).__name__} while {state.phase}")
        step = react(state, event)
        # What is ignored stays where it is, and that needs no row: a peer's nonsense must never stop the daemon.
        assert step.ignored is not None or step.state.phase in allowed, (
            f"{self.name}: {type(event).__name__} led from {state.phase} to {step.state.phase}, which its table forbids"
        )
        assert step.ignored is None or step.state == state, f"{self.name}: an ignored event changed the state"
        return step

    def as_mermaid(self) -> str:
        """The table as a Mermaid state diagram; ``docs/state-machines.md`` is made of these."""
        arrows: dict[tuple[str, str], list[str]] = {}
        for (phase, event_type), following in self.allowed.items():
            for after in sorted(following - {phase}):
                arrows.setdefault((phase, after), []).append(event_type.__name__)
        lines = ["stateDiagram-v2", f"    [*] --> {self.start}"]
        lines += [f"    {a} --> {b}: {', '.join(sorted(names))}" for (a, b), names in sorted(arrows.items())]
        lines += [f"    {phase} --> [*]" for phase in sorted(self.terminal)]
        return "\n".join(lines)


def rows(
    *entries: tuple[str | Iterable[str], type | Iterable[type], str | Iterable[str]],
) -> dict[tuple[str, type], frozenset[str]]:
    """Spell a table as rows of ``(phase or phases, event type or types, following phase or phases)``."""
    table: dict[tuple[str, type], frozenset[str]] = {}
    for phases, event_types, following in entries:
        for phase in [phases] if isinstance(phases, str) else phases:
            for event_type in [event_types] if isinstance(event_types, type) else event_types:
                assert (phase, event_type) not in table, f"the table names {phase}, {event_type.__name__} twice"
                after = [following] if isinstance(following, str) else following
                table[phase, event_type] = frozenset(phase if name == SAME else name for name in after)
    return table
