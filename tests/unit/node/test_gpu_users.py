"""Who uses a GPU is told apart: what descends from us, somebody else's program, a desktop."""

import os
from pathlib import Path

import pytest

from hansa.node.gpu_users import own_processes, strangers
from hansa.node.gpus import GpuProcess


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """1 → 10 (our daemon) → 11 (its sandbox) → 12; 1 → 20 (blender); 1 → 30 (a zombie); 40 (launcher) → 41."""
    tree = ((1, 0, "S", "init"), (10, 1, "S", "hansa"), (11, 10, "S", "bwrap"), (12, 11, "R", "python ) R 1"))
    more = ((20, 1, "R", "blender"), (30, 1, "Z", "gone"), (40, 1, "S", "hansa"), (41, 40, "S", "bwrap"))
    for pid, parent, state, name in (*tree, *more):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) {state} {parent} 0 0\n")
        (tmp_path / str(pid) / "comm").write_text(name + "\n")
    return tmp_path


def computing(*pids: int) -> list[GpuProcess]:
    return [GpuProcess(pid=pid, memory_bytes=1 << 20) for pid in pids]


def test_what_descends_from_us_is_ours_and_so_is_a_run_of_a_launcher_elsewhere(proc: Path) -> None:
    assert strangers(computing(10, 11, 12), {10}, leased=True, proc=proc) == ""
    assert strangers(computing(41), {10, 41}, leased=True, proc=proc) == ""
    assert strangers(computing(41), {10}, leased=True, proc=proc) == "bwrap"


def test_somebody_else_is_named(proc: Path) -> None:
    assert strangers(computing(12, 20), {10}, leased=True, proc=proc) == "blender"


def test_who_has_ended_uses_nothing(proc: Path) -> None:
    assert strangers(computing(30), {10}, leased=False, proc=proc) == ""


def test_who_cannot_be_seen_is_the_runs_where_there_is_one(proc: Path) -> None:
    assert strangers(computing(999), {10}, leased=True, proc=proc) == ""
    assert strangers(computing(999), {10}, leased=False, proc=proc) == "a process that cannot be seen from here"


def test_a_name_of_strange_letters_is_shown_without_them(proc: Path) -> None:
    (proc / "20" / "comm").write_text("\x1b[2Jx\x07" + "y" * 99)
    assert strangers(computing(20), {10}, leased=False, proc=proc) == "[2Jx" + "y" * 28


def test_we_are_ours() -> None:
    assert own_processes({5}) == {5, os.getpid()}
