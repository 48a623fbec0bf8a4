"""Control groups of version 2 as a launcher finds them that one before it has left, in the kernel's own hierarchy."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hansa.node.isolation import cgroups
from hansa.node.isolation.cgroups import LEAF, PREFIX, GroupLimits, GroupV2, remove_leftovers

HIERARCHIES = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


@pytest.fixture
def handed_on():
    """A group that was handed to a launcher, in a hierarchy of version 2; it goes with all that is in it."""
    root = next((place for place in HIERARCHIES if place.joinpath("cgroup.procs").exists()), None)
    if root is None:
        pytest.skip("there are no control groups of version 2 here")
    base = root / f"of-a-test-{os.getpid()}"
    try:
        base.mkdir()
        (base / LEAF).mkdir()
    except OSError as fault:
        pytest.skip(f"this user may make no control groups: {fault}")
    try:
        yield root, base
    finally:
        deadline = time.monotonic() + 10
        while base.exists() and time.monotonic() < deadline:
            for place in (*base.iterdir(), base):
                if place.is_dir():
                    with contextlib.suppress(OSError):
                        (place / "cgroup.kill").write_text("1")
                    with contextlib.suppress(OSError):
                        place.rmdir()
            time.sleep(0.01)


def gone_pid():
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return process.pid


def removed_from(place, root):
    """Do it as a process that sits there would."""
    if (pid := os.fork()) == 0:
        try:
            (place / "cgroup.procs").write_text(str(os.getpid()))
            remove_leftovers(root)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def frozen_in(group):
    """A process in a group that lets nothing in it compute."""
    process = subprocess.Popen(["/bin/sleep", "60"])
    (group / "cgroup.procs").write_text(str(process.pid))
    (group / "cgroup.freeze").write_text("1")
    return process


@pytest.mark.parametrize("inside", [LEAF, ""], ids=["a launcher of the same unit", "the unit's first"])
def test_what_a_killed_launcher_left_is_ended_and_taken_away(handed_on, inside):
    """Where the launcher was in its own leaf it looked below that, and found nothing."""
    root, base = handed_on
    left = base / f"{PREFIX}{gone_pid()}-1"
    left.mkdir()
    with frozen_in(left) as process:
        try:
            removed_from(base / inside, root)
            assert process.wait(10) == -signal.SIGKILL
            assert not left.exists()
        finally:
            process.kill()


@pytest.mark.parametrize("taken_away_by", ["its run's end", "the next launcher"])
def test_a_group_in_which_somebody_is_still_dying_is_taken_away_a_moment_later(tmp_path, monkeypatch, taken_away_by):
    """The kernel refuses until then, as it does here for a directory that is not empty."""
    monkeypatch.setattr(cgroups, "_own_paths", lambda: [("", "/")])
    (tmp_path / "cgroup.controllers").touch()
    directory = tmp_path / f"{PREFIX}{gone_pid()}-1"
    group = GroupV2(directory, GroupLimits(memory_bytes=1 << 30, cpu_millis=1000, processes=10))
    waits = []

    def pass_a_moment(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            for file in directory.iterdir():
                file.unlink()

    monkeypatch.setattr(cgroups, "time", SimpleNamespace(sleep=pass_a_moment))
    if taken_away_by == "its run's end":
        group.remove()
    else:
        remove_leftovers(tmp_path)
    assert not directory.exists()
    assert len(waits) == 3


def test_a_group_that_never_empties_holds_nobody_up_for_ever(tmp_path, monkeypatch):
    group = GroupV2(tmp_path / "hansa-1-1", GroupLimits(memory_bytes=1 << 30, cpu_millis=1000, processes=10))
    waits = []
    monkeypatch.setattr(cgroups, "time", SimpleNamespace(sleep=waits.append))
    group.remove()
    assert sum(waits) < 1


def test_what_belongs_to_a_launcher_that_lives_is_left_alone(handed_on):
    root, base = handed_on
    ours = base / f"{PREFIX}{os.getpid()}-1"
    ours.mkdir()
    with frozen_in(ours) as process:
        try:
            removed_from(base / LEAF, root)
            assert process.poll() is None
            assert ours.exists()
        finally:
            (ours / "cgroup.freeze").write_text("0")
            process.kill()
