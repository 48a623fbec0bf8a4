"""The switch between the sandboxes of one run: packets go where they belong, from whom they say, or nowhere."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.isolation.overlay_packets import LARGEST_PACKET_BYTES, Afar, Switch
from hansa.proto.gang import address_of

pytestmark = pytest.mark.trio


def packet(source, target, payload=b"x", version=4):
    header = bytearray(20)
    header[0] = version << 4 | 5
    header[12:16], header[16:20] = bytes(map(int, source.split("."))), bytes(map(int, target.split(".")))
    return bytes(header) + payload


class Played:
    """A line whose other end the test holds."""

    def __init__(self):
        self.inside, self.outside = trio.open_memory_channel(64)
        self.got = []

    async def receive(self):
        return await self.outside.receive()

    async def send(self, packets):
        self.got += packets


async def settled(switch, lines, *sent):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(switch.serve)
        for place, packets in sent:
            await lines[place].inside.send(packets)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_packets_reach_the_member_that_they_are_for():
    lines = [Played(), Played(), Played()]
    one, two = packet("10.77.0.1", "10.77.0.3", b"a"), packet("10.77.0.1", "10.77.0.2", b"b")
    back = packet("10.77.0.3", "10.77.0.1", b"c")
    await settled(Switch(lines), lines, (0, [one, two]), (2, [back]))
    assert [line.got for line in lines] == [[back], [two], [one]]
    assert address_of(2) == "10.77.0.3"


@pytest.mark.parametrize(
    "odd",
    [
        packet("10.77.0.2", "10.77.0.2"),  # in another's name
        packet("192.0.2.1", "10.77.0.2"),
        packet("10.77.0.1", "10.77.0.1"),  # to itself
        packet("10.77.0.1", "10.77.0.4"),  # to nobody
        packet("10.77.0.1", "10.77.0.0"),
        packet("10.77.0.1", "10.77.0.255"),
        packet("10.77.0.1", "10.77.1.2"),
        packet("10.77.0.1", "169.254.169.254"),
        packet("10.77.0.1", "10.77.0.2", version=6),
        packet("10.77.0.1", "10.77.0.2")[:19],
        b"x",
    ],
)
async def test_every_other_packet_is_dropped(odd):
    lines = [Played(), Played(), Played()]
    switch = Switch(lines)
    await settled(switch, lines, (0, [odd]))
    assert [line.got for line in lines] == [[], [], []]
    assert switch.dropped == 1


@given(st.binary(max_size=60))
async def test_any_bytes_go_to_a_member_or_nowhere(data):
    found = Switch([Played(), Played()])._sorted(0, [data])
    assert set(found) <= {1}


async def test_a_switch_ends_with_its_first_line():
    lines = [Played(), Played()]
    lines[1].inside.send_nowait([])
    with trio.fail_after(5):
        await Switch(lines).serve()


async def test_packets_go_over_a_stream_whole_however_it_is_cut():
    ours, theirs = trio.testing.lockstep_stream_pair()
    near, far = Afar(ours), Afar(theirs)
    sent = [packet("10.77.0.1", "10.77.0.2", bytes(size)) for size in (0, 1, 1400, LARGEST_PACKET_BYTES - 20)] * 5
    got = []

    async def take():
        while len(got) < len(sent):
            got.extend(await far.receive())

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await near.send(sent)
    assert got == sent


@pytest.mark.parametrize("odd", [b"\0\0", b"\xff\xff" + bytes(10)])
async def test_a_stream_that_is_not_of_packets_ends(odd):
    ours, theirs = trio.testing.memory_stream_pair()
    await ours.send_all(odd)
    assert await Afar(theirs).receive() == []
