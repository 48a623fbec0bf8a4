"""Who gets a sealed shard's keys: whoever has its lease, for a key pair of its own, and nobody else."""

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.trading import LEASE, OTHER_KEY, spec
from trio.testing import MockClock

from hansa.node.daemon.daemon import Daemon
from hansa.node.messaging import key_exchange
from hansa.node.messaging.directory import Directory
from hansa.node.messaging.key_exchange import KeyDesk, KeysWanted, NoKeys, ask_for_keys, unwrap, wrap
from hansa.node.network.net import Net, NetLimits, Refused, RemoteFault
from hansa.node.storage.job_keys import JobKeys
from hansa.node.storage.sealing import ContentKey, new_content_key
from hansa.proto.blob import blob_ref
from hansa.proto.codec import decode, encode
from hansa.proto.errors import Malformed
from hansa.proto.market_documents import FEATURE_SEALED
from hansa.proto.protocols import KEYS
from hansa.scheduler.job_state import Job, Shard

JOB, OTHERS = b"j" * 32, b"O" * 32
OPEN = spec()
SEALED = replace(OPEN, requirements=replace(OPEN.requirements, features=(FEATURE_SEALED,)))
BUYER, PROVIDER = b"b" * 20, b"p" * 20


class Pair:
    """A buyer with a sealed job and the provider of its shard 1."""

    def __init__(self, buyer: Daemon, provider: Daemon) -> None:
        self.buyer, self.provider, self.content = buyer, provider, new_content_key()
        buyer.job_keys.keep(JOB, self.content)
        self.lease()

    def lease(self, *, phase: str = "starting", sealed: bool = True) -> None:
        shards = (
            Shard(shard=0, phase="running", lease=OTHERS, provider=OTHER_KEY.address),
            Shard(shard=1, phase=phase, lease=LEASE, provider=self.provider.account.address),
        )
        self.buyer.state.jobs[JOB] = Job(
            phase="running",
            job=JOB,
            spec=SEALED if sealed else OPEN,
            package=blob_ref(b"package"),
            files=None,
            shards=shards,
            submitted_ms=1,
        )

    async def ask(self, lease: bytes = LEASE) -> key_exchange.ShardKeys:
        with trio.fail_after(20):
            return await ask_for_keys(
                self.provider.net,
                self.provider.directory,
                lease,
                buyer=self.buyer.account.address,
                provider=self.provider.account.address,
            )


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@pytest.fixture
async def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    monkeypatch.setattr(key_exchange, "RETRY_S", 0.02)
    hub = MemoryHub()
    async with a_daemon(tmp_path, hub, 1) as buyer, a_daemon(tmp_path, hub, 2, lends=True) as provider:
        provider.net.learn(buyer.net.peer_id, buyer.net.addrs())
        provider.directory.hint(buyer.account.address, buyer.net.peer_id)
        yield Pair(buyer, provider)


@pytest.mark.trio
async def test_the_provider_of_a_shard_gets_its_keys_and_again_after_a_restart(pair: Pair) -> None:
    for phase in ("starting", "running", "kept", "leaving", "ending"):
        pair.lease(phase=phase)
        assert await pair.ask() == pair.content.of_shard(1)


@pytest.mark.trio
@pytest.mark.parametrize("phase", ["waiting", "tendered", "finished", "failed"])
async def test_a_lease_that_is_over_gives_a_right_to_nothing(pair: Pair, phase: str) -> None:
    pair.lease(phase=phase)
    with pytest.raises(NoKeys, match="no such keys for you"):
        await pair.ask()


@pytest.mark.trio
async def test_nobody_gets_another_providers_keys_nor_those_of_no_lease(pair: Pair) -> None:
    for lease in (OTHERS, bytes(32)):
        with pytest.raises(NoKeys, match="no such keys for you"):
            await pair.ask(lease)


@pytest.mark.trio
async def test_a_job_that_is_not_sealed_has_no_keys(pair: Pair) -> None:
    pair.lease(sealed=False)
    with pytest.raises(NoKeys, match="no such keys for you"):
        await pair.ask()


@pytest.mark.trio
async def test_a_key_that_its_buyer_has_lost_is_said_to_be_lost(pair: Pair) -> None:
    pair.buyer.job_keys.keep_only([JOB])
    pair.buyer.job_keys.keep_only([])
    with pytest.raises(NoKeys, match="its buyer has lost the key"):
        await pair.ask()


@pytest.mark.trio
async def test_a_buyer_that_is_away_for_a_moment_is_asked_again(pair: Pair) -> None:
    pair.provider.directory._hints.clear()
    keys: list[key_exchange.ShardKeys] = []

    async def ask() -> None:
        keys.append(await pair.ask())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.3)
        assert not keys
        pair.provider.directory.hint(pair.buyer.account.address, pair.buyer.net.peer_id)
    assert keys == [pair.content.of_shard(1)]


class Crowded:
    """A buyer before whose desk strangers stand for a while."""

    def __init__(self, busy_times: int, answer: Callable[[bytes], bytes]) -> None:
        self.left, self.answer, self.asked = busy_times, answer, 0

    async def reach(self, _account: bytes) -> str:
        await trio.lowlevel.checkpoint()
        return "its buyer"

    async def request(self, _peer_id: str, _protocol_id: str, data: bytes, **_limits: object) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.asked <= self.left:
            raise Refused("busy: too many requests at once", "its buyer")
        return self.answer(data)


async def ask_past(crowd: Crowded) -> key_exchange.ShardKeys:
    # Only what is asked of both is there.
    net, directory = cast("Net", crowd), cast("Directory", crowd)
    return await ask_for_keys(net, directory, LEASE, buyer=BUYER, provider=PROVIDER)


@pytest.mark.trio
async def test_a_buyer_that_is_busy_with_strangers_is_asked_again_until_it_has_time(
    autojump_clock: MockClock,
) -> None:
    keys = new_content_key().of_shard(1)

    def answer(data: bytes) -> bytes:
        return wrap(keys, decode(data, KeysWanted, limit_bytes=10_000), buyer=BUYER, provider=PROVIDER)

    crowd = Crowded(20, answer)
    assert await ask_past(crowd) == keys
    assert trio.current_time() < key_exchange.PATIENCE_S


@pytest.mark.trio
async def test_a_buyer_that_stays_busy_is_given_up_in_the_end_and_not_asked_in_haste(autojump_clock: MockClock) -> None:
    crowd, began = Crowded(10_000, bytes), trio.current_time()
    with pytest.raises(NoKeys, match="busy: too many"):
        await ask_past(crowd)
    assert trio.current_time() - began >= key_exchange.PATIENCE_S
    assert crowd.asked < key_exchange.PATIENCE_S


@pytest.mark.trio
async def test_strangers_who_say_half_a_request_take_no_providers_turn() -> None:
    """Eight strangers with four half requests each were all that the desk took, for ten seconds each."""
    net = Served()
    desk = KeyDesk(cast("Net", net), cast("Directory", None), cast("JobKeys", None), cast("Any", None), BUYER)
    desk.serve()
    assert net.limits["timeout_ms"] <= 2_000
    assert net.limits["total"] >= NetLimits().connections * net.limits["per_peer"]


class Served:
    """Under which limits something is served."""

    def __init__(self) -> None:
        self.limits: dict[str, int] = {}

    def serve(self, _protocol_id: str, _handler: object, **limits: int) -> None:
        self.limits = limits


@pytest.mark.trio
async def test_a_public_key_that_would_make_the_secret_known_is_refused_and_a_strike(pair: Pair) -> None:
    await pair.ask()
    for public_key in (bytes(32), (1).to_bytes(32, "little")):
        with pytest.raises(RemoteFault):
            await pair.provider.net.request(
                pair.buyer.net.peer_id, KEYS, encode(KeysWanted(lease=LEASE, public_key=public_key))
            )
    (peer,) = [peer for peer in pair.buyer.net.peers() if peer.peer_id == pair.provider.net.peer_id]
    assert peer.strikes == 2


def wanted_by(private: X25519PrivateKey, lease: bytes = LEASE) -> KeysWanted:
    return KeysWanted(lease=lease, public_key=private.public_key().public_bytes_raw())


def test_an_answer_opens_for_its_own_request_and_no_other() -> None:
    keys, private = new_content_key().of_shard(3), X25519PrivateKey.generate()
    answer = wrap(keys, wanted_by(private), buyer=BUYER, provider=PROVIDER)
    assert unwrap(answer, private, LEASE, buyer=BUYER, provider=PROVIDER) == keys
    assert keys.own.secret() not in answer
    assert answer != wrap(keys, wanted_by(private), buyer=BUYER, provider=PROVIDER)
    for another in (
        lambda: unwrap(answer, X25519PrivateKey.generate(), LEASE, buyer=BUYER, provider=PROVIDER),
        lambda: unwrap(answer, private, OTHERS, buyer=BUYER, provider=PROVIDER),
        lambda: unwrap(answer, private, LEASE, buyer=PROVIDER, provider=BUYER),
        lambda: unwrap(answer, private, LEASE, buyer=BUYER, provider=BUYER),
    ):
        with pytest.raises(ValueError, match="for another request"):
            another()


@given(st.binary(max_size=200))
def test_any_answer_is_keys_or_refused(answer: bytes) -> None:
    with pytest.raises(ValueError, match="for another request"):
        unwrap(answer, X25519PrivateKey.generate(), LEASE, buyer=BUYER, provider=PROVIDER)


def test_an_answer_of_another_length_is_refused() -> None:
    private = X25519PrivateKey.generate()
    info = KEYS.encode() + LEASE + BUYER + PROVIDER
    short = key_exchange.SUITE.encrypt(os.urandom(63), private.public_key(), info=info)
    with pytest.raises(ValueError, match="not two keys"):
        unwrap(bytes(short), private, LEASE, buyer=BUYER, provider=PROVIDER)


def test_a_point_of_small_order_wraps_nothing() -> None:
    keys = ContentKey(b"c" * 32).of_shard(0)
    with pytest.raises(Malformed, match="no key of X25519"):
        wrap(keys, KeysWanted(lease=LEASE, public_key=bytes(32)), buyer=BUYER, provider=PROVIDER)
