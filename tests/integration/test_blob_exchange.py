"""Blobs between nodes: honest, lying, dying and unwilling sources, over the real network and the one in memory."""

import errno
import os
from contextlib import AsyncExitStack

import pytest
import trio
from kit.memory_net import MemoryHub

from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import Context, NetConfig, Refused
from hansa.node.storage.blob_exchange import BlobExchange, ChunkWanted, FetchFailed
from hansa.node.storage.blob_partial import Partial
from hansa.node.storage.blob_shelf import BlobMissing
from hansa.node.storage.blobs import BlobStore
from hansa.proto.blob import CHUNK_BYTES, BlobRef, blob_ref
from hansa.proto.codec import decode
from hansa.proto.protocols import BLOB

pytestmark = pytest.mark.trio
DATA = os.urandom(5 * CHUNK_BYTES + 17)
REF = blob_ref(DATA)


class House:
    """One node with a store."""

    def __init__(self, net, store: BlobStore, allow=lambda _context, _ref: True) -> None:
        self.net, self.store = net, store
        self.exchange = BlobExchange(net, store, allow)
        self.exchange.serve()


@pytest.fixture(params=["libp2p", "memory"])
def opener(request):
    return open_net if request.param == "libp2p" else MemoryHub().open_net


@pytest.fixture
async def houses(opener, tmp_path):
    """A fetcher and three others, the fetcher knowing all addresses."""
    async with AsyncExitStack() as stack:
        found = []
        for number in range(4):
            net = await stack.enter_async_context(opener(NetConfig(), os.urandom(32)))
            found.append(House(net, BlobStore(tmp_path / str(number), quota_bytes=1 << 30)))
            found[0].net.learn(net.peer_id, net.addrs())
        yield found


def lie_with(house: House, change) -> None:
    """Serve like the real one, but send ``change(wanted, bytes)``."""
    honest = house.exchange._answer

    async def lying(context: Context, data: bytes) -> bytes:
        from hansa.node.storage.blob_exchange import TreeWanted

        wanted = decode(data, TreeWanted | ChunkWanted, limit_bytes=512)
        return change(wanted, await honest(context, data))

    house.net.serve(BLOB, lying)


async def test_a_blob_arrives_whole_and_checked(houses):
    fetcher, source = houses[:2]
    assert source.store.put_bytes(DATA) == REF
    path = await fetcher.exchange.fetch(REF, [source.net.peer_id])
    assert path.read_bytes() == DATA
    assert await fetcher.exchange.fetch(REF, []) == path


async def test_an_empty_and_a_tiny_blob_arrive_too(houses):
    fetcher, source = houses[:2]
    for data in (b"", b"x"):
        ref = source.store.put_bytes(data)
        assert (await fetcher.exchange.fetch(ref, [source.net.peer_id])).read_bytes() == data


async def test_only_those_who_are_allowed_get_anything_and_the_others_learn_nothing(houses):
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)
    source.exchange._allow = lambda context, _ref: context.peer_id != fetcher.net.peer_id
    with pytest.raises(FetchFailed) as caught:
        await fetcher.exchange.fetch(REF, [source.net.peer_id])
    refused = caught.value.reasons
    source.exchange._allow = lambda _context, _ref: True
    source.store.delete(REF)
    with pytest.raises(FetchFailed) as caught:
        await fetcher.exchange.fetch(REF, [source.net.peer_id])
    assert caught.value.reasons == refused == {source.net.peer_id: "no such blob for you"}


async def test_a_source_that_lies_about_a_chunk_gets_a_strike_and_an_honest_one_finishes(houses):
    fetcher, liar, honest = houses[:3]
    for house in (liar, honest):
        house.store.put_bytes(DATA)
    lie_with(liar, lambda wanted, data: b"\0" * len(data) if isinstance(wanted, ChunkWanted) else data)
    path = await fetcher.exchange.fetch(REF, [liar.net.peer_id, honest.net.peer_id])
    assert path.read_bytes() == DATA
    assert fetcher.net.counters()["blob.wrong_bytes"] >= 1
    stat = next(peer for peer in fetcher.net.peers() if peer.peer_id == liar.net.peer_id)
    assert stat.why == "blob.wrong_bytes"


@pytest.mark.parametrize("cut", [0, 31, 32, 160])
async def test_a_source_that_lies_about_the_tree_gets_a_strike(houses, cut):
    fetcher, liar, honest = houses[:3]
    for house in (liar, honest):
        house.store.put_bytes(DATA)
    lie_with(liar, lambda wanted, data: data if isinstance(wanted, ChunkWanted) else data[:cut])
    path = await fetcher.exchange.fetch(REF, [liar.net.peer_id, honest.net.peer_id])
    assert path.read_bytes() == DATA
    assert fetcher.net.counters().get("blob.wrong_bytes", 0) <= 1


async def test_a_fetch_that_was_broken_off_goes_on_with_another_source_and_fetches_no_chunk_twice(houses):
    fetcher, first, second = houses[:3]
    for house in (first, second):
        house.store.put_bytes(DATA)
    served: list[int] = []

    def dies_after_three(wanted, data: bytes) -> bytes:
        if isinstance(wanted, ChunkWanted):
            if len(served) == 3:
                raise Refused("going away")
            served.append(wanted.index)
        return data

    def counts(wanted, data: bytes) -> bytes:
        assert isinstance(wanted, ChunkWanted), "the tree was kept and need not be asked for again"
        served.append(wanted.index)
        return data

    lie_with(first, dies_after_three)
    with pytest.raises(FetchFailed):
        await fetcher.exchange.fetch(REF, [first.net.peer_id])
    lie_with(second, counts)
    path = await fetcher.exchange.fetch(REF, [second.net.peer_id])
    assert path.read_bytes() == DATA
    assert sorted(served) == list(range(6))


async def test_a_silent_source_costs_one_chunk_timeout(houses):
    fetcher, silent, honest = houses[:3]

    async def never(_context: Context, _data: bytes) -> bytes:
        await trio.sleep_forever()
        return b""

    silent.net.serve(BLOB, never)
    honest.store.put_bytes(DATA)
    sources = [honest.net.peer_id, silent.net.peer_id]
    with trio.fail_after(5):
        path = await fetcher.exchange.fetch(REF, sources, chunk_timeout_ms=500)
    assert path.read_bytes() == DATA


async def test_two_fetches_of_the_same_blob_at_once_are_one(houses):
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)
    served: list[int] = []
    lie_with(source, lambda _wanted, data: served.append(1) or data)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(fetcher.exchange.fetch, REF, [source.net.peer_id])
    assert len(served) == 7


async def test_garbage_sent_to_the_blob_protocol_is_a_strike(houses):
    fetcher, source = houses[:2]
    with pytest.raises(Exception, match="stream broke"):
        await fetcher.net.request(source.net.peer_id, BLOB, b"garbage")
    assert source.net.counters()[f"serve.protocol_error {BLOB}"] == 1


async def test_a_blob_beyond_any_limit_is_not_even_asked_for(houses):
    with pytest.raises(FetchFailed):
        await houses[0].exchange.fetch(BlobRef(root=bytes(32), size_bytes=1 << 60), [houses[1].net.peer_id])


async def test_a_checkpoint_like_the_one_before_costs_its_changed_chunks_only(houses):
    fetcher, source = houses[:2]
    after = DATA[: 2 * CHUNK_BYTES] + b"changed" + DATA[2 * CHUNK_BYTES + 7 :]
    for house in (fetcher, source):
        house.store.put_bytes(DATA)
    ref, asked, came = source.store.put_bytes(after), [], []
    lie_with(source, lambda wanted, data: asked.append(wanted) or data)
    path = await fetcher.exchange.fetch(ref, [source.net.peer_id], like=[REF], moved=came.append)
    assert path.read_bytes() == after
    assert [wanted.index for wanted in asked if isinstance(wanted, ChunkWanted)] == [2]
    assert sum(came) == len(after)


async def test_nothing_is_reused_that_was_not_named(houses):
    """What is here of other buyers is no business of whoever knows its hashes."""
    fetcher, source = houses[:2]
    for house in (fetcher, source):
        house.store.put_bytes(DATA)
    longer = DATA + b"x"
    ref, asked = source.store.put_bytes(longer), []
    lie_with(source, lambda wanted, data: asked.append(wanted) or data)
    await fetcher.exchange.fetch(ref, [source.net.peer_id])
    assert sum(isinstance(wanted, ChunkWanted) for wanted in asked) == 6


async def test_a_source_that_claims_our_own_chunks_for_another_blob_is_found_out(houses):
    fetcher, liar = houses[:2]
    fetcher.store.put_bytes(DATA)
    other = os.urandom(len(DATA))
    ref = liar.store.put_bytes(other)
    mine = b"".join(fetcher.store.read_tree(REF, 0, 6))
    lie_with(liar, lambda wanted, data: data if isinstance(wanted, ChunkWanted) else mine)
    with pytest.raises(FetchFailed):
        await fetcher.exchange.fetch(ref, [liar.net.peer_id], like=[REF])
    assert fetcher.net.counters()["blob.wrong_bytes"] == 1
    assert not fetcher.store.has(ref)


async def test_that_somebody_has_a_blob_is_believed_for_the_right_bytes_only(houses):
    fetcher, liar, honest, ignorant = houses
    for house in (fetcher, liar, honest):
        house.store.put_bytes(DATA)
    lie_with(liar, lambda _wanted, data: b"\0" * len(data))
    holds = fetcher.exchange.holds
    assert not await holds(REF, 1, [liar.net.peer_id, ignorant.net.peer_id])
    assert await holds(REF, 5, [liar.net.peer_id, honest.net.peer_id])
    with pytest.raises(BlobMissing):
        await ignorant.exchange.holds(REF, 0, [honest.net.peer_id])


async def test_the_name_of_an_empty_blob_that_is_none_harms_no_innocent_source(houses):
    fetcher, innocent = houses[:2]
    with pytest.raises(FetchFailed):
        await fetcher.exchange.fetch(BlobRef(root=bytes(32), size_bytes=0), [innocent.net.peer_id])
    assert "blob.wrong_bytes" not in fetcher.net.counters()


async def test_a_full_disk_is_a_fetch_that_failed_for_everybody_who_waits(houses, monkeypatch):
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)

    def full(*_anything):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    failed = []

    async def fetch() -> None:
        with pytest.raises(FetchFailed, match="No space left on device"):
            await fetcher.exchange.fetch(REF, [source.net.peer_id])
        failed.append(1)

    for broken in ("write", "finish", "missing"):
        with monkeypatch.context() as patch:
            patch.setattr(Partial, broken, full)
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(fetch)
    assert len(failed) == 6
    assert (await fetcher.exchange.fetch(REF, [source.net.peer_id])).read_bytes() == DATA


async def test_a_disk_that_fails_as_its_fetch_is_given_up_is_a_fetch_that_failed(houses, monkeypatch):
    """The others that bring chunks are cancelled beside it, and the group of both was nobody's to catch."""
    fetcher, source = houses[:2]
    source.store.put_bytes(DATA)
    with trio.CancelScope() as wanted:

        def full_as_it_is_given_up(*_anything):
            trio.from_thread.run_sync(wanted.cancel)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Partial, "write", full_as_it_is_given_up)
        with pytest.raises(FetchFailed, match="No space left on device"):
            await fetcher.exchange.fetch(REF, [source.net.peer_id])
    assert wanted.cancel_called


async def test_only_bytes_of_the_named_sources_count_as_shown(houses):
    fetcher, source, other, ignorant = houses
    for house in (source, other):
        house.store.put_bytes(DATA)
    shown = {}

    async def fetch(name: str, sources: list[str]) -> None:
        shown[name] = await fetcher.exchange.fetch_shown(REF, sources)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch, "first", [source.net.peer_id])
        await trio.lowlevel.checkpoint()
        nursery.start_soon(fetch, "second", [ignorant.net.peer_id])
    await fetch("third", [ignorant.net.peer_id])
    assert shown == {"first": True, "second": False, "third": False}
    fetcher.store.delete(REF)
    partial = fetcher.store.begin(REF, fetcher.store.tree_of_part(REF) or source.store.read_tree(REF, 0, 6))
    partial.write(0, DATA[:CHUNK_BYTES])
    partial.close()
    await fetch("fourth", [other.net.peer_id])
    assert not shown["fourth"], "a part of it was here already"
