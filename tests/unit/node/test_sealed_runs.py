"""A sealed run in the executor: what its runner says and hears is plain, what reaches the store is not."""
# ruff: noqa: ASYNC110 - what the executor told is in a list, which tells no event

import pytest
import trio
from integration.sandbox_harness import LIMITS, an_order
from unit.node.test_executor import RUN, a_stage

from hansa.node.engine.logs import LOGGER
from hansa.node.runs.executor_end import over_of
from hansa.node.storage.sealing import SealBroken, new_content_key, open_sealed, seal
from hansa.proto import frames
from hansa.proto.blob import BlobRef
from hansa.proto.sealed import sealed_size_bytes
from hansa.proto.tensors import encode_state
from hansa.scheduler.run import RunCheckpointed, RunOutput, RunSynced

pytestmark = pytest.mark.trio
CONTENT = new_content_key()
KEYS = CONTENT.of_shard(0)
WORDS = "nobody is to find these words"


def opened(stage, ref, *keys):
    with open_sealed(stage.room.blobs.reader(ref), keys) as file:
        return file.read()


async def told(stage, kind):
    while not any(isinstance(event, kind) for event in stage.room.events):
        await trio.sleep(0.01)
    return next(event for event in stage.room.events if isinstance(event, kind))


async def frames_until(stage, kind):
    seen = [await stage.next_frame()]
    while not isinstance(seen[-1], kind):
        seen.append(await stage.next_frame())
    return seen


async def test_all_that_a_sealed_run_makes_is_stored_under_its_own_shards_key(tmp_path):
    state = encode_state({"words": WORDS})
    async with a_stage() as stage:
        before = stage.room.blobs.put_bytes(seal(KEYS.own, state))
        await stage.room.executor.start(an_order(tmp_path, "", keys=KEYS, checkpoint=before))
        begin = await stage.furnish()
        assert (begin.has_checkpoint, begin.size_bytes) == (True, len(state))
        (chunk,) = await frames_until(stage, frames.Chunk)
        assert chunk.data == state
        await stage.say(frames.Started())
        await stage.say_with(frames.Sync(round=0, weight=1.0, size_bytes=len(state)), state)
        synced = await told(stage, RunSynced)
        assert synced.state.size_bytes == sealed_size_bytes(len(state))
        assert opened(stage, synced.state, KEYS.own) == state
        mean = stage.room.blobs.put_bytes(seal(KEYS.shared, state))
        await stage.room.executor.deliver_round(RUN, 0, mean)
        assert await stage.next_frame() == frames.RoundResult(round=0, size_bytes=len(state))
        assert (await stage.next_frame()).data == state
        await stage.say_with(frames.Checkpoint(round=1, step=1, size_bytes=len(state)), state)
        assert opened(stage, (await told(stage, RunCheckpointed)).checkpoint, KEYS.own) == state
        await stage.say_with(frames.Output(path="a", size_bytes=len(WORDS)), WORDS.encode())
        output = (await told(stage, RunOutput)).blob
        assert opened(stage, output, KEYS.own) == WORDS.encode()
        with pytest.raises(SealBroken):
            opened(stage, output, KEYS.shared, CONTENT.own(1))
        held = [path.read_bytes() for path in stage.room.blobs.directory.rglob("*") if path.is_file()]
        assert len(held) >= 10
        assert not any(WORDS.encode() in data for data in held)
        await stage.say(frames.Finished())
        await stage.end()


async def test_the_limits_of_a_sealed_run_are_on_what_it_wrote(tmp_path):
    full = bytes(LIMITS.state_bytes)
    async with a_stage() as stage:
        checkpoint = stage.room.blobs.put_bytes(seal(KEYS.own, full))
        await stage.room.executor.start(an_order(tmp_path, "", keys=KEYS, checkpoint=checkpoint))
        assert (await stage.furnish()).size_bytes == LIMITS.state_bytes
        larger = BlobRef(root=b"x" * 32, size_bytes=sealed_size_bytes(LIMITS.state_bytes + 1))
        with pytest.raises(ValueError, match="smaller"):
            await stage.room.executor.deliver_round(RUN, 0, larger)


@pytest.mark.parametrize("data", [b"plain", seal(CONTENT.own(1), b"another shard's")])
async def test_a_checkpoint_that_cannot_be_opened_fails_the_run_and_not_the_daemon(tmp_path, data):
    async with a_stage() as stage:
        ref = stage.room.blobs.put_bytes(data)
        await stage.room.executor.start(an_order(tmp_path, "", keys=KEYS, checkpoint=ref))
        while not stage.room.events:
            await trio.sleep(0.01)
    assert stage.room.events[0].kind == "refused"
    assert "its checkpoint cannot be opened: it is" in stage.room.events[0].reason


async def test_a_seal_that_breaks_on_the_way_in_ends_the_run_in_words(tmp_path):
    sealed = bytearray(seal(KEYS.own, bytes(1 << 20)))
    sealed[-1] ^= 1
    async with a_stage() as stage:
        ref = stage.room.blobs.put_bytes(bytes(sealed))
        await stage.room.executor.start(an_order(tmp_path, "", keys=KEYS, checkpoint=ref))
        await stage.furnish()

        async def read_on():
            while True:
                await stage.next_frame()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on)
            ended = await stage.end()
            nursery.cancel_scope.cancel()
    assert (ended.kind, "cannot be opened: it was changed" in ended.reason) == ("bad-state", True)


async def test_a_round_that_cannot_be_opened_is_not_passed_on(tmp_path):
    async with a_stage() as stage:
        await stage.room.executor.start(an_order(tmp_path, "", keys=KEYS))
        await stage.furnish()
        with pytest.raises(SealBroken, match="it is not sealed"):
            await stage.room.executor.deliver_round(RUN, 0, stage.room.blobs.put_bytes(b"plain" * 100))


async def test_a_broken_seal_is_a_runs_end_and_no_fault_of_ours():
    await trio.lowlevel.checkpoint()
    assert over_of(ExceptionGroup("", [SealBroken("it was changed")])).kind == "bad-state"


async def test_a_fault_of_ours_in_one_run_ends_that_run_and_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    await trio.lowlevel.checkpoint()
    monkeypatch.setattr(LOGGER, "propagate", True)
    over = over_of(ExceptionGroup("", [ZeroDivisionError("by nothing")]))
    assert over.kind == "sandbox-lost"
    assert over.reason == "a fault of the provider's node: ZeroDivisionError"
    assert "by nothing" in caplog.text
