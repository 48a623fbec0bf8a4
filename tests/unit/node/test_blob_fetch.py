"""The list of chunks that several sources take from: nothing is lost, nothing is brought twice, all is told."""

import random
from collections import deque
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.storage.blob_fetch import ChunkFetch, LackingChunks, Sources
from hansa.node.storage.line_meter import LineMeter


@given(st.sets(st.integers(0, 60)), st.integers(0, 2**32))
def test_whatever_is_taken_given_back_and_brought_each_chunk_is_brought_once(wanted, seed):
    chance = random.Random(seed)
    told: list[int] = []
    brought: list[int] = []

    async def story() -> None:
        lacking = LackingChunks(sorted(wanted), told.append)
        underway: list[range] = []
        while not lacking.is_over:
            if lacking.has_waiting and (not underway or chance.random() < 0.6):
                most = chance.randint(1, 16)
                run = lacking.take(most)
                assert 0 < len(run) <= most
                underway.append(run)
                continue
            assert underway, "chunks are waiting or underway until it is over"
            run = underway.pop(chance.randrange(len(underway)))
            come = chance.randint(0, len(run))
            for index in run[:come]:
                brought.append(index)
                lacking.done(10)
            if run[come:]:
                lacking.give_back(run[come:])
        assert not underway
        assert not lacking.take(1)
        lacking.tell()

    trio.run(story)
    assert sorted(brought) == sorted(wanted)
    assert sum(told) == 10 * len(wanted)


@pytest.mark.trio
async def test_whoever_waits_hears_of_what_a_thread_gives_back_and_of_the_end():
    lacking = LackingChunks([0, 1], lambda _bytes: None)
    run = lacking.take(2)
    for what in (lambda: lacking.give_back(run), lambda: [lacking.done(1) for _ in lacking.take(2)]):
        async with trio.open_nursery() as nursery:
            with trio.fail_after(20):
                nursery.start_soon(lacking.change)
                await trio.testing.wait_all_tasks_blocked()
                await trio.to_thread.run_sync(what)
    assert lacking.is_over


@pytest.mark.trio
async def test_of_many_sources_eight_are_asked_at_once_and_another_when_one_is_dropped():
    asked: list[str] = []
    sources = Sources(live=deque(f"peer {number}" for number in range(20)))
    unwilling = trio.Event()

    async def ask(peer_id: str, _index: int) -> bytes | None:
        asked.append(peer_id)
        if peer_id != "peer 3":
            await trio.sleep_forever()
        await unwilling.wait()
        sources.drop(peer_id, "it has none")
        return None

    fetch = ChunkFetch(
        SimpleNamespace(missing=lambda: list(range(100))),
        LackingChunks(list(range(100)), lambda _bytes: None),
        sources,
        ask=ask,
        lied=lambda _peer_id: None,
        bulk=None,
        chunk_s=1.0,
        meter=LineMeter(),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch.run)
        await trio.testing.wait_all_tasks_blocked()
        assert set(asked) == {f"peer {number}" for number in range(8)}
        unwilling.set()
        await trio.testing.wait_all_tasks_blocked()
        assert set(asked) == {f"peer {number}" for number in range(9)}
        nursery.cancel_scope.cancel()
