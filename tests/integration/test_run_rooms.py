"""What else is in a run's sandbox beside its job: terminals to look around with, and a way out where it has one."""

import socket
import threading

import pytest
import trio
from integration.sandbox_harness import a_room, an_order, need_sandbox

from hansa.node.runs.run_shell import LOST_STATUS, MOST_SHELLS, ShellRefused
from hansa.scheduler.run import RunFailed, RunFinished, RunOutput, RunProgressed, RunSynced

RUN = b"r" * 32

STEPS = """
import time
def main(ctx):
    step = 0
    while True:
        step += 1
        ctx.report(step=step)
        time.sleep(0.05)
"""


async def said_until(shell, wanted, within_s=20):
    said = b""
    with trio.fail_after(within_s):
        while wanted not in said:
            piece = await shell.receive(1)
            assert piece or shell.ended is None, said
            said += piece
    return said


def steps(room):
    return max(event.step for event in room.events if isinstance(event, RunProgressed))


@pytest.mark.trio
async def test_a_run_can_be_looked_into_while_it_computes_and_no_flood_holds_it_up(tmp_path):
    need_sandbox()
    async with a_room() as room:
        await room.executor.start(an_order(tmp_path, STEPS))
        await room.wait_for(RunProgressed)
        shell = await room.executor.open_shell(RUN, (), 100, 30)
        await shell.send(b"pwd; id -u; stty size; echo $TERM; tty; cat job.py\r")
        said = await said_until(shell, b"job.py: No such file")
        for word in (b"/job/work", b"1000", b"30 100", b"xterm-256color", b"/dev/pts/"):
            assert word in said
        await shell.resize(80, 24)
        await shell.send(b"stty size; ps 2>/dev/null; ls /job/code; exit 3\r")
        said = await said_until(shell, b"job.py")
        assert b"24 80" in said
        while shell.ended is None:
            await shell.receive(1)
        assert shell.ended == 3
        # Four at a time: two floods that nobody reads, one that somebody does, and one that waits.
        floods = [await room.executor.open_shell(RUN, ("yes",), 80, 24) for _ in range(3)]
        waiting = await room.executor.open_shell(RUN, ("cat",), 80, 24)
        with pytest.raises(ShellRefused):
            await room.executor.open_shell(RUN, (), 80, 24)
        before, got = steps(room), 0
        with trio.move_on_after(3):
            while True:
                got += len(await floods[0].receive(1))
        assert got > 100_000
        assert steps(room) - before > 10, "the job goes on, and so do its frames"
        await waiting.send(b"still there\r")
        await said_until(waiting, b"still there\r\nstill there")
        await floods[0].close()
        assert floods[0].ended == LOST_STATUS
        again = await room.executor.open_shell(RUN, ("echo", "room"), 80, 24)
        assert b"room" in await said_until(again, b"room")
        await room.executor.stop(RUN, 0)
        while room.executor.running:  # noqa: ASYNC110 - nothing tells it
            await trio.sleep(0.02)
        assert waiting.ended == LOST_STATUS
    assert MOST_SHELLS == 4


OUTSIDE = """
import os, urllib.request
import numpy as np
def main(ctx):
    state = ctx.sync({"w": np.ones(3)})
    if ctx.worker == 0:
        body = urllib.request.urlopen("http://example.org/data?x=1", timeout=20).read()
        (ctx.outputs / "body").write_bytes(body)
    print(ctx.worker, os.environ.get("https_proxy"), os.environ.get("NO_PROXY"), flush=True)
    ctx.report(step=1)
"""


@pytest.fixture
def proxy(tmp_path):
    """The host's end of a way out: answers each request and keeps its first line."""
    directory = tmp_path / "way"
    directory.mkdir(mode=0o755)
    path = directory / "egress.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    path.chmod(0o777)
    server.listen()
    asked = []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                said = b""
                while b"\r\n\r\n" not in said:
                    said += connection.recv(65536)
                asked.append(said.split(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

    threading.Thread(target=serve, daemon=True).start()
    yield path, asked
    server.close()


@pytest.mark.trio
async def test_a_job_with_a_way_out_speaks_through_it_and_rays_own_connections_do_not(tmp_path, proxy):
    need_sandbox()
    path, asked = proxy
    async with a_room() as room:
        await room.executor.start(an_order(tmp_path, OUTSIDE, workers=2, egress=path, run=RUN))
        synced = await room.wait_for(RunSynced)
        await room.executor.deliver_round(RUN, 0, synced.state)
        await room.wait_for((RunFinished, RunFailed))
        assert isinstance(room.events[-1], RunFinished), room.events[-3:]
        (output,) = [event for event in room.events if isinstance(event, RunOutput)]
        assert room.blobs.kept[output.blob.root] == b"hello"
    assert asked == [b"GET http://example.org/data?x=1 HTTP/1.1"], "and nothing of Ray's"
    assert "0 http://127.0.0.1:3128 localhost,127.0.0.1,job" in room.log
    assert "1 http://127.0.0.1:3128" in room.log
