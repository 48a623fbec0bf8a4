"""The diagrams in the documentation are those of the code."""

import importlib
import pkgutil
from pathlib import Path

import pytest
from kit.print_state_machines import MACHINES, page

import hansa.market
import hansa.node
import hansa.scheduler
from hansa.market.machine import Table
from hansa.node.engine.state import TERMINAL

PAGE = Path(__file__).resolve().parents[3] / "docs" / "state-machines.md"
TABLES = [table for table, _ in MACHINES]


def test_the_page_is_fresh():
    hint = "python tests/kit/print_state_machines.py > docs/state-machines.md"
    assert PAGE.read_text() == page(), f"write it anew: {hint}"


def test_every_machine_is_on_the_page():
    found = {
        id(value)
        for package in (hansa.market, hansa.scheduler)
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        for value in vars(importlib.import_module(module.name)).values()
        if isinstance(value, Table)
    }
    assert found <= {id(table) for table in TABLES}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_phase_can_be_reached_and_left_or_is_an_end(table):
    phases = {phase for phase, _ in table.allowed} | set().union(*table.allowed.values())
    reached = {table.start}
    while more := set().union(*(after for (at, _), after in table.allowed.items() if at in reached)) - reached:
        reached |= more
    assert reached >= phases
    stuck = {
        at
        for at in phases - table.terminal
        if not any(a == at and after - {at} for (a, _), after in table.allowed.items())
    }
    assert not stuck
    for (at, _), after in table.allowed.items():
        assert at not in table.terminal or after - {at} <= table.terminal, f"{at} is no end"


def test_what_the_state_keeps_as_ended_is_what_the_tables_call_so():
    assert {phase for table in TABLES if table.name != "node.peers" for phase in table.terminal} == TERMINAL
