"""Bulk channels between real nodes: what they carry, what they fall back to, and what strangers get of them."""

import contextlib
import os
import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from kit.waiting import until

from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import NetConfig, NetError, Refused
from hansa.node.storage.blob_exchange import BlobExchange, ChunkWanted, FetchFailed, TreeWanted
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.bulk import BulkChannels
from hansa.node.storage.bulk_chunks import LONGEST_RUN, REQUEST
from hansa.node.storage.bulk_grants import TOKEN_BYTES
from hansa.node.storage.bulk_identity import BulkIdentity, name_of
from hansa.node.storage.bulk_line import BulkLine, LineBroken
from hansa.node.storage.bulk_messages import MAX_MESSAGE_BYTES, CallOffered, CallWanted, ChannelGranted, ChannelWanted
from hansa.node.storage.bulk_serving import BulkLimits
from hansa.node.storage.pinned_tls import certificate_in, dialling_context, make_pem
from hansa.proto.blob import CHUNK_BYTES, blob_ref
from hansa.proto.codec import decode, encode
from hansa.proto.protocols import BULK

pytestmark = [
    pytest.mark.trio,
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="keys are kept in memory only where files can be, too"),
]
DATA = os.urandom(20 * CHUNK_BYTES + 17)
REF = blob_ref(DATA)
QUICK = BulkLimits(handshake_s=2.0, agree_s=5.0, dial_s=5.0, idle_s=2.0, chunk_s=2.0)


class House:
    """One node with a store, an exchange and bulk channels, which counts what goes over libp2p."""

    def __init__(self, net, folder: Path, limits: BulkLimits) -> None:
        self.net = net
        self.store = BlobStore(folder, quota_bytes=1 << 30)
        self.forbidden: set[str] = set()
        self.bulk = BulkChannels(net, self.store, self.may, limits=limits)
        self.exchange = BlobExchange(net, self.store, self.may, self.bulk)
        self.asked_over_libp2p = 0
        answer = self.exchange._answer

        async def counted(context, data):
            self.asked_over_libp2p += isinstance(decode(data, TreeWanted | ChunkWanted, limit_bytes=512), ChunkWanted)
            return await answer(context, data)

        self.exchange._answer = counted
        self.exchange.serve()

    def may(self, context, _ref) -> bool:
        return context.peer_id not in self.forbidden

    @property
    def counters(self):
        return self.bulk.counters

    @property
    def at(self) -> tuple[str, int]:
        _, _, host, _, port, *_ = self.net.addrs()[0].split("/")
        return host, int(port)


@asynccontextmanager
async def houses_of(folder: Path, count: int, limits: BulkLimits = QUICK, config: NetConfig | None = None):
    """So many of them; the first knows where the others are."""
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        found = []
        for number in range(count):
            net = await stack.enter_async_context(open_net(config or NetConfig(), os.urandom(32)))
            found.append(House(net, folder / str(number), limits))
            nursery.start_soon(found[-1].bulk.run)
            found[0].net.learn(net.peer_id, net.addrs())
        await trio.testing.wait_all_tasks_blocked()
        try:
            yield found
        finally:
            nursery.cancel_scope.cancel()


@pytest.fixture
async def houses(tmp_path):
    async with houses_of(tmp_path, 3) as found:
        yield found


async def bring(fetcher: House, *sources: House, ref=REF, **more) -> bytes:
    with trio.fail_after(60):
        path = await fetcher.exchange.fetch(ref, [source.net.peer_id for source in sources], **more)
    return await trio.to_thread.run_sync(path.read_bytes)


# What they carry.


async def test_a_large_blob_comes_over_a_channel_of_its_own(houses):
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)
    came: list[int] = []
    assert await bring(fetcher, source, moved=came.append) == DATA
    assert sum(came) == len(DATA)
    assert source.counters["bulk.chunks_sent"] + source.asked_over_libp2p == 21
    assert source.counters["bulk.chunks_sent"] > 0
    assert fetcher.counters["bulk.opened"] == 1


async def test_a_second_blob_comes_over_the_same_channel(houses):
    fetcher, source = houses[:2]
    other = os.urandom(12 * CHUNK_BYTES)
    for data in (DATA, other):
        ref = source.store.put_bytes(data)
        assert await bring(fetcher, source, ref=ref) == data
    assert fetcher.counters["bulk.opened"] == 1
    assert fetcher.counters["bulk.fetches"] >= 2


async def test_whoever_cannot_dial_is_dialled_back_on_the_connection_that_the_other_made(houses):
    dialler, dialled = houses[:2]
    dialler.store.put_bytes(DATA)
    await dialler.net.connect(dialled.net.peer_id)
    await until(lambda: dialled.net.is_live(dialler.net.peer_id))
    assert dialled.net.dialled(dialler.net.peer_id) is None
    assert await bring(dialled, dialler) == DATA
    assert dialled.counters["bulk.opened"] == 1
    assert dialler.counters["bulk.chunks_sent"] > 0


async def test_a_small_blob_is_not_worth_a_channel(houses):
    fetcher, source = houses[:2]
    ref = source.store.put_bytes(DATA[: 2 * CHUNK_BYTES])
    assert await bring(fetcher, source, ref=ref) == DATA[: 2 * CHUNK_BYTES]
    assert not fetcher.counters


async def test_two_fetches_at_once_have_a_channel_each_and_no_more_than_allowed(tmp_path):
    async with houses_of(tmp_path, 2, BulkLimits(channels_per_peer=2)) as (fetcher, source):
        blobs = [os.urandom(16 * CHUNK_BYTES) for _ in range(4)]
        refs = [source.store.put_bytes(data) for data in blobs]

        async def one(ref, data) -> None:
            assert await bring(fetcher, source, ref=ref) == data

        async with trio.open_nursery() as nursery:
            for ref, data in zip(refs, blobs, strict=True):
                nursery.start_soon(one, ref, data)
        assert fetcher.counters["bulk.opened"] <= 2
        assert max(fetcher.bulk._standing.values()) <= 2


async def test_two_slow_sources_add_up(houses):
    fetcher, *sources = houses
    data = DATA[: 12 * CHUNK_BYTES]
    for source in sources:
        ref = source.store.put_bytes(data)
        slow_down(source, 0.3)
    fetcher.exchange._bulk = None
    took = []
    for chosen in (sources[:1], sources):
        start = trio.current_time()
        await bring(fetcher, *chosen, ref=ref)
        took.append(trio.current_time() - start)
        fetcher.store.delete(ref)
    assert took[1] < 0.85 * took[0], f"one took {took[0]:.2f} s, both {took[1]:.2f} s"


def slow_down(source: House, chunk_s: float) -> None:
    """One chunk at a time, and each takes so long: a line of a fixed rate."""
    turn, answer = trio.Lock(), source.exchange._answer

    async def slowly(context, data):
        async with turn:
            await trio.sleep(chunk_s)
            return await answer(context, data)

    source.exchange._answer = slowly
    source.exchange.serve()


# What they fall back to.


async def test_a_peer_that_knows_no_channels_is_asked_over_libp2p_and_left_in_peace(houses):
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)

    async def unknown(_context, _data):
        raise Refused("does not speak this protocol")

    source.net.serve(BULK, unknown)
    assert await bring(fetcher, source) == DATA
    assert source.asked_over_libp2p == 21
    assert fetcher.counters["bulk.open_refused"] == 1
    fetcher.store.delete(REF)
    assert await bring(fetcher, source) == DATA
    assert fetcher.counters["bulk.open_refused"] == 1
    assert fetcher.counters["bulk.paused"] == 1


async def test_where_no_connection_can_be_made_blobs_come_all_the_same(houses, monkeypatch):
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nowhere = listener[0].socket.getsockname()
    await listener[0].aclose()
    monkeypatch.setattr(type(fetcher.net), "dialled", lambda _self, _peer_id: nowhere)
    assert await bring(fetcher, source) == DATA
    assert fetcher.counters["bulk.open_failed"] <= 1
    assert not source.counters["bulk.chunks_sent"]


class Stretch:
    """A stretch of the way between two nodes, in the hands of somebody else."""

    def __init__(self, change) -> None:
        self.change = change
        self.passed = 0
        self.at: tuple[str, int] = ("", 0)
        self.held = trio.Event()

    async def run(self, target: tuple[str, int], task_status=trio.TASK_STATUS_IGNORED) -> None:
        async def carry(source, sink, *, back: bool) -> None:
            try:
                while data := await source.receive_some(65536):
                    if back:
                        self.passed += len(data)
                        data = self.change(data, self.passed)
                        if not data:
                            self.held.set()
                            await trio.sleep_forever()
                    await sink.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            await sink.aclose()
            await source.aclose()

        async def meet(stream) -> None:
            other = await trio.open_tcp_stream(*target)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: carry(stream, other, back=False))
                nursery.start_soon(lambda: carry(other, stream, back=True))

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.at = listeners[0].socket.getsockname()
        task_status.started()
        await trio.serve_listeners(meet, listeners)


def flip_a_bit_after(limit: int):
    def change(data: bytes, passed: int) -> bytes:
        return bytes((data[0] ^ 1,)) + data[1:] if passed > limit else data

    return change


def cut_after(limit: int):
    def change(data: bytes, passed: int) -> bytes:
        if passed > limit:
            raise trio.BrokenResourceError
        return data

    return change


def hold_after(limit: int):
    return lambda data, passed: b"" if passed > limit else data


@asynccontextmanager
async def in_between(houses, monkeypatch, change):
    """Somebody on the way from the first house to the second, for what is dialled from now on."""
    fetcher, source = houses[:2]
    stretch = Stretch(change)
    async with trio.open_nursery() as nursery:
        await nursery.start(stretch.run, source.at)
        with monkeypatch.context() as patch:
            patch.setattr(type(fetcher.net), "dialled", lambda _self, _peer_id: stretch.at)
            yield stretch
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("limit", [100, 3 * CHUNK_BYTES])
@pytest.mark.parametrize("harm", [flip_a_bit_after, cut_after])
async def test_whoever_sits_on_the_way_can_break_a_channel_and_nothing_else(houses, monkeypatch, harm, limit):
    """In particular he cannot make the honest source look like a liar."""
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)
    slow_down(source, 0.05)  # so that the channel has its chance
    async with in_between(houses, monkeypatch, harm(limit)) as path:
        assert await bring(fetcher, source) == DATA
    assert path.passed > 0
    assert "blob.wrong_bytes" not in fetcher.net.counters()
    assert all(peer.strikes == 0 for house in houses for peer in house.net.peers())


async def test_what_a_broken_channel_brought_is_not_fetched_again(houses, monkeypatch):
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)
    slow_down(source, 0.1)
    async with in_between(houses, monkeypatch, cut_after(8 * CHUNK_BYTES)):
        assert await bring(fetcher, source) == DATA
    assert 0 < source.asked_over_libp2p <= 21 - 6


async def test_a_fetch_that_is_cancelled_ends_at_once_and_goes_on_later(tmp_path, monkeypatch):
    async with houses_of(tmp_path, 2, BulkLimits(chunk_s=300)) as houses:
        fetcher, source = houses
        source.store.put_bytes(DATA)
        slow_down(source, 0.1)
        async with in_between(houses, monkeypatch, hold_after(4 * CHUNK_BYTES)) as path:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: bring(fetcher, source))
                    await path.held.wait()
                    nursery.cancel_scope.cancel()
        assert fetcher.bulk._standing.total() == 0
        assert await bring(fetcher, source) == DATA


async def test_a_channel_on_which_nothing_comes_is_given_up_after_one_chunk_time(houses, monkeypatch):
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)
    slow_down(source, 0.1)
    async with in_between(houses, monkeypatch, hold_after(4 * CHUNK_BYTES)):
        assert await bring(fetcher, source, chunk_timeout_ms=2000) == DATA
    assert fetcher.bulk._standing.total() == 0


# Liars, and those who are let in to nothing.


async def test_a_source_that_lies_on_a_channel_gets_a_strike_and_an_honest_one_finishes(houses):
    fetcher, liar, honest = houses
    for house in (liar, honest):
        house.store.put_bytes(DATA)
        slow_down(house, 0.05)
    with liar.store.path(REF).open("r+b") as file:
        file.write(bytes(len(DATA)))
    assert await bring(fetcher, liar, honest) == DATA
    assert fetcher.net.counters()["blob.wrong_bytes"] >= 1
    stat = next(peer for peer in fetcher.net.peers() if peer.peer_id == liar.net.peer_id)
    assert stat.why == "blob.wrong_bytes"


async def test_nobody_gets_a_channel_or_a_chunk_who_may_not_have_the_blob(houses):
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)
    source.forbidden.add(fetcher.net.peer_id)
    await fetcher.net.connect(source.net.peer_id)
    for message in (ChannelWanted(ref=REF, certificate=fetcher.bulk._identity.certificate), CallWanted(ref=REF)):
        with pytest.raises(Refused, match="no such blob for you"):
            await fetcher.net.request(source.net.peer_id, BULK, encode(message))
    offer = CallOffered(certificate=fetcher.bulk._identity.certificate)
    with pytest.raises(Refused, match="nobody wants"):
        await fetcher.net.request(source.net.peer_id, BULK, encode(offer))
    source.forbidden.clear()
    channel = await fetcher.bulk.open(source.net.peer_id, REF)
    source.forbidden.add(fetcher.net.peer_id)
    with pytest.raises(FetchFailed):
        await bring(fetcher, source)
    assert await ask_for_one(channel.line) == b"\1"
    assert source.counters["bulk.refused"] == 1
    assert not source.counters["bulk.chunks_sent"]
    channel.close()


async def granted(fetcher: House, source: House, certificate: bytes | None = None) -> ChannelGranted:
    """What the source answers to a wish for a channel."""
    await fetcher.net.connect(source.net.peer_id)
    wish = ChannelWanted(ref=REF, certificate=certificate or fetcher.bulk._identity.certificate)
    answer = await fetcher.net.request(source.net.peer_id, BULK, encode(wish))
    return decode(answer, ChannelGranted, limit_bytes=MAX_MESSAGE_BYTES)


async def knock(at: tuple[str, int], context: ssl.SSLContext, first: bytes = b"") -> BulkLine:
    """A TLS connection by hand."""
    stream = await trio.open_tcp_stream(*at)
    line = BulkLine(socket.fromfd(stream.socket.fileno(), socket.AF_INET, socket.SOCK_STREAM), context, serving=False)
    await stream.aclose()
    try:
        with trio.fail_after(20):
            await line.shake_hands()
            await line.send(first)
    except LineBroken:
        line.close()
        raise
    return line


async def ask_for_one(line: BulkLine) -> bytes:
    """The first byte of the answer to a good request."""
    with trio.fail_after(20):
        await line.send(REQUEST.pack(REF.root, REF.size_bytes, 0, 1))
        return await line.receive(1)


async def is_hung_up(line: BulkLine) -> None:
    with pytest.raises(LineBroken):
        await ask_for_one(line)
    line.close()


@pytest.fixture
async def scene(houses):
    """A source that has the blob, and one who may have it."""
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)
    return fetcher, source


async def test_a_stranger_without_a_grant_gets_no_handshake(scene):
    fetcher, source = scene
    with pytest.raises(LineBroken):
        await knock(source.at, fetcher.bulk._identity.dialling(source.bulk._identity.certificate))
    assert source.counters["bulk.uninvited"] == 1


async def test_a_stranger_does_not_get_in_while_somebody_else_is_expected(scene, tmp_path):
    fetcher, source = scene
    await granted(fetcher, source)
    pem = make_pem(os.urandom(32), lambda _key: name_of(fetcher.net.peer_id))
    (tmp_path / "stranger.pem").write_bytes(pem)
    context = dialling_context(tmp_path / "stranger.pem", [source.bulk._identity.certificate])
    # A client of TLS 1.3 may believe itself in before the server has looked at its certificate.
    with contextlib.suppress(LineBroken):
        await is_hung_up(await knock(source.at, context, bytes(TOKEN_BYTES)))
    assert source.counters["bulk.handshake_failed"] == 1
    assert source.asked_over_libp2p == 0


async def test_a_token_counts_once(scene):
    fetcher, source = scene
    grant = await granted(fetcher, source)
    await granted(fetcher, source)  # so that the certificate stays expected
    context = fetcher.bulk._identity.dialling(grant.certificate)
    line = await knock(source.at, context, grant.token)
    assert await ask_for_one(line) == b"\0"
    await is_hung_up(await knock(source.at, context, grant.token))
    assert source.counters["bulk.token_unknown"] == 1
    line.close()


async def test_a_token_is_worth_nothing_to_another_who_is_expected_too(houses):
    fetcher, source, thief = houses
    source.store.put_bytes(DATA)
    thief.net.learn(source.net.peer_id, source.net.addrs())
    stolen = await granted(fetcher, source)
    own = await granted(thief, source)
    await is_hung_up(await knock(source.at, thief.bulk._identity.dialling(own.certificate), stolen.token))
    assert source.counters["bulk.token_of_another"] == 1


async def test_another_nodes_certificate_cannot_be_announced_as_ones_own(houses):
    """Else whoever talks to the liar would be handed through, and two honest nodes would mistake each other for him."""
    fetcher, source, victim = houses
    with pytest.raises(NetError):
        await granted(fetcher, source, victim.bulk._identity.certificate)
    assert source.net.counters()[f"serve.protocol_error {BULK}"] == 1
    own = await granted(fetcher, source)
    assert own.certificate == source.bulk._identity.certificate


async def test_a_source_that_answers_with_anothers_certificate_is_not_dialled(houses):
    fetcher, source, other = houses
    source.store.put_bytes(DATA)

    async def lying(_context, _data):
        return encode(ChannelGranted(certificate=other.bulk._identity.certificate, token=bytes(TOKEN_BYTES)))

    source.net.serve(BULK, lying)
    assert await bring(fetcher, source) == DATA
    assert not source.counters["bulk.uninvited"]
    assert fetcher.counters["bulk.opened"] == 0


async def test_an_old_protocol_is_refused_also_from_whoever_is_expected(scene):
    fetcher, source = scene
    grant = await granted(fetcher, source)
    context = fetcher.bulk._identity.dialling(grant.certificate)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(LineBroken):
        await knock(source.at, context, grant.token)
    assert source.counters["bulk.handshake_failed"] == 1


async def test_a_grant_that_is_not_used_is_over_and_nobody_has_many(scene):
    fetcher, source = scene
    for _ in range(4):
        await granted(fetcher, source)
    with pytest.raises(Refused, match="too many"):
        await granted(fetcher, source)
    assert source.counters["bulk.peer_grants_full"] == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        REQUEST.pack(REF.root, REF.size_bytes, 0, 0),
        REQUEST.pack(REF.root, REF.size_bytes, 0, LONGEST_RUN + 1),
        REQUEST.pack(REF.root, REF.size_bytes, 20, 2),
        REQUEST.pack(REF.root, REF.size_bytes, 0xFFFFFFFF, 1),
        REQUEST.pack(REF.root, 1 << 60, 0, 1),
        REQUEST.pack(REF.root, 0, 0, 1),
    ],
)
async def test_a_request_that_makes_no_sense_is_a_strike(scene, request_bytes):
    fetcher, source = scene
    channel = await fetcher.bulk.open(source.net.peer_id, REF)
    await channel.line.send(request_bytes)
    with trio.fail_after(20), pytest.raises(LineBroken):
        await channel.line.receive(1)
    assert source.counters["bulk.bad_request"] == 1
    assert source.net.counters()["bulk.bad_request"] == 1
    channel.close()


async def test_what_is_not_here_is_refused_like_what_may_not_be_had(scene):
    fetcher, source = scene
    channel = await fetcher.bulk.open(source.net.peer_id, REF)
    await channel.line.send(REQUEST.pack(bytes(32), 5 * CHUNK_BYTES, 0, 1))
    with trio.fail_after(20):
        assert await channel.line.receive(1) == b"\1"
    await is_hung_up(channel.line)
    channel.close()


async def test_a_peer_that_is_barred_gets_nothing_on_the_channel_that_it_has(scene):
    fetcher, source = scene
    channel = await fetcher.bulk.open(source.net.peer_id, REF)
    source.net.bar(fetcher.net.peer_id, 60, "test")
    await until(lambda: not source.net.is_live(fetcher.net.peer_id))
    await is_hung_up(channel.line)
    assert source.counters["bulk.no_connection"] == 1
    assert not source.counters["bulk.chunks_sent"]
    channel.close()


@pytest.mark.parametrize("sent", [b"\x16", b"\x16\x03\x01\xff\xff" + bytes(400), b"\x16" * 100_000])
async def test_a_connection_that_goes_no_further_is_closed_in_time(scene, sent):
    fetcher, source = scene
    await granted(fetcher, source)
    stream = await trio.open_tcp_stream(*source.at)
    with trio.fail_after(30):
        try:
            await stream.send_all(sent)
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
    await stream.aclose()
    assert source.counters["bulk.handshake_failed"] == 1


async def test_whoever_is_let_in_and_says_nothing_is_put_out(scene):
    fetcher, source = scene
    channel = await fetcher.bulk.open(source.net.peer_id, REF)
    with trio.fail_after(30), pytest.raises(LineBroken):
        await channel.line.receive(1)
    assert source.counters["bulk.idle"] == 1
    await until(lambda: source.bulk._standing.total() == 0)
    channel.close()


async def test_whoever_asks_and_does_not_read_is_put_out_and_holds_one_thread_until_then(scene):
    fetcher, source = scene
    channel = await fetcher.bulk.open(source.net.peer_id, REF)
    await channel.line.send(REQUEST.pack(REF.root, REF.size_bytes, 0, LONGEST_RUN))
    await until(lambda: source.bulk._threads.borrowed_tokens == 1)
    await until(lambda: source.counters["bulk.served_until too slow"] == 1)
    assert source.bulk._threads.borrowed_tokens == 0
    channel.close()


async def test_a_flood_of_half_open_handshakes_does_not_keep_an_honest_peer_out(tmp_path):
    async with houses_of(tmp_path, 2, BulkLimits()) as (fetcher, source):
        source.store.put_bytes(DATA)
        await granted(fetcher, source)  # somebody is expected, so that handshakes are listened to at all
        flood = []
        for _ in range(100):
            stream = await trio.open_tcp_stream(*source.at, local_address="127.0.0.2")
            flood.append(stream)
            try:
                await stream.send_all(b"\x16\x03\x01")
            except trio.BrokenResourceError:
                continue
        assert await bring(fetcher, source) == DATA
        assert fetcher.counters["bulk.opened"] == 1
        assert source.net.counters()["inbound.ip_pending_full"] >= 50
        for stream in flood:
            await stream.aclose()


async def test_the_key_is_in_no_directory_and_its_certificate_says_whose_it_is(tmp_path):
    one, other = BulkIdentity("16Uiu2HAm" + "x" * 44), BulkIdentity("16Uiu2HAm" + "x" * 44)
    assert one.certificate != other.certificate
    assert certificate_in(make_pem(bytes(32), lambda _key: name_of("y"))) not in (one.certificate, other.certificate)
    one.close()
    with pytest.raises(OSError):
        one.serving([other.certificate])
    other.close()


# Over IPv6.


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6, not even ::1")
@pytest.mark.parametrize("who", ["dials", "is dialled"])
async def test_a_channel_is_had_over_ipv6_whoever_dialled(tmp_path, who):
    config = NetConfig(listen=("/ip6/::1/tcp/0",))
    async with houses_of(tmp_path, 2, config=config) as (one, other):
        await one.net.connect(other.net.peer_id)
        await until(lambda: other.net.is_live(one.net.peer_id))
        fetcher, source = (one, other) if who == "dials" else (other, one)
        source.store.put_bytes(DATA)
        assert one.net.dialled(other.net.peer_id) == ("::1", other.at[1])
        assert await bring(fetcher, source) == DATA
        assert fetcher.counters["bulk.opened"] == 1
        assert source.counters["bulk.chunks_sent"] > 0
