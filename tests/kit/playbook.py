"""Transcripts of a machine: events go in with ``>>``, the effects that must come of each are named with ``<<``.

    Playbook(advance, START) >> BidArrived(...) << some(Send, to=PROVIDER)

Every effect must be named, in order, before the next event; ``reaches`` ends the transcript and looks at the state. A
transcript that goes wrong tells the whole story up to there.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Self

from hansa.market.machine import Step


class some:  # noqa: N801 - it reads as a word of the transcript
    """Any value of a class whose named fields are as given (values, or ``some`` again)."""

    def __init__(self, kind: type, /, **wanted: Any) -> None:
        """What must be so; whatever is not named may be anything."""
        self.kind, self.wanted = kind, wanted

    def __eq__(self, other: object) -> bool:
        return isinstance(other, self.kind) and all(getattr(other, name) == want for name, want in self.wanted.items())

    def __hash__(self) -> int:
        return hash(self.kind)

    def __repr__(self) -> str:
        return f"some {self.kind.__name__}({', '.join(f'{name}={want!r}' for name, want in self.wanted.items())})"


class ignored:  # noqa: N801 - it reads as a word of the transcript
    """The event came to nothing, for a reason that starts like this."""

    def __init__(self, reason: str) -> None:
        """The beginning of the reason."""
        self.reason = reason


class Playbook:
    """One transcript, checked as it is written."""

    def __init__(self, advance: Callable[[Any, Any], Step[Any]], state: Any, *, begin: Step[Any] | None = None) -> None:
        """Start from a state, or from what opening the machine answered."""
        self._advance = advance
        self._state = state if begin is None else begin.state
        self._pending: list[Any] = [] if begin is None else list(begin.effects)
        self._ignored: str | None = None
        self._story = [f"   in {self._state.phase}"]

    def _fail(self, why: str) -> None:
        raise AssertionError("\n".join([why, "The story until then:", *self._story]))

    def _expect_nothing_more(self) -> None:
        if self._pending:
            self._fail("Effects that the transcript does not name:\n   " + "\n   ".join(map(_short, self._pending)))
        if self._ignored is not None:
            self._fail(f"The event was ignored, and the transcript does not say so: {self._ignored}")

    def __rshift__(self, event: object) -> Self:
        """The event happens."""
        self._expect_nothing_more()
        self._story.append(f">> {_short(event)}")
        step = self._advance(self._state, event)
        self._state, self._pending, self._ignored = step.state, list(step.effects), step.ignored
        self._story.append(f"   in {step.state.phase}" + (f", ignored: {step.ignored}" if step.ignored else ""))
        self._story += [f"   << {_short(effect)}" for effect in step.effects]
        return self

    def __lshift__(self, expected: object) -> Self:
        """The next effect is this one."""
        if isinstance(expected, ignored):
            if self._ignored is None or not self._ignored.startswith(expected.reason):
                self._fail(f"Expected to be ignored for {expected.reason!r}, and it was: {self._ignored!r}")
            self._ignored = None
        elif not self._pending:
            self._fail(f"Expected an effect, and there is none left: {_short(expected)}")
        elif expected != self._pending[0]:
            self._fail(f"Expected {_short(expected)}\nbut got  {_short(self._pending[0])}")
        else:
            self._pending.pop(0)
        return self

    def reaches(self, phase: str, **wanted: Any) -> Any:
        """The transcript ends here, in this phase, with these fields; answers the state."""
        self._expect_nothing_more()
        if self._state.phase != phase:
            self._fail(f"Expected to reach {phase}, and it is {self._state.phase}")
        for name, want in wanted.items():
            if getattr(self._state, name) != want:
                self._fail(f"Expected {name} = {want!r}, and it is {getattr(self._state, name)!r}")
        return self._state


def _short(value: object, depth: int = 2) -> str:
    """A value on one line: hashes by their first bytes, and nothing too deep."""
    if isinstance(value, bytes) and len(value) > 8:
        return f"{value[:3].hex()}…"
    if is_dataclass(value) and not isinstance(value, type):
        if depth == 0:
            return f"{type(value).__name__}(…)"
        inner = ", ".join(f"{field.name}={_short(getattr(value, field.name), depth - 1)}" for field in fields(value))
        return f"{type(value).__name__}({inner})"
    return repr(value)
