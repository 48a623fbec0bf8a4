"""Whose streams begin and whose handshakes go on when, over many connections."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable

from hansa.node.network.doorway import ACQUAINTED_S
from hansa.node.network.libp2p_connection import GuardedConn
from hansa.node.network.libp2p_guards import BufferedSocket

pytestmark = pytest.mark.trio
STREAMS, CONNECTIONS = 20, 10


class Opened:
    """A connection on which the peer has opened many streams in one piece."""

    peer_id = None

    def __init__(self) -> None:
        self.left = STREAMS

    async def accept_stream(self) -> int:
        await trio.lowlevel.checkpoint()
        if not self.left:
            raise MuxedConnUnavailable("over")
        self.left -= 1
        return self.left


class Counted(GuardedConn):
    """Counts in which turn of the loop each stream begins."""

    begun: Counter[int]
    turn: list[int]

    async def _handle_muxed_stream(self, muxed_stream: Any) -> None:  # noqa: ARG002
        self.begun[self.turn[0]] += 1
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()


async def most_in_a_turn(age_s: float) -> int:
    begun: Counter[int] = Counter()
    turn = [0]
    swarm = SimpleNamespace(turns=trio.StrictFIFOLock())

    async def count_turns() -> None:
        while True:
            turn[0] += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as counting:
        counting.start_soon(count_turns)
        async with trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS):
                connection = Counted(Opened(), swarm)
                connection.begun, connection.turn = begun, turn
                connection.began_at = trio.current_time() - age_s
                nursery.start_soon(connection.start)
        counting.cancel_scope.cancel()
    # A task that was begun is cancelled with its connection before its first step, if that ends at once.
    assert begun.total() >= CONNECTIONS * (STREAMS - 2)
    return max(begun.values())


async def test_passers_by_begin_one_stream_in_a_turn_however_many_connections_they_have():
    assert await most_in_a_turn(0) <= 2, "the turns are counted by a task, before or after the others"


async def test_acquaintances_do_not_wait_for_one_another():
    assert await most_in_a_turn(ACQUAINTED_S + 1) >= CONNECTIONS / 2


class Talks:
    """A socket on which something new lies in each turn."""

    async def read(self, _n: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"x"

    async def write(self, data: bytes) -> None:
        raise NotImplementedError


async def most_pieces_in_a_turn(turns: trio.StrictFIFOLock | None) -> int:
    read: Counter[int] = Counter()
    turn = [0]

    async def count_turns() -> None:
        while True:
            turn[0] += 1
            await trio.lowlevel.checkpoint()

    async def shake_hands() -> None:
        socket = BufferedSocket(Talks(), turns)
        for _ in range(STREAMS):
            assert await socket.read(1) == b"x"
            read[turn[0]] += 1

    async with trio.open_nursery() as counting:
        counting.start_soon(count_turns)
        async with trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS):
                nursery.start_soon(shake_hands)
        counting.cancel_scope.cancel()
    assert read.total() == CONNECTIONS * STREAMS
    return max(read.values())


async def test_of_all_that_shake_hands_one_is_at_work_in_a_turn():
    assert await most_pieces_in_a_turn(trio.StrictFIFOLock()) <= 2, "the turns are counted by a task as well"


async def test_who_needs_no_turn_reads_whenever_there_is_something():
    assert await most_pieces_in_a_turn(None) >= CONNECTIONS / 2
