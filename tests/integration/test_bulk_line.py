"""One TLS connection, of which trio has the first bytes and threads the rest."""

import contextlib
import os
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
import trio

from hansa.node.storage.bulk_line import FEW_BYTES, TAKEN_BYTES, BulkLine, LineBroken
from hansa.node.storage.pinned_tls import certificate_in, dialling_context, make_pem, serving_context

pytestmark = pytest.mark.trio
MIB = 1 << 20


@pytest.fixture
async def ends(tmp_path: Path):
    """Both ends of a line that has shaken hands."""
    pems = [make_pem(bytes((number,)) * 32, lambda _key: "one of two") for number in range(2)]
    for name, pem in zip(("dials", "serves"), pems, strict=True):
        (tmp_path / name).write_bytes(pem)
    dialled, served = socket.socketpair()
    dials = BulkLine(dialled, dialling_context(tmp_path / "dials", [certificate_in(pems[1])]), serving=False)
    serves = BulkLine(served, serving_context(tmp_path / "serves", [certificate_in(pems[0])]), serving=True)
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


def tickets(tmp_path: Path, number: int) -> tuple[BulkLine, socket.socket, bytes]:
    """A line that has shaken hands but for its last word, the socket at its other end, and tickets made for it."""
    pems = [make_pem(bytes((each,)) * 32, lambda _key: "one of two") for each in range(2)]
    for name, pem in zip(("dials", "serves"), pems, strict=True):
        (tmp_path / name).write_bytes(pem)
    dialled, served = socket.socketpair()
    dials = BulkLine(dialled, dialling_context(tmp_path / "dials", [certificate_in(pems[1])]), serving=False)
    context = serving_context(tmp_path / "serves", [certificate_in(pems[0])])
    context.num_tickets = number
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    while True:
        with contextlib.suppress(ssl.SSLWantReadError):
            dials._tls.do_handshake()
        incoming.write(dials._outgoing.read())
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            dials._incoming.write(outgoing.read())
        else:
            return dials, served, outgoing.read()


def send_in_thread(served: socket.socket, data: bytes) -> threading.Thread:
    def send() -> None:
        with contextlib.suppress(OSError):
            served.sendall(data)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("by", ["the loop", "a thread"])
async def test_whoever_sends_nothing_but_tickets_is_ended(tmp_path, by):
    dials, served, data = tickets(tmp_path, 4_000)
    assert len(data) > 4 * TAKEN_BYTES
    thread = send_in_thread(served, data)

    async def receive() -> None:
        if by == "the loop":
            await dials.receive(1)
        else:
            view = memoryview(bytearray(1))
            await dials.in_thread(lambda: dials.receive_into(view, soon()), trio.CapacityLimiter(1))

    with pytest.raises(LineBroken, match="no byte of what was to come"), trio.fail_after(30):
        await receive()
    assert dials.broken
    dials.close()
    thread.join()
    served.close()


async def test_a_few_tickets_are_nothing(ends):
    dials, serves = ends
    await serves.send(b"x")
    with trio.fail_after(20):
        assert await dials.receive(1) == b"x"


async def test_the_loop_turns_while_bytes_lie_there_and_none_of_them_is_plain(tmp_path, monkeypatch):
    monkeypatch.setattr("hansa.node.storage.bulk_line.MOST_FRUITLESS_BYTES", 1 << 30)
    dials, served, data = tickets(tmp_path, 1_000)
    served.setblocking(False)
    sent = served.send(data)
    turns, seen = 0, []
    take = dials._write_incoming
    monkeypatch.setattr(dials, "_write_incoming", lambda piece: (seen.append(turns), take(piece)))

    async def turn() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn)
        with trio.move_on_after(2):
            await dials.receive(1)
        nursery.cancel_scope.cancel()
    assert len(seen) >= sent // FEW_BYTES >= 4
    assert all(seen.count(turn_number) <= 3 for turn_number in seen), "who is first in a turn is drawn"
    dials.close()
    served.close()


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
