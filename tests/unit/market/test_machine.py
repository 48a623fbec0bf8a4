"""The form of every machine: the table is the law."""

from dataclasses import dataclass, replace

import pytest

from hansa.market.machine import SAME, Step, Table, ignore, rows


@dataclass(frozen=True)
class Door:
    phase: str = "shut"
    count: int = 0


class Pushed: ...


class Locked: ...


TABLE = Table(
    name="door",
    start="shut",
    terminal=frozenset({"locked"}),
    allowed=rows(("shut", Pushed, ("open", "shut")), (("open", "shut"), Locked, "locked"), ("open", Pushed, SAME)),
)


def test_an_event_that_the_table_does_not_know_is_ignored_and_named():
    step = TABLE.advance(Door(phase="locked"), Pushed(), lambda *_: pytest.fail("nobody asks"))
    assert (step.state, step.effects, step.ignored) == (Door(phase="locked"), (), "Pushed while locked")


def test_a_step_that_leaves_the_table_stops_the_daemon():
    with pytest.raises(AssertionError, match="door: Pushed led from shut to locked, which its table forbids"):
        TABLE.advance(Door(), Pushed(), lambda state, _: Step(state=replace(state, phase="locked")))


def test_an_ignored_event_changes_nothing():
    with pytest.raises(AssertionError, match="an ignored event changed the state"):
        TABLE.advance(Door(), Pushed(), lambda state, _: replace(ignore(state, "why"), state=replace(state, count=1)))


def test_same_means_the_phase_stays():
    assert TABLE.allowed["open", Pushed] == {"open"}


def test_to_ignore_an_event_needs_no_row_of_its_own():
    step = TABLE.advance(Door(), Locked(), lambda state, _: ignore(state, "no key"))
    assert (step.state.phase, step.ignored) == ("shut", "no key")


def test_a_table_names_each_pair_once():
    with pytest.raises(AssertionError, match="twice"):
        rows(("shut", Pushed, "open"), (("open", "shut"), Pushed, "shut"))


def test_the_diagram_shows_every_change_of_phase_and_no_other():
    assert TABLE.as_mermaid().splitlines() == [
        "stateDiagram-v2",
        "    [*] --> shut",
        "    open --> locked: Locked",
        "    shut --> locked: Locked",
        "    shut --> open: Pushed",
        "    locked --> [*]",
    ]
