"""Whose turn it is to ask a relay for a circuit."""

from collections import Counter

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from hansa.node.network.relay_turns import WAITING, WAITING_ON_HEARSAY, RelayTurns

pytestmark = pytest.mark.trio


@pytest.fixture
def autojump_clock():
    return MockClock(autojump_threshold=0)


class Asker:
    """Somebody who asks one relay, and who was served when."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.turns = RelayTurns(0.4, 5, lambda name: self.counts.update([name]))
        self.served: list[tuple[str, float]] = []

    async def ask(self, name: str, *, on_hearsay: bool, for_s: float = 1e9) -> None:
        with trio.move_on_after(for_s):
            if await self.turns.enter("relay", on_hearsay=on_hearsay):
                self.served.append((name, trio.current_time()))


async def test_hearsay_leaves_turns_and_places_for_those_who_are_given(autojump_clock) -> None:
    asker = Asker()
    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(lambda: asker.ask("heard", on_hearsay=True, for_s=8))
        await trio.testing.wait_all_tasks_blocked()
        assert len(asker.served) == 3
        assert asker.turns.waiting == WAITING_ON_HEARSAY
        for number in range(4):
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(lambda number=number: asker.ask(f"given {number}", on_hearsay=False))
        await trio.testing.wait_all_tasks_blocked()
        assert asker.turns.waiting == WAITING
        assert [name for name, _ in asker.served[3:]] == ["given 0", "given 1"]
    assert [name for name, _ in asker.served if name != "heard"] == [f"given {number}" for number in range(4)]
    assert asker.counts["dial.too_many_wait_for_relay"] == 12 - 3 - WAITING_ON_HEARSAY
    assert asker.turns.waiting == 0


async def test_a_flood_of_hearsay_never_has_a_given_peer_wait_for_long(autojump_clock) -> None:
    asker = Asker()
    async with trio.open_nursery() as nursery:

        async def flood() -> None:
            while True:
                nursery.start_soon(lambda: asker.ask("heard", on_hearsay=True, for_s=8))
                await trio.sleep(0.25)

        nursery.start_soon(flood)
        await trio.sleep(14)
        for _ in range(40):
            with trio.fail_after(8):
                await asker.ask("given", on_hearsay=False)
            await trio.sleep(1)
        nursery.cancel_scope.cancel()


async def test_those_who_wait_are_served_as_they_came_and_no_faster_than_agreed(autojump_clock) -> None:
    asker = Asker()
    async with trio.open_nursery() as nursery:
        for number in range(9):
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(lambda number=number: asker.ask(str(number), on_hearsay=False))
    assert [name for name, _ in asker.served] == [str(number) for number in range(9)]
    started = asker.served[0][1]
    for count, (_, at_s) in enumerate(asker.served, 1):
        assert count <= 5 + 0.4 * (at_s - started) + 1e-6
    assert asker.served[-1][1] - started < 20


async def test_relays_do_not_share_turns(autojump_clock) -> None:
    turns = RelayTurns(0.4, 5, lambda _name: None)
    began = trio.current_time()
    for number in range(20):
        assert await turns.enter(number, on_hearsay=True)
    assert trio.current_time() == began


async def test_few_wait_at_one_relay_whoever_they_are_and_nothing_is_left_of_them(autojump_clock) -> None:
    asker = Asker()
    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(lambda number=number: asker.ask(str(number), on_hearsay=False))
        await trio.testing.wait_all_tasks_blocked()
        assert (len(asker.served), asker.turns.waiting) == (5, WAITING)
        assert asker.counts["dial.too_many_wait_for_relay"] == 12 - 5 - WAITING
    assert asker.turns._waiting == {}
