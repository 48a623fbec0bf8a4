"""Pings, answered at a pace.

The library's handler answers each thirty-two bytes for as long as there are any: a quarter of a mebibyte that is sent
in one piece is eight thousand answers, and a second of our thread.
"""

import trio
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedStreamError

from hansa.node.network.libp2p_requests import read_exactly

PING_PROTOCOL = "/ipfs/ping/1.0.0"
PING_BYTES = 32
PAUSE_S = 0.1
"""After an answer, so that it delays no answer to whoever pings less often than this."""
SILENCE_S = 60.0


async def answer_pings(stream: NetStream) -> None:
    """Say back what is said, until the peer is silent for too long or gone."""
    try:
        while True:
            with trio.fail_after(SILENCE_S):
                said = await read_exactly(stream.muxed_stream, PING_BYTES)
                await stream.muxed_stream.write(said)
            await trio.sleep(PAUSE_S)
    except (MuxedStreamError, trio.TooSlowError):
        return
