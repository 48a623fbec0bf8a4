"""Hostile interactions of every kind with one whole daemon, while an honest peer makes requests: ``make hostile``.

    python tests/hostile/siege.py [--interactions 100000] [--rate 200] [--quiet-s 30]

The daemon, the honest peer and the attackers are processes of their own; the attackers are nice, because what is
measured is the daemon and not how a machine of two cores is shared. Prints what was done, the honest peer's times
before and during it, the daemon's memory, tasks and files, and what it logged. Ends with status 1 if the daemon fell,
an honest request failed, the honest p99 more than doubled, or memory still grew in the second half.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trio
from hostile.stranger import a_stranger, some_address
from kit.peer_frames import framed, hello_of
from kit.raw_peer import DATA, GO_AWAY, PING, SYN, WINDOW, frame, line, raw_peer

from hansa.node.libp2p_host import open_net
from hansa.node.net import NetConfig, NetError
from hansa.node.peer_exchange import PeersWanted
from hansa.proto.codec import encode
from hansa.proto.protocols import HELLO, MARKET, PEERS

SUBJECT = Path(__file__).with_name("subject.py")
ASK_EVERY_S = 0.02
AT_ONCE = 12
NOISE = line(b"/multistream/1.0.0") + line(b"/noise")
MOST_RATIO = 2.0
MOST_GROWTH = 0.05
MOST_LOG_BYTES = 1 << 20


# What attackers do. Each answers how many interactions that were.


async def bent_frames(addr: str, chance: random.Random) -> int:
    """Sound messages with something wrong about them, on any protocol."""
    async with a_stranger(addr) as stranger:
        if chance.random() < 0.5:
            await stranger.prove_account()
        said = []
        for _ in range(8):
            protocol = chance.choice(sorted(stranger.bodies))
            said.append(await stranger.say(protocol, stranger.draw(protocol, chance), ends=chance.random() < 0.8))
        await stranger.await_ends(said, 0.5)
        return len(said)


async def replayed(addr: str, chance: random.Random) -> int:
    """Another's hello and market messages, again and again, in any order."""
    async with a_stranger(addr) as stranger:
        stolen = hello_of(os.urandom(32), time.time_ns() // 1_000_000)
        bodies = [(HELLO, stolen)] * 4 + [(MARKET, chance.choice(stranger.bodies[MARKET]))] * 4
        chance.shuffle(bodies)
        said = [await stranger.say(protocol, framed(protocol, body)) for protocol, body in bodies]
        await stranger.await_ends(said, 0.5)
        return len(said)


async def hoarding(addr: str, chance: random.Random) -> int:
    """Most of a large message on many streams, held."""
    async with a_stranger(addr) as stranger:
        most = (200 << 10).to_bytes(4, "big") + bytes(190 << 10)
        for _ in range(12):
            await stranger.say(MARKET, most, ends=False)
        await trio.sleep(chance.uniform(0.5, 3))
        return 12


async def dripping(addr: str, chance: random.Random) -> int:
    """A byte now and then."""
    async with a_stranger(addr) as stranger:
        said = [await stranger.say(chance.choice((HELLO, PEERS)), b"\x00\x00", ends=False) for _ in range(4)]
        for _ in range(3):
            await trio.sleep(0.3)
            for each in said:
                await stranger.peer.send(frame(DATA, 0, each, 1) + b"\x00")
        return len(said)


async def flooding_streams(addr: str, _chance: random.Random) -> int:
    """Thousands of streams in one piece."""
    async with raw_peer(addr, source=some_address()) as peer:
        await peer.mux()
        await peer.send(b"".join(frame(WINDOW, SYN, each, 0) for each in range(1, 4_001, 2)))
        await peer.is_hung_up_on(0.5)
        return 1


async def breaking_windows(addr: str, chance: random.Random) -> int:
    """More than was allowed, or frames that no multiplexer sends."""
    async with raw_peer(addr, source=some_address()) as peer:
        await peer.mux()
        await peer.open(1, line(b"/multistream/1.0.0") + line(MARKET.encode()))
        odd = (
            frame(9, SYN, 1, 0),
            frame(DATA, 0, 99, 0xFFFFFFFF),
            frame(GO_AWAY, 0, 0, 2),
            frame(PING, SYN, 0, 1) * 999,
        )
        if chance.random() < 0.5:
            await peer.send(chance.choice(odd))
        else:
            for _ in range(6):
                await peer.send(frame(DATA, 0, 1, 60_000) + bytes(60_000))
        await peer.is_hung_up_on(0.5)
        return 1


async def junk(addr: str, chance: random.Random) -> int:
    """No libp2p at all, a header of gigabytes, the beginning of TLS."""
    openings = (
        b"\x80\x80\x80\x80\x20" + bytes(10_000),
        b"\x03\xff\xfe\n",
        NOISE + b"\xff\xff" + os.urandom(65_535),
        NOISE + b"\x00\x00" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01" + os.urandom(200),
        os.urandom(chance.choice((1, 40, 3_000))),
    )
    async with raw_peer(addr, source=some_address()) as peer:
        await peer.send_raw(chance.choice(openings))
        await peer.is_hung_up_on(0.2)
        return 1


async def half_open(addr: str, chance: random.Random) -> int:
    """Connected and silent, before or in the midst of the handshake."""
    async with raw_peer(addr, source=some_address()) as peer:
        if chance.random() < 0.5:
            await peer.send_raw(NOISE)
        await trio.sleep(chance.uniform(0.5, 3))
        return 1


async def flooding_connections(addr: str, _chance: random.Random) -> int:
    """Many at once from one address."""
    source = some_address()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(raw_peer(addr, source=source))
        return 20


Attack = Callable[[str, random.Random], Awaitable[int]]
ATTACKS: dict[Attack, int] = {
    bent_frames: 60,
    replayed: 15,
    hoarding: 4,
    dripping: 5,
    flooding_streams: 2,
    breaking_windows: 8,
    junk: 30,
    half_open: 6,
    flooding_connections: 1,
}


async def attack(addr: str, count: int, rate: float, seed: int, only: str) -> None:
    """So many interactions, no faster than this; then says what they were."""
    kinds = {kind: weight for kind, weight in ATTACKS.items() if only in ("", kind.__name__)}
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    print(flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    began = trio.current_time()

    async def one_after_the_other() -> None:
        while done.total() < count:
            await trio.sleep(max(0.0, began + done.total() / rate - trio.current_time()))
            (kind,) = chance.choices(list(kinds), list(kinds.values()))
            made = 1
            with contextlib.suppress(Exception), trio.move_on_after(15):
                made = await kind(addr, chance)
            done[kind.__name__] += made

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(one_after_the_other)
    print(json.dumps(done), flush=True)


# The honest peer, and the whole.


class Watched:
    """What the subject says of itself."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """A process that has just been started."""
        assert process.stdout is not None
        self.process, self.figures = process, list[dict[str, Any]]()
        self.addr = self._next()["addr"]

    def _next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            if text.startswith("{"):
                return dict(json.loads(text))
        raise EOFError("the daemon has ended")

    def watch(self) -> None:
        """Take figures in until there are no more."""
        with contextlib.suppress(EOFError):
            while True:
                self.figures.append(self._next())


def p99(times: list[float]) -> float:
    """In milliseconds."""
    return statistics.quantiles(times, n=100)[98] * 1000


async def siege(watched: Watched, options: argparse.Namespace) -> tuple[list[float], list[float], int, Counter[str]]:
    """The honest peer's times before and during the attack, its failures, and what was done."""
    times: tuple[list[float], list[float]] = ([], [])
    failures, phase = 0, 0
    done: Counter[str] = Counter()
    async with open_net(NetConfig(), os.urandom(32)) as net, trio.open_nursery() as nursery:
        net.learn(watched.addr.rpartition("/p2p/")[2], (watched.addr,))
        peer_id = watched.addr.rpartition("/p2p/")[2]

        async def ask() -> None:
            nonlocal failures
            for _ in range(20):
                await net.request(peer_id, PEERS, encode(PeersWanted(addrs=())))
            while True:
                start = trio.current_time()
                try:
                    await net.request(peer_id, PEERS, encode(PeersWanted(addrs=())))
                except NetError as error:
                    failures += 1
                    print(f"an honest request failed: {error}")
                times[phase].append(trio.current_time() - start)
                await trio.sleep(ASK_EVERY_S)

        argv = [sys.executable, __file__, "--attack", watched.addr, "--interactions", str(options.interactions // 2)]
        argv = ["nice", "-n", "19", *argv, "--rate", str(options.rate / 2), "--only", options.only]
        attackers = [
            await trio.lowlevel.open_process(
                [*argv, "--seed", str(options.seed + number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for number in range(2)
        ]
        try:
            for each in attackers:
                assert each.stdout is not None
                await each.stdout.receive_some()  # it is there, and importing is not what is measured
            nursery.start_soon(ask)
            await trio.sleep(options.quiet_s)
            phase = 1
            for each in attackers:
                assert each.stdin is not None
                await each.stdin.send_all(b"\n")
            for each in attackers:
                assert each.stdout is not None
                told = b""
                async for part in each.stdout:
                    told += part
                done.update(json.loads(told))
        finally:
            for each in attackers:
                each.kill()
        nursery.cancel_scope.cancel()
    return *times, failures, done


def judge(figures: list[dict[str, Any]], ratio: float, failures: int, log_bytes: int) -> list[str]:
    """What does not hold."""
    memory = [each["memory_bytes"] for each in figures]
    half = len(memory) // 2
    late = statistics.median(memory[-half // 5 :]) / statistics.median(memory[half : half + half // 5 + 1]) - 1
    print(f"memory: growth in the second half {late:+.1%}")
    return [
        words
        for words, met in (
            ("the honest p99 more than doubled", ratio > MOST_RATIO),
            ("honest requests failed", failures > 0),
            ("memory still grows", late > MOST_GROWTH),
            ("it logs too much", log_bytes > MOST_LOG_BYTES),
            ("the network's parts fell", figures[-1]["counters"].get("net.restarted", 0) > 0),
        )
        if met
    ]


def run(options: argparse.Namespace) -> int:
    """All of it."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, str(SUBJECT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            watched = Watched(process)

            async def both() -> Any:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: trio.to_thread.run_sync(watched.watch, abandon_on_cancel=True))
                    told = await siege(watched, options)
                    await trio.sleep(3)
                    nursery.cancel_scope.cancel()
                return told

            began = time.monotonic()
            quiet, besieged, failures, done = trio.run(both)
            took_s = time.monotonic() - began - options.quiet_s
            fell = process.poll() is not None
        finally:
            process.kill()
            process.wait()
        log_bytes = log.seek(0, os.SEEK_END)
    ratio = p99(besieged) / p99(quiet)
    print(f"{done.total()} hostile interactions in {took_s:.0f} s: {dict(done)}")
    for words, times in (("quiet", quiet), ("besieged", besieged)):
        print(
            f"honest, {words:9}{len(times):7} requests, p50 {statistics.median(times) * 1000:.1f} ms, "
            f"p99 {p99(times):.1f} ms"
        )
    print(f"ratio of the p99s: {ratio:.2f}; failed: {failures}")
    for name in ("memory_bytes", "tasks", "connections", "streams", "files", "held_bytes"):
        row = [each[name] for each in watched.figures]
        print(f"{name:13} start {row[0]:>12} most {max(row):>12} end {row[-1]:>12}")
    print(f"logged: {log_bytes} bytes")
    surprises = {
        k: n for k, n in watched.figures[-1]["counters"].items() if "handler_failed" in k or "task_failed" in k
    }
    print(f"exceptions of ours that a peer provoked: {surprises or 'none'}")
    wrong = judge(watched.figures, ratio, failures, log_bytes) + ["the daemon fell"] * fell
    print("holds" if not wrong else f"DOES NOT HOLD: {'; '.join(wrong)}")
    return 1 if wrong else 0


def main() -> int:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=200.0, help="interactions a second")
    parser.add_argument("--quiet-s", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", choices=["", *(kind.__name__ for kind in ATTACKS)], help="one kind alone")
    parser.add_argument("--attack", metavar="ADDR", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        trio.run(attack, options.attack, options.interactions, options.rate, options.seed, options.only)
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
