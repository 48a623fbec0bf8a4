"""Nodes of one local network find each other by multicast DNS, with no address to start from.

Packets are those of libp2p's discovery over mDNS (a pointer and a text record with ``dnsaddr=``), under a service
name of our own. The library's module for it was not used: it keeps what it hears without a limit, waits up to fifteen
seconds in its one thread for each name that somebody invents, and writes strangers' addresses into the address book
from that thread. Here are one socket, packets read by ``zeroconf`` and nothing kept.

Anybody in the network can say anything. So a packet is believed only about the address that it came from, in a
network that this machine is in; few and seldom; and nothing follows but a dial, in which whoever answers has to prove
its name.
"""

import ipaddress
import random
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence

import ifaddr
import trio
from zeroconf import (  # type: ignore[attr-defined]  # they are in its documentation, and not marked as exported
    DNSIncoming,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSText,
)

from hansa.node.engine.gate import PeerRate
from hansa.node.network.neighbourhood import host_of, place_of
from hansa.proto.errors import ProtocolError
from hansa.proto.peer_id import parse_peer_id

SERVICE = "_p2p-hansa._udp.local."
GROUP, PORT = "224.0.0.251", 5353
POINTER, TEXT, INTERNET = 12, 16, 1
QUERY_FLAGS, ANSWER_FLAGS = 0x0000, 0x8400
MARK = b"dnsaddr="
LIFE_S = 120
MOST_BYTES = 4096
MOST_ADDRS = 4
PACKETS_AT_ONCE, PACKET_EVERY_MS = 20, 200
"""Of one address."""
ALL_AT_ONCE, ALL_EVERY_MS = 200, 10
ANSWER_EVERY_S = 1.0
FIRST_ASK_S = 1.0
LAST_ASK_S = 300.0
MOST_LEARNT = 256
LEARN_AGAIN_MS = 60_000
PEERS_OF_ONE_ADDRESS = 8

Learnt = Callable[[str, str], None]


def question() -> bytes:
    """Who is there?"""
    packet = DNSOutgoing(QUERY_FLAGS)
    packet.add_question(DNSQuestion(SERVICE, POINTER, INTERNET))
    return bytes(packet.packets()[0])


def answer(instance: str, addrs: Sequence[str]) -> bytes:
    """We are, at these full addresses."""
    name = f"{instance}.{SERVICE}"
    texts = [MARK + addr.encode() for addr in addrs[:MOST_ADDRS]]
    packet = DNSOutgoing(ANSWER_FLAGS)
    packet.add_answer_at_time(DNSPointer(SERVICE, POINTER, INTERNET, LIFE_S, name), 0)
    said = b"".join(bytes((len(text),)) + text for text in texts if len(text) < 256)
    packet.add_answer_at_time(DNSText(name, TEXT, INTERNET, LIFE_S, said), 0)
    return bytes(packet.packets()[0])


def read(data: bytes) -> tuple[bool, tuple[tuple[str, str], ...]]:
    """Whether a packet asks for nodes, and the peers and bare addresses that it names. Any bytes are read."""
    if len(data) > MOST_BYTES:
        return False, ()
    try:
        packet = DNSIncoming(data)
        if not packet.valid:
            return False, ()
        asks = packet.is_query() and any(
            asked.name.lower() == SERVICE and asked.type == POINTER for asked in packet.questions
        )
        records = [] if packet.is_query() else packet.answers()
        told = [record.text for record in records if isinstance(record, DNSText) and _is_ours(record.name)]
    except Exception:  # noqa: BLE001  # a stranger's bytes in another's parser
        return False, ()
    found = [each for text in told for each in _addresses(bytes(text))]
    return asks, tuple(found[:MOST_ADDRS])


def _is_ours(name: str) -> bool:
    return name.lower().endswith("." + SERVICE)


def _addresses(text: bytes) -> list[tuple[str, str]]:
    found, start = [], 0
    while start < len(text):
        size = text[start]
        entry = text[start + 1 : start + 1 + size]
        start += 1 + size
        if not entry.startswith(MARK):
            continue
        try:
            bare, _, peer_id = entry[len(MARK) :].decode("ascii").rpartition("/p2p/")
            parse_peer_id(peer_id)
        except (UnicodeDecodeError, ProtocolError):
            continue
        found.append((peer_id, bare))
    return found


class Believing:
    """Which packets are looked into, and what of them is learnt."""

    def __init__(self, own: str, networks: Sequence[ipaddress.IPv4Network], learnt: Learnt) -> None:
        """``own`` is our peer id; ``networks`` are those that this machine is in."""
        self._own, self._networks, self._learnt = own, tuple(networks), learnt
        self._each = PeerRate(PACKETS_AT_ONCE, PACKET_EVERY_MS)
        self._all = PeerRate(ALL_AT_ONCE, ALL_EVERY_MS)
        self._known: OrderedDict[tuple[str, str], int] = OrderedDict()

    def hears(self, source: str, data: bytes, now_ms: int) -> bool:
        """Take a packet in. Answers whether it is a question that we should answer."""
        address = ipaddress.IPv4Address(source)
        if not any(address in network for network in self._networks):
            return False
        if not self._each.admits(address.packed, now_ms) or not self._all.admits(b"", now_ms):
            return False
        asks, told = read(data)
        for peer_id, addr in told:
            self._learn(source, peer_id, addr, now_ms)
        return asks

    def _learn(self, source: str, peer_id: str, addr: str, now_ms: int) -> None:
        kind, host = host_of(addr)
        if peer_id == self._own or kind != "ip4" or host != source or not _is_tcp(addr):
            return
        entry = (peer_id, addr)
        if now_ms < self._known.get(entry, -LEARN_AGAIN_MS) + LEARN_AGAIN_MS:
            return
        others = [at for (_, known), at in self._known.items() if host_of(known)[1] == source]
        if entry not in self._known and sum(now_ms < at + LEARN_AGAIN_MS for at in others) >= PEERS_OF_ONE_ADDRESS:
            return
        self._known[entry] = now_ms
        self._known.move_to_end(entry)
        while len(self._known) > MOST_LEARNT:
            self._known.popitem(last=False)
        self._learnt(peer_id, addr)


def _is_tcp(addr: str) -> bool:
    parts = addr.split("/")
    return len(parts) == 5 and parts[3] == "tcp" and parts[4].isascii() and parts[4].isdigit() and int(parts[4]) < 65536


def local_networks(hosts: Sequence[str]) -> list[ipaddress.IPv4Network]:
    """The networks in which this machine has these addresses."""
    return [
        ipaddress.IPv4Network(f"{each.ip}/{each.network_prefix}", strict=False)
        for adapter in ifaddr.get_adapters()
        for each in adapter.ips
        if each.is_IPv4 and each.ip in hosts
    ]


def private_hosts(addrs: Sequence[str]) -> list[str]:
    """The hosts of private IPv4 addresses among full multiaddrs: in loopback there is nobody, outside it is no LAN."""
    found = dict.fromkeys(host for kind, host in map(host_of, addrs) if kind == "ip4" and place_of(host) == "private")
    return list(found)


class LanDiscovery:
    """Asks and answers in each network in which this node has a private address."""

    def __init__(
        self,
        own: str,
        addrs: Callable[[], Sequence[str]],
        learnt: Learnt,
        *,
        port: int = PORT,
        hosts: Callable[[Sequence[str]], list[str]] = private_hosts,
    ) -> None:
        """``addrs`` are our full addresses; ``hosts`` picks those to speak from."""
        self._own, self._addrs, self._learnt, self._port, self._hosts = own, addrs, learnt, port, hosts
        self._chance = random.Random()  # noqa: S311  # a name that means nothing, and when to ask
        self._instance = "".join(self._chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=32))
        self._answered_at = float("-inf")

    async def run(self) -> None:
        """Until cancelled; at once where there is no such network, or none that lets us."""
        hosts = self._hosts(self._addrs())
        if not hosts:
            return
        with self._socket() as sock:
            try:
                await sock.bind(("", self._port))
                joined = [host for host in hosts if self._join(sock, host)]
            except OSError:
                return
            believing = Believing(self._own, local_networks(hosts), self._learnt)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask, sock, joined)
                await self._listen(sock, joined, believing)

    @staticmethod
    def _socket() -> trio.socket.SocketType:
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Beside other programs that speak mDNS on this machine.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        return sock

    @staticmethod
    def _join(sock: trio.socket.SocketType, host: str) -> bool:
        try:
            group = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(host))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        except OSError:
            return False
        return True

    async def _listen(self, sock: trio.socket.SocketType, hosts: Sequence[str], believing: Believing) -> None:
        while True:
            data, (source, _) = await sock.recvfrom(MOST_BYTES + 1)
            now_s = trio.current_time()
            if believing.hears(source, data, int(now_s * 1000)) and now_s >= self._answered_at + ANSWER_EVERY_S:
                self._answered_at = now_s
                await self._say_where(sock, hosts)

    async def _ask(self, sock: trio.socket.SocketType, hosts: Sequence[str]) -> None:
        pause_s = FIRST_ASK_S
        while True:
            for host in hosts:
                await self._send(sock, host, question())
            # Those who have nobody yet are not asked by anybody either.
            await self._say_where(sock, hosts)
            await trio.sleep(pause_s * self._chance.uniform(0.8, 1.2))
            pause_s = min(LAST_ASK_S, 3 * pause_s)

    async def _say_where(self, sock: trio.socket.SocketType, hosts: Sequence[str]) -> None:
        addrs = self._addrs()
        for host in hosts:
            here = [addr for addr in addrs if host_of(addr)[1] == host]
            if here:
                await self._send(sock, host, answer(self._instance, here))

    async def _send(self, sock: trio.socket.SocketType, host: str, packet: bytes) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host))
            await sock.sendto(packet, (GROUP, self._port))
        except OSError:
            # The interface may be down now; the next time comes.
            return
