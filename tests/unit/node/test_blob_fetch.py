"""The list of chunks that several sources take from: nothing is lost, nothing is brought twice, all is told."""

import random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.storage.blob_fetch import LackingChunks


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
