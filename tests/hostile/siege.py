"""Hostile interactions of every kind with one whole daemon, while an honest peer makes requests: ``make hostile``.

    python tests/hostile/siege.py [--interactions 100000] [--rate 260] [--quiet-s 40] [--control-s 40] [--networks 4]
        [--open-door]

The daemon, the honest peer and the attackers are processes of their own. On the internet they would have machines of
their own: so the daemons and the honest peer run at real-time priority where that is allowed, the attackers when nobody
of those wants a core, and the honest peer's collector of garbage is off. What is measured is the daemon. Three times
are compared: quiet; under siege; and, as a control, while the same siege is laid to a second daemon beside ours, which
is what the load of this machine costs without any of it meeting our daemon.

Prints what was done and how much of it was let in, the honest peer's times, how newcomers from the attackers' networks
and from another fared, what the daemon used of a core, its memory, tasks and files, and what it logged. Ends with
status 1 if the daemon fell, an honest request failed, the honest p99 more than doubled against the quiet, or memory
still grew in the second half. With ``--open-door`` the pace of handshakes is no limit, so that everything meets what
lies behind it.
"""

import argparse
import contextlib
import gc
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trio
from hostile.stranger import a_neighbour, a_stranger, some_address
from kit.peer_frames import framed, hello_of
from kit.raw_peer import DATA, GO_AWAY, PING, SYN, WINDOW, frame, line, raw_peer

from hansa.node.messaging.peer_exchange import PeersWanted
from hansa.node.network.libp2p_acquaintances import FIRST_PAUSE_S, LONGEST_PAUSE_S
from hansa.node.network.libp2p_host import Libp2pNet, open_net
from hansa.node.network.net import NetConfig, NetError
from hansa.proto.codec import encode
from hansa.proto.protocols import HELLO, MARKET, PEERS

SUBJECT = Path(__file__).with_name("subject.py")
ASK_EVERY_S = 0.02
NEWCOMER_EVERY_S = 2.0
AT_ONCE = 64
TURNED_AWAY = "turned away"
FROM_AMONG_THEM = "from the attackers' networks"
FROM_ELSEWHERE = "from another network"
NOISE = line(b"/multistream/1.0.0") + line(b"/noise")
REST_S = 12.0
MOST_RATIO = 2.0
MOST_GROWTH = 0.05
GROWTH_AFTER_S = 120
"""In the first minute or two memory grows to what is held at most, whatever is held."""
MOST_LOG_BYTES = 1 << 20


# What attackers do. Each answers how many interactions that were.


async def bent_frames(addr: str, source: str, chance: random.Random) -> int:
    """Sound messages with something wrong about them, on any protocol."""
    async with a_stranger(addr, source) as stranger:
        if chance.random() < 0.5:
            await stranger.prove_account()
        said = []
        for _ in range(8):
            protocol = chance.choice(sorted(stranger.bodies))
            said.append(await stranger.say(protocol, stranger.draw(protocol, chance), ends=chance.random() < 0.8))
        await stranger.await_ends(said, 0.5)
        return len(said)


async def replayed(addr: str, source: str, chance: random.Random) -> int:
    """Another's hello and market messages, again and again, in any order."""
    async with a_stranger(addr, source) as stranger:
        stolen = hello_of(os.urandom(32), time.time_ns() // 1_000_000)
        bodies = [(HELLO, stolen)] * 4 + [(MARKET, chance.choice(stranger.bodies[MARKET]))] * 4
        chance.shuffle(bodies)
        said = [await stranger.say(protocol, framed(protocol, body)) for protocol, body in bodies]
        await stranger.await_ends(said, 0.5)
        return len(said)


async def hoarding(addr: str, source: str, chance: random.Random) -> int:
    """Most of a large message on many streams, held."""
    async with a_stranger(addr, source) as stranger:
        most = (200 << 10).to_bytes(4, "big") + bytes(190 << 10)
        for _ in range(12):
            await stranger.say(MARKET, most, ends=False)
        await trio.sleep(chance.uniform(0.5, 3))
        return 12


async def dripping(addr: str, source: str, chance: random.Random) -> int:
    """A byte now and then."""
    async with a_stranger(addr, source) as stranger:
        said = [await stranger.say(chance.choice((HELLO, PEERS)), b"\x00\x00", ends=False) for _ in range(4)]
        for _ in range(3):
            await trio.sleep(0.3)
            for each in said:
                await stranger.peer.send(frame(DATA, 0, each, 1) + b"\x00")
        return len(said)


async def flooding_streams(addr: str, source: str, _chance: random.Random) -> int:
    """Thousands of streams in one piece."""
    async with raw_peer(addr, source=source) as peer:
        await peer.mux()
        await peer.send(b"".join(frame(WINDOW, SYN, each, 0) for each in range(1, 4_001, 2)))
        await peer.is_hung_up_on(0.5)
        return 1


async def breaking_windows(addr: str, source: str, chance: random.Random) -> int:
    """More than was allowed, or frames that no multiplexer sends."""
    async with raw_peer(addr, source=source) as peer:
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


async def junk(addr: str, source: str, chance: random.Random) -> int:
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
    async with raw_peer(addr, source=source) as peer:
        await peer.send_raw(chance.choice(openings))
        await peer.is_hung_up_on(0.2)
        return 1


async def half_open(addr: str, source: str, chance: random.Random) -> int:
    """Connected and silent, before or in the midst of the handshake."""
    async with raw_peer(addr, source=source) as peer:
        if chance.random() < 0.5:
            await peer.send_raw(NOISE)
        await trio.sleep(chance.uniform(0.5, 3))
        return 1


async def flooding_connections(addr: str, source: str, _chance: random.Random) -> int:
    """Many at once from one address."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(raw_peer(addr, source=source))
        return 20


Attack = Callable[[str, str, random.Random], Awaitable[int]]
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


async def attack(options: argparse.Namespace) -> None:
    """So many interactions, no faster than this; then says what they were."""
    addr, count, rate = options.attack, options.interactions, options.rate
    kinds = {kind: weight for kind, weight in ATTACKS.items() if options.only in ("", kind.__name__)}
    chance = random.Random(options.seed)
    done: Counter[str] = Counter()
    away: Counter[str] = Counter()
    is_second = os.sched_getscheduler(0) == os.SCHED_RR  # as whoever started us; after those any class comes last
    os.sched_setscheduler(0, os.SCHED_OTHER if is_second else os.SCHED_IDLE, os.sched_param(0))
    print(flush=True)
    await trio.to_thread.run_sync(sys.stdin.readline)
    began = trio.current_time()
    until = began + options.most_s

    async def one_after_the_other() -> None:
        while done.total() < count and trio.current_time() < until:
            await trio.sleep(max(0.0, began + done.total() / rate - trio.current_time()))
            (kind,) = chance.choices(list(kinds), list(kinds.values()))
            made = 1
            with contextlib.suppress(Exception), trio.move_on_after(15):
                made = await kind(addr, some_address(chance, options.networks), chance)
                away[TURNED_AWAY] -= 1
            away[TURNED_AWAY] += 1
            done[kind.__name__] += made

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(one_after_the_other)
    print(json.dumps({**done, **away}), flush=True)


# The honest peer, and the whole.


class Watched:
    """What the subject says of itself."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """A process that has just been started."""
        assert process.stdout is not None
        self.process, self.figures = process, list[dict[str, Any]]()
        self.addr = self._next()["addr"]
        self.besieged_from = self.besieged_to = 1

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


class Newcomers:
    """Honest ones, under names that nobody knows: whether they came in at once, and after how long at last."""

    def __init__(self, words: str) -> None:
        """``words``: from where they come."""
        self.words = words
        self.came = self.at_once = 0
        self.took_s: list[float] = []
        self.first_took_s: list[float] = []

    async def come(self, addr: str, source: str) -> None:
        """Try until it is in, as a node does: after pauses that double."""
        began, pause_s = trio.current_time(), FIRST_PAUSE_S
        self.came += 1
        for tries in itertools.count(1):
            start = trio.current_time()
            with contextlib.suppress(Exception), trio.move_on_after(8):
                async with raw_peer(addr, source=source) as peer:
                    await peer.mux()
                    self.took_s.append(trio.current_time() - began)
                    if tries == 1:
                        self.first_took_s.append(trio.current_time() - start)
                    return
            await trio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    def tell(self) -> None:
        """Print it. Who is not in when the siege ends counts among those that came."""
        first = (
            f", half of these within {1000 * statistics.median(self.first_took_s):.0f} ms" if self.first_took_s else ""
        )
        print(f"newcomers {self.words}: {len(self.first_took_s)} of {self.came} came in at the first try{first}")
        if len(self.took_s) > 1:
            p50, p95 = statistics.median(self.took_s), statistics.quantiles(self.took_s, n=20)[18]
            print(f"  {len(self.took_s)} of them in the end; until one is in: p50 {p50:.2f} s, p95 {p95:.2f} s")


class Honest:
    """A peer that asks the same small thing again and again, and what became of it in each phase."""

    def __init__(self, addr: str) -> None:
        """``addr``: the daemon's."""
        self.addr, self.peer_id = addr, addr.rpartition("/p2p/")[2]
        self.times: dict[str, list[float]] = {"quiet": [], "control": [], "besieged": []}
        self.newcomers = {words: Newcomers(words) for words in (FROM_AMONG_THEM, FROM_ELSEWHERE)}
        self.failures = 0
        self.phase = "quiet"

    async def ask(self, net: Libp2pNet) -> None:
        """For ever."""
        for _ in range(50):
            await net.request(self.peer_id, PEERS, encode(PeersWanted(addrs=())))
        while True:
            start = trio.current_time()
            try:
                await net.request(self.peer_id, PEERS, encode(PeersWanted(addrs=())))
            except NetError as error:
                self.failures += 1
                print(f"an honest request failed: {error}")
            self.times[self.phase].append(trio.current_time() - start)
            await trio.sleep(ASK_EVERY_S)

    async def come_anew(self, newcomers: Newcomers, source: Callable[[], str]) -> None:
        """For ever: under a name and from an address that nobody knows, try until one is in, and go again."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(NEWCOMER_EVERY_S)
                if self.phase == "besieged":
                    nursery.start_soon(newcomers.come, self.addr, source())


async def lay_siege(addr: str, count: float, seconds: float, options: argparse.Namespace) -> Counter[str]:
    """Two processes of attackers, until they have done so much or so much time is over."""
    argv = [sys.executable, __file__, "--attack", addr, "--interactions", str(int(count / 2)), "--only", options.only]
    argv += ["--rate", str(options.rate / 2), "--most-s", str(seconds), "--networks", str(options.networks)]
    done: Counter[str] = Counter()
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
    return done


async def siege(watched: Watched, decoy: Watched, options: argparse.Namespace) -> tuple[Honest, Counter[str]]:
    """What the honest peer saw, and what was done."""
    honest = Honest(watched.addr)
    gc.collect()
    gc.disable()  # this process only measures
    async with open_net(NetConfig(), os.urandom(32)) as net, trio.open_nursery() as nursery:
        net.learn(honest.peer_id, (watched.addr,))
        nursery.start_soon(honest.ask, net)
        chance = random.Random(options.seed)
        among, elsewhere = honest.newcomers.values()
        nursery.start_soon(honest.come_anew, among, lambda: a_neighbour(chance, options.networks))
        nursery.start_soon(
            honest.come_anew, elsewhere, lambda: f"127.251.{chance.randrange(250)}.{1 + chance.randrange(250)}"
        )
        await trio.sleep(options.quiet_s)
        if options.control_s:
            honest.phase = "control"
            await lay_siege(decoy.addr, options.interactions, options.control_s, options)
        decoy.process.kill()
        honest.phase = "besieged"
        watched.besieged_from = len(watched.figures)
        done = await lay_siege(watched.addr, options.interactions, options.most_s, options)
        watched.besieged_to = len(watched.figures)
        nursery.cancel_scope.cancel()
    return honest, done


def judge(watched: Watched, ratio: float, failures: int, log_bytes: int) -> list[str]:
    """What does not hold."""
    figures = watched.figures[watched.besieged_from :]
    memory = [each["memory_bytes"] for each in figures]
    half = len(memory) // 2
    late = statistics.median(memory[-half // 5 :]) / statistics.median(memory[half : half + half // 5 + 1]) - 1
    print(f"memory: growth in the second half {late:+.1%}")
    return [
        words
        for words, met in (
            ("the honest p99 more than doubled", ratio > MOST_RATIO),
            ("honest requests failed", failures > 0),
            ("memory still grows", late > MOST_GROWTH and len(memory) > GROWTH_AFTER_S),
            ("it logs too much", log_bytes > MOST_LOG_BYTES),
            ("the network's parts fell", figures[-1]["counters"].get("net.restarted", 0) > 0),
        )
        if met
    ]


def tell_honest(honest: Honest) -> float:
    """Print how the honest peer and newcomers fared; answers the ratio of the p99s."""
    for words, times in honest.times.items():
        if len(times) > 1:
            p50 = statistics.median(times) * 1000
            print(f"honest, {words:9}{len(times):7} requests, p50 {p50:.1f} ms, p99 {p99(times):.1f} ms")
    ratio = p99(honest.times["besieged"]) / p99(honest.times["quiet"])
    print(f"the p99 against the quiet: {ratio:.2f} times", end="")
    if len(honest.times["control"]) > 1:
        against = p99(honest.times["besieged"]) / p99(honest.times["control"])
        print(f"; against the same load beside it: {against:.2f} times", end="")
    print(f"; failed: {honest.failures}")
    for each in honest.newcomers.values():
        each.tell()
    return ratio


def tell_daemon(watched: Watched, done: int) -> None:
    """Print what it cost the daemon."""
    before, after = (watched.figures[at - 1] for at in (watched.besieged_from, watched.besieged_to))
    used_s, took_s = after["cpu_s"] - before["cpu_s"], watched.besieged_to - watched.besieged_from
    print(f"the daemon used {used_s / took_s:.0%} of a core, {1000 * used_s / done:.2f} ms for each interaction")
    for name in ("memory_bytes", "blocks", "tasks", "connections", "streams", "files", "held_bytes"):
        row = [each[name] for each in watched.figures]
        print(f"{name:13} start {row[0]:>12} most {max(row):>12} end {row[-1]:>12}")
    counters = watched.figures[-1]["counters"]
    print("at the door:", {name: count for name, count in counters.items() if name.startswith("inbound.")})
    surprises = {name: count for name, count in counters.items() if "handler_failed" in name or "task_failed" in name}
    print(f"exceptions of ours that a peer provoked: {surprises or 'none'}")


@contextlib.contextmanager
def a_subject(log: IO[bytes] | int, options: argparse.Namespace) -> Iterator[Watched]:
    """A daemon in a process of its own."""
    argv = [sys.executable, str(SUBJECT), *(["--open-door"] if options.open_door else [])]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield Watched(process)
    finally:
        process.kill()
        process.wait()


def go_first() -> None:
    """Run, and have what this process starts run, before everything else on this machine, if that is allowed."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
    except PermissionError:
        print("no right to real-time priority: the times hold what the attackers' work costs this machine as well")


def run(options: argparse.Namespace) -> int:
    """All of it."""
    go_first()
    with (
        tempfile.TemporaryFile() as log,
        a_subject(log, options) as watched,
        a_subject(subprocess.DEVNULL, options) as decoy,
    ):

        async def all_of_it() -> Any:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: trio.to_thread.run_sync(watched.watch, abandon_on_cancel=True))
                nursery.start_soon(lambda: trio.to_thread.run_sync(decoy.watch, abandon_on_cancel=True))
                told = await siege(watched, decoy, options)
                await trio.sleep(REST_S)
                nursery.cancel_scope.cancel()
            return told

        honest, done = trio.run(all_of_it)
        fell = watched.process.poll() is not None
        log_bytes = log.seek(0, os.SEEK_END)
    away = done.pop(TURNED_AWAY, 0)
    took_s = watched.besieged_to - watched.besieged_from
    print(f"{done.total()} hostile interactions in {took_s} s: {dict(done)}; {away} attackers were turned away")
    ratio = tell_honest(honest)
    tell_daemon(watched, done.total())
    print(f"logged: {log_bytes} bytes")
    wrong = judge(watched, ratio, honest.failures, log_bytes) + ["the daemon fell"] * fell
    print("holds" if not wrong else f"DOES NOT HOLD: {'; '.join(wrong)}")
    return 1 if wrong else 0


def main() -> int:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=260.0, help="interactions a second")
    parser.add_argument("--most-s", type=float, default=450.0, help="the siege ends by then, whatever was done")
    parser.add_argument("--quiet-s", type=float, default=40.0)
    parser.add_argument("--control-s", type=float, default=40.0, help="none with 0")
    parser.add_argument("--open-door", action="store_true", help="let everybody shake hands at any pace")
    parser.add_argument("--networks", type=int, default=4, help="of the attackers, 24 bits each; 0: all of loopback")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", choices=["", *(kind.__name__ for kind in ATTACKS)], help="one kind alone")
    parser.add_argument("--attack", metavar="ADDR", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        trio.run(attack, options)
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
