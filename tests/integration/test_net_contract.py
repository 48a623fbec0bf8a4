"""What every ``Net`` promises, held against the real one on loopback and the one in memory alike."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
from kit.memory_net import MemoryHub
from kit.waiting import until

from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import (
    TOLD_NEARBY,
    Context,
    Net,
    NetConfig,
    NetError,
    NetLimits,
    NotSpoken,
    Refused,
    RemoteFault,
    Timeout,
    TooBig,
    Unreachable,
    Verdict,
)
from hansa.proto.errors import Malformed
from hansa.proto.peer_id import address_of_peer_text, peer_id_of_key

ECHO = "/hansa/echo/1"
TOPIC = "/hansa/topic/1"
Open = Callable[[NetConfig, bytes], AbstractAsyncContextManager[Net]]
pytestmark = pytest.mark.trio


@pytest.fixture(params=["libp2p", "memory"])
def opener(request) -> Open:
    return open_net if request.param == "libp2p" else MemoryHub().open_net


@asynccontextmanager
async def pair(opener: Open, limits: NetLimits | None = None) -> AsyncIterator[tuple[Net, Net]]:
    config = NetConfig(limits=limits or NetLimits())
    async with opener(config, os.urandom(32)) as one, opener(config, os.urandom(32)) as other:
        await one.connect(other.addrs()[0])
        with trio.fail_after(2):
            while phase(other, one) != "live":  # noqa: ASYNC110
                await trio.sleep(0.005)
        yield one, other


def addrs_of(net: Net, peer_id: str) -> tuple[str, ...]:
    return next((each.addrs for each in net.peers() if each.peer_id == peer_id), ())


def phase(net: Net, of: Net) -> str:
    return next((each.phase for each in net.peers() if each.peer_id == of.peer_id), "unknown")


async def echo(_context: Context, data: bytes) -> bytes:
    await trio.lowlevel.checkpoint()
    return data


async def test_a_node_is_named_by_its_key_and_tells_real_addresses(opener):
    key = os.urandom(32)
    async with opener(NetConfig(listen=("/ip4/0.0.0.0/tcp/0",)), key) as net:
        assert net.peer_id == peer_id_of_key(key)
        assert net.addrs()
        assert all(addr.endswith(f"/p2p/{net.peer_id}") and "0.0.0.0" not in addr for addr in net.addrs())


async def test_announced_addresses_replace_the_listening_ones(opener):
    async with opener(NetConfig(announce=("/ip4/203.0.113.7/tcp/4077",)), os.urandom(32)) as net:
        assert net.addrs() == (f"/ip4/203.0.113.7/tcp/4077/p2p/{net.peer_id}",)


async def test_a_request_carries_bytes_both_ways_and_the_callers_proven_identity(opener):
    async with pair(opener) as (one, other):
        callers = []

        async def handler(context: Context, data: bytes) -> bytes:
            callers.append(context)
            return await echo(context, data[::-1])

        other.serve(ECHO, handler)
        assert await one.request(other.peer_id, ECHO, b"abc") == b"cba"
        assert await one.request(other.peer_id, ECHO, b"") == b""
        assert set(callers) == {Context(peer_id=one.peer_id, address=address_of_peer_text(one.peer_id), path="direct")}


async def test_a_request_dials_a_peer_whose_address_was_learnt(opener):
    async with opener(NetConfig(), os.urandom(32)) as one, opener(NetConfig(), os.urandom(32)) as other:
        other.serve(ECHO, echo)
        one.learn(other.peer_id, other.addrs())
        assert await one.request(other.peer_id, ECHO, b"x") == b"x"


async def test_both_ends_of_a_connection_can_ask(opener):
    async with pair(opener) as (one, other):
        one.serve(ECHO, echo)
        assert await other.request(one.peer_id, ECHO, b"back") == b"back"


async def test_a_handlers_no_reaches_the_caller_in_its_words(opener):
    async def handler(_context: Context, _data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        raise Refused("no room before noon")

    async with pair(opener) as (one, other):
        other.serve(ECHO, handler)
        with pytest.raises(Refused) as caught:
            await one.request(other.peer_id, ECHO, b"")
        assert (caught.value.why, caught.value.peer_id) == ("no room before noon", other.peer_id)


async def test_a_handler_that_raises_costs_the_caller_one_request_and_the_node_nothing(opener):
    async def handler(_context: Context, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        if data == b"bad":
            raise KeyError(data)
        return data

    async with pair(opener) as (one, other):
        other.serve(ECHO, handler)
        with pytest.raises(RemoteFault):
            await one.request(other.peer_id, ECHO, b"bad")
        assert await one.request(other.peer_id, ECHO, b"good") == b"good"
        assert other.counters()[f"serve.handler_failed {ECHO}"] == 1


@pytest.mark.parametrize("agree_first", [False, True])
@pytest.mark.parametrize("data", [b"", b"x", bytes(200 << 10)])
async def test_an_unknown_protocol_is_refused_as_just_that(opener, agree_first, data):
    async with pair(opener) as (one, other):
        with pytest.raises(NotSpoken):
            await one.request(other.peer_id, "/hansa/nothing/9", data, agree_first=agree_first)
        assert other.peers()[0].strikes == 0, "it is no wrong to ask"


async def test_a_request_may_wait_until_the_protocol_is_agreed_on(opener):
    async with pair(opener) as (one, other):
        other.serve(ECHO, echo, max_request_bytes=1 << 20)
        for data in (b"", b"x", bytes(700 << 10)):
            assert await one.request(other.peer_id, ECHO, data, agree_first=True) == data


async def test_older_numbers_are_answered_by_the_same_handler_under_the_same_limits(opener):
    entered, leave = trio.Event(), trio.Event()

    async def handler(_context: Context, data: bytes) -> bytes:
        entered.set()
        await leave.wait()
        return data

    async with pair(opener) as (one, other), trio.open_nursery() as nursery:
        other.serve("/hansa/echo/2", handler, per_peer=1, older=(ECHO,))
        nursery.start_soon(one.request, other.peer_id, "/hansa/echo/2", b"first")
        await entered.wait()
        with pytest.raises(Refused, match="busy"):
            await one.request(other.peer_id, ECHO, b"second")
        leave.set()
        await until(lambda: not nursery.child_tasks)
        assert await one.request(other.peer_id, ECHO, b"third") == b"third"
        assert other.counters()["serve.older /hansa/echo/2"] == 2


async def test_a_node_knows_which_neighbours_hear_a_topic(opener):
    async with pair(opener) as (one, other):
        assert one.listeners(TOPIC) == frozenset()
        other.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        await until(lambda: one.listeners(TOPIC) == {other.peer_id})
        assert other.listeners(TOPIC) == frozenset(), "it is no neighbour of its own"
        other.unsubscribe(TOPIC)
        await until(lambda: not one.listeners(TOPIC))


async def test_a_slow_handler_ends_at_the_callers_deadline_and_at_its_own(opener):
    async def never(_context: Context, _data: bytes) -> bytes:
        await trio.sleep_forever()
        return b""

    async with pair(opener) as (one, other):
        other.serve(ECHO, never, timeout_ms=10_000)
        with pytest.raises(Timeout):
            await one.request(other.peer_id, ECHO, b"", timeout_ms=100)
        other.serve(ECHO, never, timeout_ms=100)
        with pytest.raises(RemoteFault):
            await one.request(other.peer_id, ECHO, b"", timeout_ms=5_000)
        assert other.counters()[f"serve.timeout {ECHO}"] >= 1


async def test_too_large_a_request_or_response_is_refused_by_its_size(opener):
    async with pair(opener) as (one, other):
        other.serve(ECHO, echo, max_request_bytes=2_000_000)
        whole = os.urandom(2_000_000)
        assert await one.request(other.peer_id, ECHO, whole, max_response_bytes=2_000_000) == whole
        with pytest.raises(TooBig):
            await one.request(other.peer_id, ECHO, whole + b"x", max_response_bytes=3_000_000)
        with pytest.raises(TooBig):
            await one.request(other.peer_id, ECHO, whole, max_response_bytes=1_999_999)


async def test_more_requests_at_once_than_allowed_are_refused_as_busy(opener):
    release = trio.Event()

    async def waits(_context: Context, _data: bytes) -> bytes:
        await release.wait()
        return b"done"

    async with pair(opener) as (one, other):
        other.serve(ECHO, waits, per_peer=2)
        outcomes: list[object] = []

        async def ask() -> None:
            try:
                outcomes.append(await one.request(other.peer_id, ECHO, b""))
            except Refused as no:
                outcomes.append(no.why)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            await until(lambda: len(outcomes) == 1)
            assert str(outcomes[0]).startswith("busy")
            release.set()
        assert outcomes[1:] == [b"done", b"done"]


async def test_a_peer_without_an_address_or_behind_a_dead_one_is_unreachable(opener):
    stranger = peer_id_of_key(os.urandom(32))
    async with opener(NetConfig(), os.urandom(32)) as net:
        for peer_id in (stranger, "not a peer id", net.peer_id):
            with pytest.raises(Unreachable):
                await net.request(peer_id, ECHO, b"", timeout_ms=2_000)
        net.learn(stranger, ("/ip4/127.0.0.1/tcp/1",))
        with pytest.raises(Unreachable):
            await net.connect(stranger)


async def test_gossip_reaches_those_who_subscribe_and_names_its_author(opener):
    async with pair(opener) as (one, other):
        heard = other.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        one.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        await trio.sleep(0.2)
        await one.publish(TOPIC, b"news")
        with trio.fail_after(5):
            context, data = await heard.receive()
        assert (context.peer_id, context.address, data) == (one.peer_id, address_of_peer_text(one.peer_id), b"news")


async def test_gossip_passes_through_a_neighbour_who_accepts_it_and_not_through_one_who_does_not(opener):
    verdicts = [Verdict.ACCEPT]
    async with (
        opener(NetConfig(), os.urandom(32)) as left,
        opener(NetConfig(), os.urandom(32)) as middle,
        opener(NetConfig(), os.urandom(32)) as right,
    ):
        await left.connect(middle.addrs()[0])
        await right.connect(middle.addrs()[0])
        left.subscribe(TOPIC, lambda _c, _d: Verdict.ACCEPT)
        middle.subscribe(TOPIC, lambda _c, _d: verdicts[0])
        heard = right.subscribe(TOPIC, lambda _c, _d: Verdict.ACCEPT)
        # Again and again: who subscribes to what is known a while after they are connected.
        with trio.fail_after(30):
            while heard.statistics().current_buffer_used == 0:
                await left.publish(TOPIC, b"first " + os.urandom(8))
                await trio.sleep(0.1)
        verdicts[0] = Verdict.IGNORE
        await left.publish(TOPIC, b"second")
        with trio.move_on_after(1.5) as quiet:
            while (await heard.receive())[1] != b"second":
                pass
        assert quiet.cancelled_caught


async def test_gossip_flows_both_ways_again_after_a_neighbour_was_restarted(opener):
    key = os.urandom(32)
    async with opener(NetConfig(), os.urandom(32)) as one:
        from_other = one.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        for number in range(4):
            async with opener(NetConfig(bootstrap=one.addrs()), key) as other:
                from_one = other.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
                ways = [(one, from_one), (other, from_other)]
                for sender, heard in ways if number % 2 else ways[::-1]:
                    data = os.urandom(8)
                    with trio.fail_after(4):
                        while True:
                            await sender.publish(TOPIC, data)
                            with trio.move_on_after(0.1):
                                while (await heard.receive())[1] != data:
                                    pass
                                break


async def test_a_validator_that_raises_and_a_full_queue_drop_and_count(opener):
    def picky(_context: Context, data: bytes) -> Verdict:
        if data == b"bad":
            raise ValueError(data)
        return Verdict.ACCEPT

    async with pair(opener) as (one, other):
        heard = other.subscribe(TOPIC, picky, queue=1)
        one.subscribe(TOPIC, picky)
        await trio.sleep(0.2)
        for data in (b"bad", b"kept", b"dropped"):
            await one.publish(TOPIC, data)
        await until(lambda: other.counters().get(f"gossip.queue_full {TOPIC}") == 1)
        assert other.counters()[f"gossip.validator_failed {TOPIC}"] == 1
        assert (await heard.receive())[1] == b"kept"


async def test_a_topic_that_was_left_is_heard_no_more_and_may_be_heard_again(opener):
    async with pair(opener) as (one, other):
        left = other.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        one.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        with trio.fail_after(20):
            while True:
                await one.publish(TOPIC, b"heard")
                with trio.move_on_after(0.3):
                    await left.receive()
                    break
        other.unsubscribe(TOPIC)
        with trio.fail_after(20):
            async for _ in left:
                pass
        again = other.subscribe(TOPIC, lambda _context, _data: Verdict.ACCEPT)
        with trio.fail_after(20):
            while True:
                await one.publish(TOPIC, b"heard again")
                with trio.move_on_after(0.3):
                    assert (await again.receive())[1] == b"heard again"
                    break
        other.unsubscribe("/hansa/never/1")


async def test_who_is_advertised_under_a_name_is_found_under_it_and_under_no_other(opener):
    async with pair(opener) as (one, other):
        other.advertise(("gpu-80/*", "h200/eu"))
        with trio.fail_after(40):
            while other.peer_id not in await one.find("h200/eu"):  # noqa: ASYNC110
                await trio.sleep(0.2)
        assert await one.find("h200/us") == ()
        assert one.peer_id not in await one.find("gpu-80/*")


async def test_gossip_over_its_limit_is_not_sent(opener):
    async with opener(NetConfig(limits=NetLimits(gossip_message_bytes=100)), os.urandom(32)) as net:
        with pytest.raises(TooBig):
            await net.publish(TOPIC, b"x" * 101)


async def test_five_wrongs_within_a_minute_bar_the_peer(opener):
    async def strict(_context: Context, _data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        raise Malformed("message", "not ours")

    async with pair(opener) as (one, other):
        other.serve(ECHO, strict)
        for _ in range(5):
            with pytest.raises(NetError):
                await one.request(other.peer_id, ECHO, b"x", timeout_ms=2_000)
        await until(lambda: phase(other, one) == "barred")
        await until(lambda: phase(one, other) != "live")
        with pytest.raises(NetError):
            await one.request(other.peer_id, ECHO, b"x", timeout_ms=2_000)
        stat = next(each for each in other.peers() if each.peer_id == one.peer_id)
        assert other.phases() == {each.peer_id: each.phase for each in other.peers()}
        assert 290_000 < stat.barred_for_ms <= 300_000
        assert stat.why == f"serve.protocol_error {ECHO}"


async def test_a_barred_peer_is_hung_up_on_and_comes_back_when_the_bar_ends(opener):
    async with pair(opener) as (one, other):
        other.serve(ECHO, echo)
        other.bar(one.peer_id, 1, "a test")
        await until(lambda: phase(one, other) == "quiet")
        with pytest.raises(Unreachable):
            await other.connect(one.peer_id)
        await trio.sleep(1.2)
        await one.connect(other.addrs()[0])
        assert await one.request(other.peer_id, ECHO, b"x") == b"x"


async def test_a_peer_that_dies_is_noticed_and_one_that_is_kept_is_dialled_again(opener):
    key = os.urandom(32)
    async with opener(NetConfig(), os.urandom(32)) as one:
        async with opener(NetConfig(), key) as other:
            one.learn(other.peer_id, other.addrs())
            one.keep(other.peer_id)
            await until(lambda: phase(one, other) == "live")
        await until(lambda: phase(one, other) == "quiet")
        async with opener(NetConfig(), key) as again:
            one.learn(again.peer_id, again.addrs())
            await until(lambda: phase(one, again) == "live", 4)


async def test_a_bootstrap_peer_is_connected_without_being_asked_for(opener):
    async with opener(NetConfig(), os.urandom(32)) as first:
        arrivals = first.arrivals()
        async with opener(NetConfig(bootstrap=first.addrs()), os.urandom(32)) as second:
            with trio.fail_after(3):
                assert await arrivals.receive() == second.peer_id
            second.learn(first.peer_id, first.addrs())
            assert second.known(10)[0][0] == first.peer_id


async def test_disconnecting_ends_the_connection_on_both_sides(opener):
    async with pair(opener) as (one, other):
        await one.disconnect(other.peer_id)
        await until(lambda: phase(one, other) == "quiet" and phase(other, one) == "quiet")


async def test_a_request_in_flight_fails_when_the_connection_breaks(opener):
    started = trio.Event()

    async def hangs(_context: Context, _data: bytes) -> bytes:
        started.set()
        await trio.sleep_forever()
        return b""

    async with pair(opener) as (one, other):
        other.serve(ECHO, hangs)
        async with trio.open_nursery() as nursery:

            async def cut() -> None:
                await started.wait()
                await other.disconnect(one.peer_id)

            nursery.start_soon(cut)
            with pytest.raises(RemoteFault):
                await one.request(other.peer_id, ECHO, b"", timeout_ms=5_000)


async def test_a_connection_lives_for_both_sides_and_for_both_it_is_over(opener):
    stranger = peer_id_of_key(os.urandom(32))
    async with pair(opener) as (one, other):
        assert one.is_live(other.peer_id)
        assert other.is_live(one.peer_id)
        assert not one.is_live(stranger)
        assert not one.is_live(one.peer_id)
        await one.disconnect(other.peer_id)
        await until(lambda: not one.is_live(other.peer_id) and not other.is_live(one.peer_id), 20)


async def test_whom_nobody_keeps_any_more_stays_connected_and_is_not_dialled_again(opener):
    async with opener(NetConfig(), os.urandom(32)) as one, opener(NetConfig(), os.urandom(32)) as other:
        one.learn(other.peer_id, other.addrs())
        one.keep(other.peer_id)
        await until(lambda: one.is_live(other.peer_id), 20)
        one.release(other.peer_id)
        await trio.sleep(0.5)
        assert one.is_live(other.peer_id)
        await other.disconnect(one.peer_id)
        await until(lambda: not one.is_live(other.peer_id), 20)
        await trio.sleep(1)
        assert not one.is_live(other.peer_id)
        one.keep(other.peer_id)
        await until(lambda: one.is_live(other.peer_id), 20)


async def test_strikes_are_counted_with_their_reasons_and_the_fifth_bars(opener):
    async with pair(opener) as (one, other):
        for number in range(4):
            one.strike(other.peer_id, f"wrong {number}")
        (stat,) = (each for each in one.peers() if each.peer_id == other.peer_id)
        assert (stat.strikes, stat.why, stat.phase) == (4, "wrong 3", "live")
        assert stat.whys[-4:] == tuple(f"wrong {number}" for number in range(4))
        assert one.counters()["wrong 0"] == 1
        one.strike(other.peer_id, "wrong 4")
        await until(lambda: phase(one, other) == "barred" and not other.is_live(one.peer_id), 20)
        one.strike(one.peer_id, "ourselves")
        one.strike("not a peer id", "nobody")
        assert [each.peer_id for each in one.peers()] == [other.peer_id], "neither is anybody to know"


async def test_a_peers_word_on_places_that_are_not_public_counts_only_from_such_a_place(opener):
    private, public = "/ip4/10.1.2.3/tcp/4001", "/ip4/8.8.8.8/tcp/4001"
    far, near, told = (peer_id_of_key(os.urandom(32)) for _ in range(3))
    async with pair(opener) as (one, other):
        one.learn(far, (private, public, "/ip4/0.0.0.0/tcp/1", "nonsense"), told_by=peer_id_of_key(os.urandom(32)))
        assert addrs_of(one, far) == (public,), "who tells it is not connected from anywhere"
        assert one.counters()["addresses.not_theirs_to_name"] == 1
        one.learn(near, (private,), told_by=TOLD_NEARBY)
        assert addrs_of(one, near) == (private,)
        one.learn(told, (f"{private}/p2p/{told}",), told_by=other.peer_id)
        assert addrs_of(one, told) == (private,), "who tells it is connected from this machine"
        known = set(one.phases())
        for nobody in (one.peer_id, "not a peer id"):
            one.learn(nobody, (public,))
        assert set(one.phases()) == known


async def test_what_the_operator_said_of_a_peer_is_not_crowded_out_by_hearsay(opener):
    given, peer_id = "/ip4/10.9.9.9/tcp/4001", peer_id_of_key(os.urandom(32))
    async with pair(opener) as (one, other):
        one.learn(peer_id, (given,))
        for number in range(20):
            one.learn(peer_id, tuple(f"/ip4/8.8.{number}.{each}/tcp/4001" for each in range(8)), other.peer_id)
        assert addrs_of(one, peer_id)[0] == given
        assert len(addrs_of(one, peer_id)) > 1


async def test_how_others_reach_a_node_is_said(opener):
    announced = "/ip4/203.0.113.7/tcp/4077"
    async with opener(NetConfig(announce=(announced,)), os.urandom(32)) as net:
        reach = net.reach()
        assert reach.addrs == net.addrs() == (f"{announced}/p2p/{net.peer_id}",)
        assert (reach.verdict, reach.opinions, reach.relays) == ("unknown", (), ()), "nobody was asked"
        assert (reach.serves_as_relay, reach.circuits, reach.restarts) == (False, 0, 0)


async def test_where_a_peer_was_reached_tls_is_handed_over(opener):
    heard: list[bytes] = []

    async def handler(stream: trio.SocketStream, proven: Callable[[], None]) -> None:
        proven()
        heard.append(await stream.receive_some(8))

    async with pair(opener) as (one, other):
        other.serve_tls(handler)
        at = one.dialled(other.peer_id)
        assert other.dialled(one.peer_id) is None, "it was reached, and reached nobody"
        assert one.dialled(peer_id_of_key(os.urandom(32))) is None
        # Nobody is reached by an address where there are no sockets, and then nobody can come there with TLS.
        if at is not None:
            host, port = other.addrs()[0].split("/")[2::2][:2]
            assert at == (host, int(port))
            async with await trio.open_tcp_stream(*at) as stream:
                await stream.send_all(b"\x16\x03\x01TLS")
                await until(lambda: heard == [b"\x16\x03\x01TLS"], 20)
        await other.disconnect(one.peer_id)
        await until(lambda: one.dialled(other.peer_id) is None, 20)
