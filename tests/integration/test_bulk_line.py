"""One TLS connection, of which trio has the first bytes and threads the rest."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest
import trio

from hansa.node.bulk_line import TAKEN_BYTES, Line, LineBroken
from hansa.node.pinned_tls import certificate_in, dialling_context, make_pem, serving_context

pytestmark = pytest.mark.trio
MIB = 1 << 20


@pytest.fixture
async def ends(tmp_path: Path):
    """Both ends of a line that has shaken hands."""
    pems = [make_pem(bytes((number,)) * 32, lambda _key: "one of two") for number in range(2)]
    for name, pem in zip(("dials", "serves"), pems, strict=True):
        (tmp_path / name).write_bytes(pem)
    dialled, served = socket.socketpair()
    dials = Line(dialled, dialling_context(tmp_path / "dials", [certificate_in(pems[1])]), serving=False)
    serves = Line(served, serving_context(tmp_path / "serves", [certificate_in(pems[0])]), serving=True)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dials.shake_hands)
            nursery.start_soon(serves.shake_hands)
    dials.check_certificate(certificate_in(pems[1]))
    yield dials, serves
    dials.close()
    serves.close()


def soon() -> float:
    return time.monotonic() + 30


async def test_what_came_with_a_short_message_is_there_for_the_thread(ends):
    dials, serves = ends
    data = os.urandom(3 * MIB + 5)
    got = memoryview(bytearray(len(data)))
    limiter = trio.CapacityLimiter(2)

    async def give():
        await dials.send(b"first")
        await dials.in_thread(lambda: dials.send_all(memoryview(data), soon()), limiter)
        await dials.send(b"last")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give)
        with trio.fail_after(30):
            assert await serves.receive(5) == b"first"
            await trio.sleep(0.2)  # so that more than the short message lies there
            await serves.in_thread(lambda: serves.receive_into(got, soon()), limiter)
            assert await serves.receive(4) == b"last"
    assert bytes(got) == data


async def test_whoever_hangs_up_amid_the_bytes_is_found_out(ends):
    dials, serves = ends
    dials._wait_for(None)
    serves._wait_for(None)

    def give():
        dials.send_all(memoryview(bytes(100_000)), soon())
        dials.close()

    thread = threading.Thread(target=give)
    thread.start()
    with pytest.raises(LineBroken, match="closed by the other side"):
        await trio.to_thread.run_sync(lambda: serves.receive_into(memoryview(bytearray(100_001)), soon()))
    thread.join()
    assert serves.broken


async def test_whoever_hangs_up_amid_a_short_message_is_found_out(ends):
    dials, serves = ends
    await dials.send(b"no")
    dials.close()
    with pytest.raises(LineBroken, match="closed by the other side"), trio.fail_after(20):
        await serves.receive(3)


async def test_a_changed_byte_ends_the_line(ends):
    dials, serves = ends
    dials._tls.write(b"x" * 1_000)
    record = bytearray(dials._outgoing.read())
    record[500] ^= 1
    dials._socket.send(record)
    with pytest.raises(LineBroken, match="TLS failed"), trio.fail_after(20):
        await serves.receive(1_000)
    # The other side is told why.
    with pytest.raises(LineBroken, match="TLS failed"), trio.fail_after(20):
        await dials.receive(1)


async def test_a_side_that_does_not_read_holds_the_other_up_and_not_its_memory(ends):
    dials, serves = ends
    dials._wait_for(None)
    given = []

    def give():
        try:
            for _ in range(64):
                dials.send_all(memoryview(bytes(MIB)), soon())
                given.append(MIB)
        except LineBroken:
            pass

    thread = threading.Thread(target=give)
    thread.start()
    await trio.sleep(0.5)
    assert len(given) < 64
    assert serves._incoming.pending <= TAKEN_BYTES
    dials.shut()
    thread.join()


async def test_whoever_is_cancelled_amid_a_message_has_no_line_any_more(ends):
    dials, _ = ends
    with trio.move_on_after(0.5) as scope:
        while True:
            await dials.send(bytes(MIB))
    assert scope.cancelled_caught
    assert dials.broken
