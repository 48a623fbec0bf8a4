"""The guards by themselves: who is admitted, who pays for memory, and what a failing task ends."""

import io

import pytest
import trio
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.tools.anyio_service import Service

from hansa.node.network import libp2p_guards
from hansa.node.network.libp2p_budget import ReceiveBudget
from hansa.node.network.libp2p_guards import Faults, guarded_service
from hansa.node.network.libp2p_pubsub import Bucket


class Fragile(Service):
    """A service with a task that fails once, and one that should run for ever and fails twice."""

    def __init__(self) -> None:
        self.daemon_runs = 0
        self.lives = trio.Event()

    async def run(self) -> None:
        self.manager.run_task(self.fails)
        self.manager.run_daemon_task(self.fails_twice)
        await self.manager.wait_finished()

    async def fails(self) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("on a peer's bytes")

    async def fails_twice(self) -> None:
        await trio.lowlevel.checkpoint()
        self.daemon_runs += 1
        if self.daemon_runs < 3:
            raise ValueError("on a peer's bytes")
        self.lives.set()
        await trio.sleep_forever()


class Said:
    """What a stranger has said, taken as a stream is: never more than there is."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    @property
    def taken(self) -> int:
        return self._data.tell()

    async def read(self, most: int) -> bytes:
        return self._data.read(most)


@pytest.mark.trio
async def test_a_line_of_the_negotiation_is_at_most_as_long_as_allowed():
    longest = libp2p_guards.MAX_HEADER_BYTES

    def said(length: int) -> Said:
        return Said(bytes([length & 0x7F | 0x80, length >> 7]) + b"a" * (length - 1) + b"\n")

    assert await libp2p_guards.read_header_line(said(longest)) == "a" * (longest - 1)
    for length in (longest + 1, (1 << 14) - 1):
        with pytest.raises(MultiselectCommunicatorError, match="longer than allowed"):
            await libp2p_guards.read_header_line(said(length))


@pytest.mark.trio
async def test_a_length_in_the_negotiation_that_never_ends_is_read_for_three_bytes_at_most():
    endless = Said(b"\x80" * 1_000)
    with pytest.raises(MultiselectCommunicatorError, match="longer than allowed"):
        await libp2p_guards.read_header_line(endless)
    assert endless.taken <= 3


@pytest.mark.trio
@pytest.mark.parametrize("said", [b"", b"\x80", b"\x05", b"\x05abc"])
async def test_who_hangs_up_within_a_line_of_the_negotiation_has_hung_up_and_nothing_else(said):
    with pytest.raises(MultiselectCommunicatorError, match="closed while negotiating"):
        await libp2p_guards.read_header_line(Said(said))


@pytest.mark.trio
async def test_a_task_that_fails_ends_nothing_else_and_a_lasting_one_is_started_again(monkeypatch):
    monkeypatch.setattr(libp2p_guards, "RESTART_S", 0.01)
    faults, service = Faults(), Fragile()
    async with guarded_service(service, faults):
        with trio.fail_after(2):
            await service.lives.wait()
    assert faults.counters["fragile.task_failed"] == 3


class Holder:
    def __init__(self) -> None:
        self.why = None

    def abort(self, why: str | None = None) -> None:
        self.why = why


def test_memory_beyond_its_part_costs_the_holder_and_beyond_the_whole_the_one_who_holds_most():
    budget = ReceiveBudget(100, 150)
    big, small = Holder(), Holder()
    budget.take(big, 90)
    budget.take(small, 61)
    assert big.why is not None
    assert small.why is None
    budget.forget(big)
    budget.take(small, 40)
    assert small.why is not None
    budget.give_back(small, 101)
    assert budget.held_bytes == 0


@pytest.mark.trio
async def test_a_bucket_gives_twice_its_rate_at_once_and_its_rate_over_time(autojump_clock):
    bucket = Bucket(10)
    assert sum(bucket.take() for _ in range(50)) == 20
    await trio.sleep(1)
    assert sum(bucket.take() for _ in range(50)) == 10


def test_a_fault_is_written_down_once_for_each_kind_and_counted_always(caplog):
    faults = Faults()
    for _ in range(10):
        faults.report("serve.handler_failed", KeyError("x"))
    for number in range(1000):
        faults.report(f"many.{number}", KeyError("x"))
    assert faults.counters["serve.handler_failed"] == 10
    assert len(caplog.records) == libp2p_guards.MAX_REPORTS
