"""Nodes of one network find each other by multicast; what is said there is believed about its sender only."""

import ipaddress
import os
import random
import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from kit.memory_party import key

from hansa.node.messaging import lan_discovery
from hansa.node.messaging.lan_discovery import (
    LEARN_AGAIN_MS,
    MOST_ADDRS,
    MOST_BYTES,
    MOST_LEARNT,
    PACKETS_AT_ONCE,
    PEERS_OF_ONE_ADDRESS,
    Believing,
    LanDiscovery,
    answer,
    local_networks,
    private_hosts,
    question,
    read,
)
from hansa.proto.peer_id import peer_id_of_key

PEERS = [peer_id_of_key(key(number).secret()) for number in range(1, 400)]
NETWORK = ipaddress.IPv4Network("192.168.0.0/16")
SOURCE = "192.168.1.5"


def at(peer_id: str, host: str = SOURCE, port: int = 4001) -> str:
    return f"/ip4/{host}/tcp/{port}/p2p/{peer_id}"


class Listener:
    def __init__(self) -> None:
        self.learnt: list[tuple[str, str]] = []
        self.believing = Believing(PEERS[0], [NETWORK], lambda peer_id, addr: self.learnt.append((peer_id, addr)))

    def hears(self, *addrs: str, source: str = SOURCE, now_ms: int = 0) -> None:
        self.believing.hears(source, answer("x", addrs), now_ms)


def test_a_question_and_an_answer_are_read_as_they_were_written() -> None:
    assert read(question()) == (True, ())
    asks, told = read(answer("name", [at(PEERS[1]), at(PEERS[1], port=5)]))
    assert not asks
    assert told == ((PEERS[1], "/ip4/192.168.1.5/tcp/4001"), (PEERS[1], "/ip4/192.168.1.5/tcp/5"))
    assert len(read(answer("name", [at(peer) for peer in PEERS[:20]]))[1]) == MOST_ADDRS


@given(st.binary(max_size=200))
def test_any_bytes_are_read(data: bytes) -> None:
    assert read(data) == (False, ())


@given(st.randoms(use_true_random=False), st.sampled_from([question(), answer("n", [at(PEERS[1])])]))
def test_a_packet_that_is_bent_anywhere_is_read(chance: random.Random, packet: bytes) -> None:
    bent = bytearray(packet)
    for _ in range(chance.randint(1, 8)):
        bent[chance.randrange(len(bent))] = chance.randrange(256)
    _, told = read(bytes(bent))
    assert len(told) <= MOST_ADDRS


def test_a_packet_that_is_too_long_is_not_parsed() -> None:
    assert read(question() + bytes(MOST_BYTES)) == (False, ())


@pytest.mark.parametrize(
    "lie",
    [
        at(PEERS[1], host="192.168.1.6"),
        at(PEERS[1], host="8.8.8.8"),
        at(PEERS[1], host="127.0.0.1"),
        at(PEERS[0]),
        f"/ip4/{SOURCE}/tcp/99999/p2p/{PEERS[1]}",
        f"/ip4/{SOURCE}/udp/1/p2p/{PEERS[1]}",
        f"/ip4/{SOURCE}/tcp/1/p2p-circuit/p2p/{PEERS[1]}",
        f"/dns4/{SOURCE}/tcp/1/p2p/{PEERS[1]}",
        f"/ip4/{SOURCE}/tcp/1/p2p/nobody",
        f"/ip4/{SOURCE}/tcp/1",
    ],
)
def test_nobody_is_believed_about_anything_but_its_own_address(lie: str) -> None:
    listener = Listener()
    listener.hears(lie)
    assert listener.learnt == []
    listener.hears(at(PEERS[1]))
    assert listener.learnt == [(PEERS[1], "/ip4/192.168.1.5/tcp/4001")]


def test_who_is_not_in_one_of_our_networks_is_not_heard() -> None:
    listener = Listener()
    listener.hears(at(PEERS[1], host="10.0.0.1"), source="10.0.0.1")
    assert listener.learnt == []
    assert not listener.believing.hears("8.8.8.8", question(), 0)
    assert listener.believing.hears(SOURCE, question(), 0)


def test_a_flood_from_one_address_is_cut_and_others_are_heard() -> None:
    listener = Listener()
    heard = [listener.believing.hears(SOURCE, question(), 0) for _ in range(PACKETS_AT_ONCE + 30)]
    assert heard == [True] * PACKETS_AT_ONCE + [False] * 30
    assert listener.believing.hears("192.168.1.6", question(), 0)
    spoofed = [listener.believing.hears(f"192.168.2.{n % 250}", question(), 0) for n in range(1_000)]
    assert sum(spoofed) <= lan_discovery.ALL_AT_ONCE


def test_one_address_brings_only_so_many_peers_and_each_only_now_and_then() -> None:
    listener = Listener()
    for peer in PEERS[1:30]:
        listener.hears(at(peer), now_ms=PEERS.index(peer) * 1_000)
    assert len(listener.learnt) == PEERS_OF_ONE_ADDRESS
    listener.hears(at(PEERS[1]), now_ms=30_000)
    assert len(listener.learnt) == PEERS_OF_ONE_ADDRESS
    listener.hears(at(PEERS[1]), now_ms=LEARN_AGAIN_MS + 1_000)
    assert len(listener.learnt) == PEERS_OF_ONE_ADDRESS + 1
    for number, peer in enumerate(PEERS[30:]):
        host = f"192.168.{number // 8}.{number % 250}"
        listener.hears(at(peer, host=host), source=host, now_ms=100_000 + number * 100)
    assert len(listener.believing._known) <= MOST_LEARNT


def test_only_private_addresses_are_spoken_from() -> None:
    addrs = [at(PEERS[1], host) for host in ("127.0.0.1", "10.1.2.3", "8.8.8.8", "10.1.2.3")]
    assert private_hosts([*addrs, f"/ip6/::1/tcp/1/p2p/{PEERS[1]}"]) == ["10.1.2.3"]
    assert private_hosts([]) == []


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.trio
async def test_two_nodes_of_one_network_hear_of_each_other() -> None:
    if not local_networks(["127.0.0.1"]):
        pytest.skip("this machine has no loopback to speak over")
    port, met = free_port(), {1: trio.Event(), 2: trio.Event()}

    async def one(number: int, other: int) -> None:
        def learnt(peer_id: str, addr: str) -> None:
            assert (peer_id, addr) == (PEERS[other], f"/ip4/127.0.0.1/tcp/{4000 + other}")
            met[number].set()

        here = LanDiscovery(
            PEERS[number],
            lambda: [at(PEERS[number], "127.0.0.1", 4000 + number)],
            learnt,
            port=port,
            hosts=lambda _addrs: ["127.0.0.1"],
        )
        await here.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 1, 2)
        await trio.sleep(0.2)
        nursery.start_soon(one, 2, 1)
        with trio.move_on_after(20) as patience:
            for event in met.values():
                await event.wait()
        nursery.cancel_scope.cancel()
    if patience.cancelled_caught and not any(event.is_set() for event in met.values()):
        pytest.skip("multicast does not come back over this machine's loopback")
    assert all(event.is_set() for event in met.values())


@pytest.mark.trio
async def test_junk_ends_nothing_and_without_a_network_there_is_nothing_to_do() -> None:
    await LanDiscovery(PEERS[1], lambda: [at(PEERS[1], "127.0.0.1")], lambda _p, _a: None).run()
    if not local_networks(["127.0.0.1"]):
        pytest.skip("this machine has no loopback to speak over")
    port, learnt = free_port(), list[str]()
    here = LanDiscovery(
        PEERS[1], list, lambda peer, _addr: learnt.append(peer), port=port, hosts=lambda _addrs: ["127.0.0.1"]
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        await trio.sleep(0.3)
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for size in (0, 1, 11, 12, 13, 500, 8_000):
                await sock.sendto(os.urandom(size), ("127.0.0.1", port))
            await trio.sleep(0.3)
            await sock.sendto(answer("x", [at(PEERS[2], "127.0.0.1")]), ("127.0.0.1", port))
            with trio.fail_after(20):
                while not learnt:  # noqa: ASYNC110
                    await trio.sleep(0.05)
        assert learnt == [PEERS[2]]
        nursery.cancel_scope.cancel()
