"""A job takes its runner over and speaks to the daemon in its name: its own run may suffer, nobody else does."""

import itertools
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from integration.attack_scene import an_attack, ended, outputs_of
from integration.sandbox_harness import LIMITS, Room, a_room, need_sandbox
from integration.test_escape_neighbours import (
    VICTIM,
    a_victim,
    check_the_victim,
    facts_of_the_victim,
    let_the_victim_end,
)

from hansa.node.daemon.reduce import reduce_round
from hansa.node.engine.journal import MAX_EVENT_BYTES, NodeEvent
from hansa.node.runs import executor_run
from hansa.proto.codec import decode, encode
from hansa.proto.errors import ProtocolError
from hansa.proto.tensors import decode_state, encode_state
from hansa.proto.workload import Parameter
from hansa.scheduler.run import (
    RunCheckpointed,
    RunEvent,
    RunFailed,
    RunFinished,
    RunLogged,
    RunOutput,
    RunProgressed,
    RunStarted,
    RunStopped,
    RunSynced,
)

DEADLY = (
    "garbage", "two_gigabytes", "array_without_end", "nesting_without_end", "path_outside", "thousand_and_one_files",
    "end_of_another_kind", "daemons_own_words",
)  # fmt: skip
TOGETHER = 4
MOST_FILES = 100
SIGN = "hansa-was-unpickled"


@dataclass
class Scene:
    room: Room
    last: dict[str, RunEvent]
    victim: RunEvent
    descriptors: list[int]
    stopped_after_s: float

    def of(self, name: str, *kinds: type) -> list[Any]:
        return [event for event in self.room.events if event.run == run_of(name) and isinstance(event, kinds)]


def run_of(name):
    return name.encode().ljust(32, b".")


def a_forgery(directory, name, **changes):
    order = an_attack(directory / name, [], {}, run=run_of(name), entry="forger.py:main", **changes)
    return replace(order, parameters=(Parameter(name="forgery", value=json.dumps(name)),))


async def act(directory):
    last, descriptors = {}, []
    async with a_room() as room:
        await room.executor.start(a_victim(directory / "victim", "hansa-beside", 4711))
        await facts_of_the_victim(room)
        names = [*DEADLY, "words", "finished_and_more", "floods", "poisons"]
        for batch in (names[at : at + TOGETHER] for at in range(0, len(names), TOGETHER)):
            for name in batch:
                await room.executor.start(a_forgery(directory, name))
            for name in batch:
                last[name] = await ended(room, run_of(name), 60)
            descriptors.append(len(os.listdir("/proc/self/fd")))  # noqa: PTH208
        # From its own poisoned checkpoint, and from one of the usual form with a state of another.
        (poisoned,) = [event for event in room.events if isinstance(event, RunCheckpointed)][-1:]
        again = a_forgery(directory, "again", checkpoint=poisoned.checkpoint)
        await room.executor.start(again)
        last["again"] = await ended(room, run_of("again"), 60)
        stopped_after_s = await with_a_deaf_one(room, directory)
        victim = await let_the_victim_end(room)
        return Scene(room, last, victim, descriptors, stopped_after_s)


async def with_a_deaf_one(room, directory):
    """A round's result that is never read must hold up neither us nor the run's end."""
    await room.executor.start(a_forgery(directory, "deaf"))
    run = run_of("deaf")
    with trio.fail_after(60):
        while not any(isinstance(event, RunSynced) and event.run == run for event in room.events):  # noqa: ASYNC110
            await trio.sleep(0.05)
    large = room.blobs.put_bytes(bytes(LIMITS.state_bytes))
    with trio.move_on_after(2):
        await room.executor.deliver_round(run, 0, large)
    before = time.monotonic()
    await room.executor.stop(run, grace_ms=500)
    with trio.fail_after(30):
        while run in room.executor.running:  # noqa: ASYNC110
            await trio.sleep(0.02)
    return time.monotonic() - before


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    need_sandbox()
    # Each file that is told is synced to the disk, and a thousand of them say no more than a hundred.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor_run, "MOST_FILES", MOST_FILES)
        return trio.run(act, tmp_path_factory.mktemp("forgeries"))


def test_the_run_beside_finishes_undisturbed(scene):
    check_the_victim(scene.room, scene.victim)
    steps = [event for event in scene.room.events if event.run == VICTIM and isinstance(event, RunProgressed)]
    assert max(after.at_ms - before.at_ms for before, after in itertools.pairwise(steps)) < 30_000


@pytest.mark.parametrize("name", DEADLY)
def test_who_breaks_the_protocol_is_ended_for_it(scene, name):
    last = scene.last[name]
    assert isinstance(last, RunFailed)
    assert last.kind == "protocol", last


def test_an_output_outside_of_its_directory_is_not_told(scene):
    assert scene.of("path_outside", RunOutput) == []


def test_no_more_files_are_told_than_allowed(scene):
    assert len(scene.of("thousand_and_one_files", RunOutput)) == MOST_FILES


def test_last_words_that_would_steer_a_terminal_are_plain_and_short(scene):
    last = scene.last["words"]
    assert isinstance(last, RunFailed)
    assert last.kind == "user-exception"
    assert all(character.isprintable() for character in last.reason)
    assert len(last.reason) <= 4000


def test_nothing_counts_that_is_said_after_the_end(scene):
    assert isinstance(scene.last["finished_and_more"], RunFinished)
    assert scene.of("finished_and_more", RunOutput, RunCheckpointed, RunFailed) == []
    assert scene.room.events.index(scene.last["finished_and_more"]) == max(
        index for index, event in enumerate(scene.room.events) if event.run == run_of("finished_and_more")
    )


def test_a_flood_of_everything_that_is_allowed_ends_as_a_run_like_any_other(scene):
    assert isinstance(scene.last["floods"], RunFinished)
    assert len(scene.of("floods", RunStarted)) == 1
    assert [event.path for event in scene.of("floods", RunOutput)] == ["sound.txt", "sound.txt"]
    assert outputs_of(scene.room, run_of("floods"))["sound.txt"] == b"sound again"
    assert len(scene.of("floods", RunProgressed)) < 200


def test_what_is_told_of_a_flooding_log_is_bounded_and_harmless(scene):
    text = "".join(event.text for event in scene.of("floods", RunLogged))
    assert len(text) <= LIMITS.log_bytes
    assert text.count("the rest is dropped") == 1
    assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e", "\ufeff"} & set(text)


def test_descriptors_that_are_sent_along_do_not_stay_with_us(scene):
    assert max(scene.descriptors) - min(scene.descriptors) < 20


def test_a_pickle_is_bytes_to_everybody(scene):
    assert isinstance(scene.last["poisons"], RunFinished)
    outputs = outputs_of(scene.room, run_of("poisons"))
    assert {"model.pkl", "model.pt", "model.safetensors", ".bashrc", "__init__.py"} == set(outputs)
    (synced,) = scene.of("poisons", RunSynced)
    state = scene.room.blobs.kept[synced.state.root]
    honest = encode_state({"w": 1.0})
    for poison in (*outputs.values(), state):
        with pytest.raises(ProtocolError):
            decode_state(poison)
        reduced = reduce_round(None, [(0, 1.0, poison), (1, 1.0, honest)])
        assert reduced.accepted == (1,)
        assert 0 in reduced.rejected
    for place in (Path(tempfile.gettempdir()), Path("/tmp"), Path.home(), Path.cwd()):
        assert not (place / SIGN).exists()


def test_a_run_from_a_poisoned_checkpoint_fails_in_words_inside_its_own_sandbox(scene):
    last = scene.last["again"]
    assert isinstance(last, RunFailed)
    assert last.kind in ("user-exception", "bad-entry", "bad-state"), last
    assert not Path("/tmp", SIGN).exists()


def test_whatever_was_said_the_journal_can_keep(scene):
    (checkpointed,) = scene.of("poisons", RunCheckpointed)
    assert (checkpointed.round, checkpointed.step) == (2**40, 2**63 - 1)
    for event in scene.room.events:
        if not isinstance(event, RunLogged):  # which is told and not kept
            body = encode(event)
            assert decode(body, NodeEvent, limit_bytes=MAX_EVENT_BYTES) == event


def test_one_that_never_reads_is_stopped_in_time(scene):
    assert scene.stopped_after_s < 10
    assert isinstance(scene.of("deaf", RunStopped, RunFailed)[-1], RunStopped)
