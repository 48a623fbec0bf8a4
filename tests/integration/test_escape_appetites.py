"""A job that takes all it can get: it gets what was leased, and what is memory counts as memory, whoever holds it."""

import dataclasses

import pytest
import trio
from integration.attack_scene import an_attack, ended, found_by, outputs_of
from integration.launcher_without_groups import start_launcher_without_groups
from integration.sandbox_harness import LIMITS, a_room, need_sandbox, sandbox_report

from hansa.scheduler.run import RunFailed, RunLogged

PROCESSES = 600
RUN = b"e" * 32
BOMBS = ("inodes", "nameless_files", "shared_segments", "message_queues", "full_sockets")


def came_of(directory, module, **limits):
    """What one module's attacks came to, with the room and the run's last event."""
    need_sandbox()

    async def act():
        async with a_room() as room:
            facts = {"processes": PROCESSES}
            order = an_attack(directory, [module], facts, run=RUN, limits=dataclasses.replace(LIMITS, **limits))
            await room.executor.start(order)
            return room, await ended(room, RUN)

    return trio.run(act)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return came_of(tmp_path_factory.mktemp("appetites"), "appetites", output_bytes=LIMITS.scratch_bytes)


@pytest.fixture(scope="module")
def found(scene):
    return found_by(scene[0], RUN)


def test_threads_and_forks_end_at_the_limit_of_processes(tmp_path):
    room, last = came_of(tmp_path, "crowds", processes=PROCESSES)
    if isinstance(last, RunFailed):
        assert not sandbox_report().limits["processes"].startswith("cgroup"), last
        assert f"more than {PROCESSES} processes" in last.reason
        return
    found = found_by(room, RUN)
    assert found["threads"][1] == "can't start new thread"
    assert found["threads"][0] < PROCESSES
    assert found["forks_of_forks"][1] == "EAGAIN"
    assert found["forks_of_forks"][0] <= PROCESSES


def test_a_file_cannot_say_that_it_is_larger_than_the_runs_files_may_be(found):
    assert set(found["sparse_files"].values()) == {"EFBIG"}


def test_files_can_be_opened_up_to_a_limit(found):
    count, how = found["open_files"]
    assert how == "EMFILE"
    assert count <= 65_536


def test_limits_cannot_be_raised_from_inside(found):
    assert "done" not in found["limits_raised"].values()


def test_empty_files_are_made_without_harm(found):
    assert all(how in ("done", "ENOSPC") for _count, how in found["empty_files"].values())


def test_of_the_results_only_plain_files_with_plain_names_arrive(scene, found):
    room, _last = scene
    assert found["odd_files_among_the_results"] in ("EXDEV", "EPERM")
    assert found["deep_directories"][1] in ("ENAMETOOLONG", "done", "ENOSPC")
    outputs = outputs_of(room, RUN)
    assert set(outputs) == {"found.json", "file", "hard", "-rf", "a" * 255}
    assert outputs["file"] == outputs["hard"] == b"sound"
    text = "".join(event.text for event in room.events if isinstance(event, RunLogged))
    assert "output left out" in text
    assert "\x1b" not in text


def as_bombs(order):
    """Have the entry be one of the functions at the end of the module, which need none of the attempts' machinery."""
    (order.code / "attempt.py").write_text("def attempt(f): return f\ndef outcome(*_): return None\n")
    (order.code / "appetites.py").rename(order.code / "bombs.py")


@pytest.mark.slow
def test_memory_that_belongs_to_no_process_counts_all_the_same(tmp_path):
    need_sandbox()
    means = sandbox_report().limits["memory"]
    if not means.startswith("cgroup"):
        pytest.skip(f"memory is held here by {means}, which cannot see all of it (docs/known-limits.md)")

    async def act():
        async with a_room() as room:
            for name in BOMBS:
                entry = f"bombs.py:{name}"
                limits = dataclasses.replace(LIMITS, memory_bytes=640 << 20)
                order = an_attack(tmp_path / name, [], {}, run=name.encode().ljust(32), entry=entry, limits=limits)
                as_bombs(order)
                await room.executor.start(order)
            return {name: await ended(room, name.encode().ljust(32), 90) for name in BOMBS}

    last = trio.run(act)
    assert {name: getattr(event, "kind", event) for name, event in last.items()} == dict.fromkeys(
        BOMBS, "out-of-memory"
    )
    assert all(isinstance(event, RunFailed) for event in last.values())


@pytest.mark.parametrize("name", ["nameless_files", "shared_segments", "message_queues", "semaphore_sets"])
def test_where_nobody_counts_such_memory_it_cannot_be_had(tmp_path, name):
    need_sandbox()

    async def act():
        async with a_room(launch=start_launcher_without_groups) as room:
            order = an_attack(tmp_path, [], {}, run=RUN, entry=f"bombs.py:{name}")
            as_bombs(order)
            await room.executor.start(order)
            return await ended(room, RUN, 60)

    last = trio.run(act)
    assert isinstance(last, RunFailed)
    assert last.kind == "user-exception"
    assert "PermissionError" in last.reason
