"""All attacks at once in one sandbox, and an honest run beside it in the same executor: that one finishes properly."""

import dataclasses
import os
import time
from pathlib import Path

import pytest
import trio
from integration.attack_scene import an_attack, ended, found_by
from integration.sandbox_harness import LIMITS, a_room, guard_and_launcher, need_sandbox
from integration.test_escape_alone import NODES, OWN, SECRETS, SWITCHES
from integration.test_escape_neighbours import (
    VICTIM,
    a_victim,
    check_the_victim,
    facts_of_the_victim,
    host_pids_of,
    let_the_victim_end,
)

from hansa.scheduler.run import RunFinished, RunOutput

MODULES = ["kernel_doors", "rooms_edges", "neighbours", "appetites"]
ATTACKER = b"a" * 32
WATCHED = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname",
    "/proc/sys/vm/swappiness", "/proc/sys/kernel/sysrq", "/proc/self/oom_score_adj",
)  # fmt: skip

pytestmark = pytest.mark.slow


def test_everything_at_once_hurts_neither_the_host_nor_the_run_beside_it(tmp_path):
    need_sandbox()
    before = {path: Path(path).read_text() for path in WATCHED if Path(path).exists()}
    devices = {
        entry.name: entry.lstat().st_mode for entry in Path("/dev").iterdir() if not entry.name.startswith("loop")
    }
    offset_s = time.time() - time.monotonic()

    async def act():
        async with a_room() as room:
            await room.executor.start(a_victim(tmp_path / "victim", "hansa-together", 815))
            told = await facts_of_the_victim(room)
            pids = host_pids_of(guard_and_launcher(os.getpid())[1])
            facts = {
                "secrets": list(SECRETS),
                "switches": [*SWITCHES, *(f"/dev/{name}" for name in NODES)],
                "places": ["/", "/usr", "/etc", "/dev", "/opt", "/job", "/run", "/proc"],
                "own": sorted(OWN),
                "host_pids": [1],
                "ports": told["ports"],
                "addresses": ["192.0.2.2"],
                "abstract": ["hansa-together"],
                "sockets": ["/run/hansa/launcher.sock"],
                "marker": "hansa-together",
                "key": 815,
                "pids": pids,
            }
            limits = dataclasses.replace(LIMITS, output_bytes=LIMITS.scratch_bytes)
            changes = {"run": ATTACKER, "entry": "everything.py:main", "limits": limits}
            order = an_attack(tmp_path / "attacker", MODULES, facts, **changes)
            await room.executor.start(order)
            attacked = await ended(room, ATTACKER, 150)
            return room, attacked, await let_the_victim_end(room)

    room, attacked, honest = trio.run(act)
    check_the_victim(room, honest)
    assert isinstance(attacked, RunFinished), attacked
    assert {event.path for event in room.events if isinstance(event, RunOutput) and event.run == VICTIM} == {"end.json"}
    assert "sound.txt" in {event.path for event in room.events if isinstance(event, RunOutput)}
    assert len(room.log) <= 2 * LIMITS.log_bytes
    assert {path: Path(path).read_text() for path in before} == before
    assert modes_of_devices() == devices
    assert abs(time.time() - time.monotonic() - offset_s) < 1, "nobody moved the clock"
    with pytest.raises(AssertionError):
        found_by(room, b"nobody" * 5)


def modes_of_devices():
    """Who may do what with each; loop devices come and go."""
    return {entry.name: entry.lstat().st_mode for entry in Path("/dev").iterdir() if not entry.name.startswith("loop")}
