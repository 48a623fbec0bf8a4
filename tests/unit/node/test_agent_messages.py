"""Messages over one connection of an agent, as whoever is on the other end may end or bend it."""

import pytest
import trio
import trio.testing

from hansa.node.agents.agent_messages import LARGEST_FRAME_BYTES, Beat, Gone, Wire
from hansa.proto.codec import encode
from hansa.proto.errors import TooLarge

pytestmark = pytest.mark.trio


async def test_a_message_that_is_announced_too_large_is_refused_before_a_byte_of_it_is_waited_for():
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all((LARGEST_FRAME_BYTES + 1).to_bytes(4, "big"))
    with trio.fail_after(20), pytest.raises(TooLarge):
        await Wire(ours).receive(Beat, within_s=60)


@pytest.mark.parametrize("come", [0, 2, 4, 7])
async def test_a_connection_that_is_closed_within_a_message_is_gone_at_once(come: int):
    data = encode(Beat())
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all((len(data).to_bytes(4, "big") + data)[:come])
    await theirs.aclose()
    with trio.fail_after(20), pytest.raises(Gone, match="the connection was closed"):
        await Wire(ours).receive(Beat, within_s=60)
