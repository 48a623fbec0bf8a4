"""Two runs at once on one provider: what the one has the other neither sees nor reaches, and it goes on undisturbed."""

import json
import os
import secrets
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from integration.attack_scene import an_attack, ended, found_by, outputs_of
from integration.sandbox_harness import LIMITS, a_room, guard_and_launcher, need_sandbox, parent_of, sandbox_report

from hansa.node.isolation import process_tree
from hansa.proto.tensors import encode_state
from hansa.proto.workload import Parameter
from hansa.scheduler.run import RunFinished, RunSynced

VICTIM, ATTACKER = b"v" * 32, b"a" * 32


def a_victim(directory, marker, key):
    """The order for the honest run."""
    # It lasts as long as all that is done beside it, which on a busy machine is minutes.
    limits = replace(LIMITS, wall_ms=600_000)
    order = an_attack(directory, [], {}, run=VICTIM, entry="victim.py:main", limits=limits)
    parameters = (Parameter(name="marker", value=json.dumps(marker)), Parameter(name="key", value=json.dumps(key)))
    return replace(order, parameters=parameters)


async def facts_of_the_victim(room):
    """What it said of itself, once it waits for its round."""
    with trio.fail_after(60):
        while not any(isinstance(event, RunSynced) for event in room.events) or "FACTS" not in room.log:  # noqa: ASYNC110
            await trio.sleep(0.05)
    return json.loads(room.log.partition("FACTS")[2].partition("\n")[0])


async def let_the_victim_end(room):
    """Answer its round."""
    await room.executor.deliver_round(VICTIM, 0, room.blobs.put_bytes(encode_state({"x": 2.0})))
    return await ended(room, VICTIM, 60)


def check_the_victim(room, last):
    """It finished as it would have alone."""
    assert isinstance(last, RunFinished), last
    end = json.loads(outputs_of(room, VICTIM)["end.json"])
    steps = end.pop("steps")
    assert steps > 20
    assert end == {"files": [True] * 3, "memory": True, "children": [True, True], "connections": 0, "answer": 2.0}


def host_pids_of(launcher):
    """Every process in the only sandbox, as the host sees it; neither of bubblewrap's."""
    (outer,) = [pid for pid in process_tree.descendants(launcher) if parent_of(pid) == launcher]
    return process_tree.descendants(outer)[2:]


def uids_of_the_rooms():
    """Whose the two sandboxes are on the host; nothing before both are there."""
    launcher = guard_and_launcher(os.getpid())[1]
    outer = [pid for pid in process_tree.descendants(launcher) if parent_of(pid) == launcher]
    uids = [Path(f"/proc/{pid}").stat().st_uid for pid in outer]
    # What was forked a moment ago has not become anybody yet.
    return uids if len(uids) == 2 and (0 not in uids or os.getuid() != 0) else None


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    need_sandbox()
    directory = tmp_path_factory.mktemp("neighbours")
    marker, key = f"hansa-victim-{secrets.token_hex(8)}", secrets.randbelow(1 << 30) + 1

    async def act():
        async with a_room() as room:
            await room.executor.start(a_victim(directory / "victim", marker, key))
            told = await facts_of_the_victim(room)
            assert told["queue"]
            assert told["segment"] or not sandbox_report().limits["memory"].startswith("cgroup")
            pids = host_pids_of(guard_and_launcher(os.getpid())[1])
            facts = {"marker": marker, "key": key, "ports": told["ports"], "pids": pids}
            attack = an_attack(directory / "attacker", ["neighbours"], facts, run=ATTACKER)
            await room.executor.start(attack)
            both = None
            with trio.move_on_after(60):
                while not (both := uids_of_the_rooms()):  # noqa: ASYNC110 - nothing tells it
                    await trio.sleep(0.05)
            await ended(room, ATTACKER)
            last = await let_the_victim_end(room)
            return room, facts, last, both

    return trio.run(act)


@pytest.fixture(scope="module")
def found(scene):
    return found_by(scene[0], ATTACKER)


def test_the_neighbour_finishes_undisturbed(scene):
    room, _facts, last, _uids = scene
    check_the_victim(room, last)


def test_there_was_something_to_reach(scene):
    _room, facts, _last, _uids = scene
    assert len(facts["ports"]) >= 3, "its own server and Ray's"
    assert len(facts["pids"]) >= 8


@pytest.mark.skipif(os.getuid() != 0, reason="only a launcher that is root gives each run a uid of its own")
def test_each_run_has_a_uid_of_its_own(scene):
    uids = scene[3]
    assert len(set(uids)) == 2
    assert 0 not in uids


def test_its_files_are_not_seen(found):
    assert found["neighbours_files"] == []


def test_its_ray_cluster_is_not_reached(found):
    assert found["neighbours_ray_sessions"] == 1
    assert found["neighbours_ports"] == []


def test_its_sockets_are_not_reached(found):
    assert found["neighbours_abstract_socket"] == "ECONNREFUSED"
    assert found["neighbours_socket_file"] == "ENOENT"


def test_its_shared_memory_and_its_queues_are_not_there(found):
    assert found["neighbours_shared_memory"] in ("ENOENT", "EPERM"), "EPERM where it is refused altogether"
    assert found["neighbours_message_queue"] == "ENOENT"


def test_its_processes_are_neither_listed_nor_signalled(found):
    assert found["neighbours_by_name"] == []
    assert found["neighbours_signalled"] == ["ESRCH"]
    assert found["neighbours_descriptors"] == ["ESRCH"]
    assert found["neighbours_limits"] == ["ESRCH"]
    assert found["neighbours_priorities"] == ["ESRCH"]


def test_its_memory_is_not_read_and_its_processes_are_not_traced(found):
    assert found["neighbours_memory"] == ["ENOENT"]
    assert found["neighbours_rooms"] == ["ENOENT"]
    assert found["neighbours_memory_by_call"] == ["EPERM"]
    assert found["neighbours_traced"] == ["EPERM"]
