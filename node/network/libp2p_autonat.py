"""AutoNAT version 1: telling others whether they can be dialled, and asking others the same.

Whoever asks is dialled back at the address that it comes from and nowhere else, on few of its ports, rarely, and on a
connection of its own that ends when the peer has proven itself: nobody is attacked by our dialling. The library's own
believes four observers wherever they are and dials as often as it is asked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p.host.autonat.pb.autonat_pb2 import Message
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError
from multiaddr import Multiaddr

from hansa.node.network.allowance import Allowances
from hansa.node.network.libp2p_guards import Faults
from hansa.node.network.libp2p_stream import BoundedStream
from hansa.node.network.libp2p_wire import EndedEarly, WireFault, open_protocol, receive_message, send_message
from hansa.node.network.neighbourhood import group_of, host_of

AUTONAT = "/libp2p/autonat/1.0.0"
IDENTIFY = "/ipfs/id/1.0.0"
MAX_IDENTIFY_BYTES = 64 << 10
ASK_S = 15.0
DIAL_BACK_S = 5.0
DIALLED_BACK = 3
"""So many addresses of one request are tried."""
DIAL_BACKS_AT_ONCE = 4
DIAL_BACKS_PER_S = 1.0
NETWORK_DIAL_BACKS_PER_S = 0.1
TOLD = 8


class DialBack:
    """Answers whether a peer can be dialled."""

    def __init__(self, faults: Faults, try_address: Callable[[Multiaddr, ID], Any]) -> None:
        """``try_address`` dials anew and says whether the peer proved itself there."""
        self._faults = faults
        self._try = try_address
        self._all = Allowances(DIAL_BACKS_PER_S, 8, trio.current_time)
        self._networks = Allowances(NETWORK_DIAL_BACKS_PER_S, 4, trio.current_time)
        self._running = 0

    async def on_stream(self, stream: NetStream) -> None:
        """One question."""
        muxed: BoundedStream = stream.muxed_stream
        connection = stream.muxed_conn
        try:
            with trio.fail_after(ASK_S):
                request = await receive_message(muxed, Message)
                status, addr = await self._answer(request, connection)
                answer = Message(type=Message.DIAL_RESPONSE)
                answer.dialResponse.status = status
                if addr is not None:
                    answer.dialResponse.addr = addr.to_bytes()
                await send_message(muxed, answer)
            muxed.finish()
        except (EndedEarly, trio.TooSlowError, MuxedStreamError):
            self._faults.count("autonat.asker_gone")
            muxed.abort()
        except WireFault:
            self._faults.blame(connection.peer_id.to_base58(), "autonat.malformed")
            muxed.abort()

    async def _answer(self, request: Any, connection: Any) -> tuple[Any, Multiaddr | None]:
        remote = connection.get_remote_address()
        if request.type != Message.DIAL:
            return Message.E_BAD_REQUEST, None
        # Through a relay the asker's address is not known, and then nobody's may be dialled.
        if connection.path != "direct" or remote is None:
            self._faults.count("autonat.refused: through a relay")
            return Message.E_DIAL_REFUSED, None
        if bytes(request.dial.peer.id) != connection.peer_id.to_bytes():
            self._faults.count("autonat.refused: another's name")
            return Message.E_BAD_REQUEST, None
        addresses = [addr for addr in _parsed(request.dial.peer.addrs) if host_of(str(addr))[1] == remote[0]]
        if not addresses:
            self._faults.count("autonat.refused: not where it comes from")
            return Message.E_DIAL_REFUSED, None
        if not self._may_dial(group_of(remote[0])):
            self._faults.count("autonat.refused: too often")
            return Message.E_DIAL_REFUSED, None
        self._running += 1
        try:
            found = await self._dial(addresses[:DIALLED_BACK], connection.peer_id)
        finally:
            self._running -= 1
        return (Message.OK, found) if found is not None else (Message.E_DIAL_ERROR, None)

    def _may_dial(self, network: str) -> bool:
        return self._running < DIAL_BACKS_AT_ONCE and self._networks.take(network) and self._all.take("all")

    async def _dial(self, addresses: Sequence[Multiaddr], peer_id: ID) -> Multiaddr | None:
        with trio.move_on_after(DIAL_BACK_S):
            for addr in addresses:
                try:
                    with trio.move_on_after(DIAL_BACK_S / len(addresses)):
                        if await self._try(addr, peer_id):
                            return addr
                except Exception:  # noqa: BLE001  # whatever is at that address
                    self._faults.count("autonat.address_failed")
        return None


def _parsed(told: Any) -> list[Multiaddr]:
    found = []
    for raw in list(told)[:TOLD]:
        try:
            addr = Multiaddr(bytes(raw))
            names = [each.name for each in addr.protocols()]
            if names[:2] in (["ip4", "tcp"], ["ip6", "tcp"]) and names[2:] in ([], ["p2p"]):
                found.append(Multiaddr(str(addr).partition("/p2p/")[0]))
        except Exception:  # noqa: BLE001, S112  # the library raises many kinds for what is no multiaddr
            continue
    return found


async def ask_for_dial_back(connection: Any, own: ID, addrs: Sequence[str]) -> str | None:
    """Where a peer reached us: a multiaddr, empty if nowhere, None if it did not try.

    Raises what streams raise, and ``WireFault``.
    """
    request = Message(type=Message.DIAL)
    request.dial.peer.id = own.to_bytes()
    request.dial.peer.addrs.extend(Multiaddr(addr).to_bytes() for addr in addrs[:TOLD])
    with trio.fail_after(ASK_S):
        stream = await open_protocol(connection, AUTONAT)
        try:
            await send_message(stream, request)
            answer = await receive_message(stream, Message)
        finally:
            stream.abort()
    response = answer.dialResponse
    if answer.type != Message.DIAL_RESPONSE or response.status not in (Message.OK, Message.E_DIAL_ERROR):
        return None
    if response.status == Message.E_DIAL_ERROR:
        return ""
    found = _parsed([response.addr])
    return str(found[0]) if found and str(found[0]) in addrs else None


async def ask_who(connection: Any) -> tuple[tuple[str, int] | None, frozenset[str]]:
    """From where a peer sees us come, and which protocols it speaks. Raises as ``ask_for_dial_back`` does."""
    with trio.fail_after(ASK_S):
        stream = await open_protocol(connection, IDENTIFY)
        try:
            said = await receive_message(stream, Identify, MAX_IDENTIFY_BYTES)
        finally:
            stream.abort()
    seen = _parsed([said.observed_addr])
    protocols = frozenset(each for each in list(said.protocols)[:256] if len(each) <= 128)
    if not seen:
        return None, protocols
    return (host_of(str(seen[0]))[1], int(str(seen[0].value_for_protocol("tcp")))), protocols
