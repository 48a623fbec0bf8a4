"""What a group of exceptions comes to, above all when a deadline passes in the turn in which a task fails."""

from contextlib import suppress

import pytest
import trio
from kit.noted_stream import noted_stream

from hansa.node.fault_groups import leaf, one_fault
from hansa.node.network.libp2p_requests import TOO_BIG, ask, header_line
from hansa.node.network.net import TooBig

PEER, ECHO = "a peer", "/hansa/echo/1"
AGREED = header_line("/multistream/1.0.0") + header_line(ECHO)


def test_the_first_of_the_kinds_is_found_however_deep_it_lies():
    fault = KeyError("a")
    group = ExceptionGroup("a", [ExceptionGroup("b", [fault, KeyError("later")]), KeyError("c")])
    assert leaf(group) is fault
    assert one_fault(group, (OSError, KeyError)) is fault


def test_what_is_of_another_kind_is_never_hidden_by_one_that_is_known():
    assert one_fault(ExceptionGroup("a", [KeyError("known"), ValueError("ours")]), (KeyError,)) is None
    assert one_fault(BaseExceptionGroup("a", [KeyError("known"), KeyboardInterrupt()]), (KeyError,)) is None
    assert one_fault(ExceptionGroup("a", [ValueError("ours")]), (KeyError,)) is None


@pytest.mark.trio
async def test_a_task_that_was_cancelled_beside_a_fault_counts_for_nothing():
    fault = OSError("full")
    heard: list[BaseException | None] = []
    with trio.CancelScope() as scope:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                raise fault
        except BaseExceptionGroup as group:
            heard += [leaf(each) for each in group.split(trio.Cancelled) if each is not None]
            heard += [one_fault(group, (OSError,)), one_fault(group, (KeyError,))]
    cancelled, *rest = heard
    assert isinstance(cancelled, trio.Cancelled), "trio hands the cancellation on with the fault"
    assert rest == [fault, fault, None]


@pytest.mark.trio
async def test_a_refusal_that_comes_as_the_deadline_passes_is_told_as_what_it_is():
    stream, carrier = noted_stream(AGREED)
    carrier.has_room = False
    with trio.CancelScope() as deadline, suppress(trio.Cancelled):

        async def refuse_at_the_deadline() -> None:
            await trio.testing.wait_all_tasks_blocked()
            stream.take(bytes((TOO_BIG, 0, 0, 0, 0)))
            deadline.cancel()

        async def no_room() -> None:
            await trio.sleep_forever()

        carrier.queue_has_room = no_room
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse_at_the_deadline)
            with pytest.raises(TooBig):
                await ask(stream, PEER, ECHO, bytes(1 << 20), 1 << 20)
