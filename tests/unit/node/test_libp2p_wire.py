"""Small protobufs from strangers: any bytes are a message or a fault, and no more is read than is allowed."""

import contextlib

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.host.autonat.pb.autonat_pb2 import Message
from libp2p.network.exceptions import SwarmException
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from multiaddr import Multiaddr

from hansa.node.network.libp2p_autonat import TOLD, _parsed
from hansa.node.network.libp2p_circuit import MOST_RELAY_ADDRS, _addresses_of, split_circuit
from hansa.node.network.libp2p_dcutr import HolePuncher
from hansa.node.network.libp2p_wire import MAX_MESSAGE_BYTES, WireFault, receive_message, send_message
from hansa.proto.peer_id import peer_id_of_key

NAME = peer_id_of_key(bytes(31) + b"\x01")


class Bytes:
    """A stream's two ends, as far as messages need them."""

    def __init__(self, data: bytes = b"") -> None:
        self.data, self.asked, self.largest = data, 0, 0

    async def read(self, size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked += size
        self.largest = max(self.largest, size)
        if not self.data:
            raise MuxedStreamEOF("the peer has finished")
        part, self.data = self.data[:size], self.data[size:]
        return part

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.data += data


KINDS = st.sampled_from([HopMessage, StopMessage, Message, HolePunch])


@given(st.binary(max_size=300), KINDS)
def test_any_bytes_are_a_message_or_a_fault(data, kind):
    async def receive() -> None:
        stream = Bytes(data)
        with contextlib.suppress(WireFault):
            assert isinstance(await receive_message(stream, kind), kind)
        assert stream.largest <= MAX_MESSAGE_BYTES

    trio.run(receive)


@given(st.binary(min_size=1, max_size=MAX_MESSAGE_BYTES // 2))
def test_what_is_sent_is_what_is_received(said):
    async def both() -> None:
        stream = Bytes()
        await send_message(stream, HopMessage(type=HopMessage.STATUS, senderRecord=said))
        assert (await receive_message(stream, HopMessage)).senderRecord == said
        assert stream.data == b""

    trio.run(both)


def test_a_message_longer_than_allowed_is_refused_by_its_length():
    async def receive() -> None:
        stream = Bytes(b"\x81\x20" + bytes(10_000))
        with pytest.raises(WireFault, match="longer"):
            await receive_message(stream, HopMessage)
        assert stream.asked == 2

    trio.run(receive)


@given(st.text() | st.text(alphabet="/p2-circuiti4tcp0.1"))
def test_no_text_is_taken_for_a_way_through_a_relay_that_is_none(text):
    try:
        where, relay = split_circuit(text)
    except SwarmException:
        return
    assert text == f"{where}/p2p/{relay}/p2p-circuit"


def test_only_one_relay_lies_between():
    assert split_circuit(f"/ip4/45.33.1.2/tcp/1/p2p/{NAME}/p2p-circuit") == ("/ip4/45.33.1.2/tcp/1", NAME)
    for addr in (
        f"/ip4/45.33.1.2/tcp/1/p2p/{NAME}/p2p-circuit/p2p/{NAME}/p2p-circuit",
        f"/ip4/45.33.1.2/tcp/1/p2p/{NAME}",
        "/ip4/45.33.1.2/tcp/1/p2p-circuit",
        "/ip4/45.33.1.2/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N/p2p-circuit",
    ):
        with pytest.raises(SwarmException):
            split_circuit(addr)


@given(st.lists(st.binary(max_size=60), max_size=40))
def test_addresses_that_are_none_are_left_out_and_many_are_cut(raw):
    assert len(_parsed(raw)) <= TOLD
    assert len(_addresses_of(raw, NAME, ("45.33.1.2", 1))) <= MOST_RELAY_ADDRS
    assert len(HolePuncher(None, None, tuple)._targets(raw)) <= 4


def test_a_relay_s_address_is_a_host_and_a_port_and_nothing_more():
    plain = Multiaddr("/ip4/45.33.1.2/tcp/1")
    tail = bytes((0xE1, 0x03, 0xD8, 0x04)) + b"x" * 600
    told = [plain.to_bytes() + tail, Multiaddr("/ip4/45.33.1.2/tcp/1/ws").to_bytes(), plain.to_bytes()]
    assert len(Multiaddr(told[0]).protocols()) == 3
    found = _addresses_of(told, NAME, None)
    assert found == (f"/ip4/45.33.1.2/tcp/1/p2p/{NAME}/p2p-circuit",)
    ours = Multiaddr(f"/ip4/45.33.1.2/tcp/1/p2p/{NAME}").to_bytes()
    assert _addresses_of([ours], NAME, None) == found
    assert _addresses_of([Multiaddr("/ip4/45.33.1.2/tcp/0").to_bytes()], NAME, None) == ()
