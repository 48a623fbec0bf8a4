"""Who uses a GPU is told apart: what descends from us, somebody else's program, a desktop."""

import os
from pathlib import Path

import pytest

from hansa.node.devices.gpu_users import CONFIRMED_S, Foreigners, Told, own_processes, strangers, told_cpu_ms
from hansa.node.devices.gpus import GpuProcess


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


def told(*pids: int, at_s: float, cpu_ms: int = 7) -> Told:
    return Told(at_s=at_s, pids=frozenset(pids), cpu_ms=cpu_ms)


def test_what_the_launcher_does_not_know_after_it_was_seen_is_somebody_elses(proc: Path) -> None:
    foreigners = Foreigners()
    assert foreigners.look([computing(900)], [told(900, 901, at_s=1.0)], 1.0) == frozenset(), "the numbers agree"
    assert foreigners.look([computing(900, 999)], [told(900, at_s=2.0)], 2.0) == frozenset(), "it may be just born"
    later_s = 2.0 + CONFIRMED_S
    assert foreigners.look([computing(900, 999)], [told(900, at_s=later_s)], later_s) == frozenset()
    foreign = foreigners.look([computing(900, 999)], [told(900, at_s=later_s + 0.1)], later_s + 0.1)
    assert foreign == {999}
    named = "a process that cannot be seen from here"
    assert strangers(computing(900, 999), {10}, leased=True, foreign=foreign, proc=proc) == named
    assert foreigners.look([computing(900)], [told(900, at_s=9.0)], 9.0) == frozenset()


def test_a_process_that_the_launcher_knows_a_moment_later_is_the_runs() -> None:
    foreigners = Foreigners()
    foreigners.look([computing(900)], [told(900, at_s=1.0)], 1.0)
    assert foreigners.look([computing(900, 901)], [told(900, at_s=2.0)], 2.0) == frozenset()
    assert foreigners.look([computing(900, 901)], [told(900, 901, at_s=5.0)], 5.0) == frozenset()


def test_where_the_numbers_were_never_seen_to_agree_nobody_is_called_a_stranger() -> None:
    foreigners = Foreigners()
    for at_s in (1.0, 3.0, 5.0, 7.0):
        assert foreigners.look([computing(900, 999)], [told(5, 6, at_s=at_s)], at_s) == frozenset()


def test_while_a_run_was_not_told_of_nobody_is_called_a_stranger() -> None:
    foreigners = Foreigners()
    foreigners.look([computing(900)], [told(900, at_s=1.0)], 1.0)
    for at_s in (2.0, 4.0, 6.0):
        assert foreigners.look([computing(900), computing(999)], [told(900, at_s=at_s), None], at_s) == frozenset()


def test_processor_time_that_only_the_launcher_sees_is_by_its_word() -> None:
    assert told_cpu_ms({11: told(11, at_s=0.0, cpu_ms=250), 12: None}) == {11: 250}
