"""A newcomer that proves nothing holds its place for as long as a handshake may take, whatever it begins with."""

import os
from contextlib import suppress

import pytest
import trio
import trio.testing

from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import NetConfig, NetLimits

HANDSHAKE_S = 60


@pytest.mark.parametrize("first", [b"\x13", b"\x16"])
def test_a_place_is_held_once_and_not_once_for_each_step(first: bytes) -> None:
    """On a clock that moves on when nothing else does: it runs through these minutes in no time."""

    async def main() -> float:
        limits = NetLimits(handshake_timeout_ms=HANDSHAKE_S * 1000)
        async with open_net(NetConfig(limits=limits), os.urandom(32)) as node:

            async def on_tls(_stream: object, _proven: object) -> None:
                await trio.sleep_forever()

            node.serve_tls(on_tls)
            _, _, host, _, port, *_ = node.addrs()[0].split("/")
            began = trio.current_time()
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await trio.sleep(HANDSHAKE_S * 0.9)
                await stream.send_all(first)
                with suppress(trio.BrokenResourceError):
                    while await stream.receive_some(1000):
                        pass
            return trio.current_time() - began

    clock = trio.testing.MockClock(autojump_threshold=0.01)
    held_s = trio.run(main, clock=clock)
    assert HANDSHAKE_S * 0.9 < held_s < HANDSHAKE_S * 1.2
