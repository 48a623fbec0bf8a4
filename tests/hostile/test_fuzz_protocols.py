"""What strangers may say on any protocol of a whole daemon: it is judged, and nothing of ours ever falls over it."""

import os
import random
from collections import Counter
from functools import partial

import pytest
import trio
from hostile.stranger import Stranger, a_stranger
from hostile.verdicts import fallen_over, serves_the_honest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kit.peer_frames import PLAIN, protobufs, requests
from kit.whole_daemon import a_whole_daemon
from libp2p.peer.id import ID

from hansa.proto.peer_id import peer_id_of_key
from hansa.proto.protocols import OLDER_MARKET

pytestmark = pytest.mark.trio
NAME = ID.from_base58(peer_id_of_key(bytes(31) + b"\x01"))
FUZZED = {**requests(b""), **protobufs(NAME, NAME), **PLAIN}
EXAMPLES = int(os.environ.get("HANSA_FUZZ_EXAMPLES", "6"))
AT_ONCE = 8
"""Frames in one example: each on a stream of its own, on one connection."""
PATIENCE_S = 1.0
"""Some streams may stay open by right: gossip, and a question that waits for more."""


async def tell_all(addr: str, protocol: str, seed: int) -> None:
    """One connection, on which bent frames of one protocol are said; some of the accounts are proven."""
    chance = random.Random(seed)
    async with a_stranger(addr) as stranger:
        if protocol.startswith("/hansa/") and chance.random() < 0.7:
            await stranger.prove_account()
        try:
            streams = await _say_some(stranger, protocol, chance)
        except Exception:  # noqa: BLE001  # hung up on: that is the node's right
            return
        await stranger.await_ends(streams, PATIENCE_S)


async def _say_some(stranger: Stranger, protocol: str, chance: random.Random) -> list[int]:
    ends = chance.random() < 0.8
    return [await stranger.say(protocol, stranger.draw(protocol, chance), ends=ends) for _ in range(AT_ONCE)]


async def test_every_protocol_that_a_daemon_serves_is_fuzzed_and_none_that_it_does_not():
    """A new protocol goes red here until ``kit/peer_frames.py`` knows what an honest peer says on it."""
    async with a_whole_daemon() as daemon:

        def served() -> set[str]:
            return {each for each in daemon.net._host.multiselect.handlers if each is not None}

        with trio.move_on_after(20):
            while served() != set(FUZZED):  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert served() == set(FUZZED)


async def test_bent_frames_on_every_protocol_are_judged_and_nothing_falls_over_them():
    """Drawn by hypothesis in a thread, said to one daemon over real connections."""
    said: Counter[str] = Counter()
    async with a_whole_daemon() as daemon:
        addr = daemon.net.addrs()[0]

        def fuzz(protocol: str) -> None:
            @settings(
                max_examples=EXAMPLES,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate, Phase.shrink),
            )
            @given(st.integers(0, (1 << 32) - 1))
            def tell(seed: int) -> None:
                trio.from_thread.run(tell_all, addr, protocol, seed)
                said[protocol] += AT_ONCE
                assert fallen_over(daemon) == {}, f"{protocol}, seed {seed}"

            tell()

        threads = trio.CapacityLimiter(4)
        async with trio.open_nursery() as nursery:
            for protocol in FUZZED:
                nursery.start_soon(partial(trio.to_thread.run_sync, limiter=threads), partial(fuzz, protocol))
        assert await serves_the_honest(daemon)
        assert set(said) == set(FUZZED)
        judged = daemon.counters()
        for protocol in requests(b"").keys() - {OLDER_MARKET}:  # counted under the newest number
            assert any(judged.get(f"serve.{why} {protocol}") for why in ("protocol_error", "too_big", "cut_short"))
        for reason in ("relay.malformed", "autonat.malformed", "circuit.malformed"):
            assert judged.get(reason), reason
        assert any(reason.startswith("gossip.") for reason in judged)
        assert any(reason.startswith("kad.") for reason in judged)
