"""Lives of the library's parts, one after the other: how long is rested between two, and what is no fall at all."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import trio

from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_lives import FIRST_REST_S, LONGEST_REST_S, SOUND_S, Lives

pytestmark = pytest.mark.trio


class Mortal:
    """The parts of one life: they break after so many seconds, or when they are ended, whichever is first."""

    def __init__(self, lasts_s: float) -> None:
        self._lasts_s = lasts_s

    @asynccontextmanager
    async def running(self, _listen: list[object]) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._break)
            yield

    async def _break(self) -> None:
        try:
            await trio.sleep(self._lasts_s)
        finally:
            raise ValueError("something of the library's broke")


def lives(lengths: Iterator[float], begun_s: list[float]) -> tuple[Lives, Faults]:
    faults = Faults()
    made = Lives(
        lambda: Mortal(next(lengths)),
        [],
        faults,
        begin=lambda _stack: begun_s.append(trio.current_time()),
        fell=lambda: None,
    )
    return made, faults


async def test_falls_in_a_row_are_rested_from_ever_longer_until_a_life_has_lasted(autojump_clock):
    begun_s: list[float] = []
    lengths = [1.0] * 10 + [SOUND_S + 1] + [1.0] * 2
    made, _ = lives(iter([*lengths, 1e9]), begun_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.live, [])
        await trio.sleep(1_000)
        nursery.cancel_scope.cancel()
    rests = [after - before - lasted for (before, after), lasted in zip(pairwise(begun_s), lengths, strict=True)]
    in_a_row = [min(LONGEST_REST_S, FIRST_REST_S * 2**number) for number in range(10)]
    assert rests == pytest.approx([*in_a_row, *in_a_row[:3]])


async def test_what_breaks_while_the_node_is_stopped_is_no_fall(autojump_clock):
    made, faults = lives(iter([1e9]), [])
    async with trio.open_nursery() as nursery:
        await nursery.start(made.live, [])
        nursery.cancel_scope.cancel()
    assert (made.restarts, faults.counters) == (0, {})
