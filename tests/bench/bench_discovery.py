"""Real node processes find all adverts: how long until each knows 99 % of them, and what a node sends and receives.

``python tests/bench/bench_discovery.py --nodes 24``. Every process is a node's whole network room (connections,
gossip, peer exchange, books that are compared, the table of providers) with an advert of its own; it has no engine
and lends nothing, so that as many as possible fit on this machine: fifty, or as many as its memory holds and its cores
keep up with. All are told the address of the first at the same moment. Processes that do not get a core when they need
one show as latency: take a machine that does nothing else.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import trio
from kit.memory_party import DEVICE, key

from hansa.node.messaging.book import Book
from hansa.node.messaging.discovery import Discovery
from hansa.node.messaging.peer_exchange import PeerExchange
from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import NetConfig, NetLimits
from hansa.proto.market_documents import Advert
from hansa.proto.network import DOMAIN
from hansa.proto.signing import sign
from hansa.scheduler.advert_classes import capability_names
from hansa.scheduler.advert_pace import every_ms, life_ms, was_hardly_heard

KNOWN = 0.99
MOST_NODES = 50
NODES_PER_CORE = 16
"""Each says its advert every 15 s and hears everybody's some eight times: what all do grows with their square."""
NODE_BYTES = 200 << 20
"""What to have free for each: one that was started alone had 109 MiB resident."""
LONGEST_S = 480


def shown(times: list[float]) -> str:
    """The median, the 95th and the 99th percentile, in seconds."""
    ranked = sorted(times)
    return " / ".join(f"{ranked[min(len(ranked) - 1, int(len(ranked) * part))]:.2f}" for part in (0.5, 0.95, 0.99))


class Node:
    """One process, forked from this one, which has loaded the code: to load it fifty times takes minutes."""

    def __init__(self, number: int, directory: Path) -> None:
        """Start it; it says where it can be dialled when it is up."""
        sys.stdout.flush()  # or the new process says again what waits here
        hears, its_input = os.pipe()
        its_output, speaks = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _be_a_node(number, directory, hears, speaks)
        for end in (hears, speaks):
            os.close(end)
        self._input, self._output = os.fdopen(its_input, "w"), os.fdopen(its_output)

    def hear(self) -> dict[str, Any]:
        """The next thing that it says."""
        line = self._output.readline()
        assert line, "a node ended"
        said: dict[str, Any] = json.loads(line)
        return said

    def say(self, **what: object) -> None:
        """Tell it something."""
        self._input.write(json.dumps(what) + "\n")
        self._input.flush()

    def end(self) -> None:
        """It goes."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._input.close()
        self._output.close()


def _be_a_node(number: int, directory: Path, hears: int, speaks: int) -> None:
    """In the new process: live and never return."""
    try:
        for signal_number in (signal.SIGALRM, signal.SIGTERM):
            signal.signal(signal_number, signal.SIG_DFL)
        os.dup2(hears, 0)
        os.dup2(speaks, 1)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        live(number, directory)
    except BaseException:  # noqa: BLE001  # nothing of the process that it was forked from may run on here
        traceback.print_exc()
    finally:
        os._exit(0)


def free_bytes() -> int:
    """How much memory new processes can have on this machine."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) << 10


def own_bytes(pid: int) -> int:
    """How much memory a process has for itself; the code that all were forked with is not in it."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(lines[name].split()[0]) << 10 for name in ("Private_Clean", "Private_Dirty"))


def start_all(count: int, kept: Path, nodes: list[Node]) -> list[str]:
    """So many nodes, as many at a time as there are cores: what they take to start is not what is measured."""
    addrs: list[str] = []
    for number in range(count):
        (kept / str(number)).mkdir()
        nodes.append(Node(number, kept / str(number)))
        if len(nodes) - len(addrs) >= (os.cpu_count() or 1):
            addrs.append(nodes[len(addrs)].hear()["addr"])
    while len(addrs) < count:
        addrs.append(nodes[len(addrs)].hear()["addr"])
    return addrs


def measure(count: int, steady_s: float) -> None:
    """A network from its start, a minute of its life, and a newcomer."""
    with tempfile.TemporaryDirectory() as kept:
        nodes: list[Node] = []
        try:
            addrs = start_all(count, Path(kept), nodes)
            load = os.getloadavg()[0]
            for node in nodes:
                node.say(bootstrap=addrs[:1], all=count)
            took = [node.hear()["known_s"] for node in nodes]
            print(f"{count} node processes on {os.cpu_count()} cores, load {load:.1f} when all were up")
            print(f"all adverts from a cold start, until 99 % known, p50 / p95 / p99: {shown(took)} s", flush=True)
            time.sleep(5)
            before = [_figures(node) for node in nodes]
            time.sleep(steady_s)
            after = [_figures(node) for node in nodes]
            scale = 60 / steady_s / count / 1000
            sent, received, cpu_s = (
                sum(late[name] - early[name] for early, late in zip(before, after, strict=True))
                for name in ("sent", "received", "cpu_s")
            )
            print(
                f"steady state: a node sends {sent * scale:.0f} KB and receives {received * scale:.0f} KB a minute, "
                f"and takes {100 * cpu_s / steady_s / count:.1f} % of a core; {after[0]['peers']} connections",
                flush=True,
            )
            own = sorted(own_bytes(node.pid) >> 20 for node in nodes)
            print(f"memory of a node's own: {own[len(own) // 2]} MiB in the middle, {own[-1]} MiB at the most")
            (Path(kept) / "new").mkdir()
            newcomer = Node(count, Path(kept) / "new")
            nodes.append(newcomer)
            newcomer.hear()
            newcomer.say(bootstrap=addrs[:1], all=count)
            print(f"a newcomer knows 99 % of them after {newcomer.hear()['known_s']:.2f} s")
        finally:
            for node in nodes:
                node.end()


def _figures(node: Node) -> dict[str, Any]:
    node.say(figures=True)
    return node.hear()


def live(number: int, directory: Path) -> None:
    """The life of one node."""
    passed = {"sent": 0, "received": 0}
    receive, send = trio.SocketStream.receive_some, trio.SocketStream.send_all

    async def counted_receive(self: Any, max_bytes: int | None = None) -> bytes:
        data: bytes = await receive(self, max_bytes)
        passed["received"] += len(data)
        return data

    async def counted_send(self: Any, data: bytes) -> None:
        passed["sent"] += len(data)
        await send(self, data)

    trio.SocketStream.receive_some = counted_receive  # type: ignore[method-assign]
    trio.SocketStream.send_all = counted_send  # type: ignore[method-assign]

    async def main() -> None:
        # Everybody is at one address here, of which a node would take sixteen connections.
        limits = NetLimits(connections_per_ip=256, pending_handshakes_per_ip=64)
        async with open_net(NetConfig(limits=limits), key(70_000 + number).secret()) as net:
            print(json.dumps({"addr": net.addrs()[0]}), flush=True)
            said = json.loads(await trio.to_thread.run_sync(sys.stdin.readline))
            await _take_part(net, number, directory, said, passed)

    trio.run(main)


async def _take_part(net: Any, number: int, directory: Path, said: Any, passed: dict[str, int]) -> None:
    def now_ms() -> int:
        return int(time.time() * 1000)

    account = key(60_000 + number)
    book = Book(net, now_ms, lambda advert: net.learn(advert.peer_id, advert.addresses, advert.peer_id))
    discovery = Discovery(net, book, now_ms, account=account.address, useful=lambda: {"cpu"}, data_dir=directory)
    discovery.serve()
    began_s = time.monotonic()

    def live_peers() -> int:
        return sum(peer.phase == "live" for peer in net.peers())

    async def advertise() -> None:
        while True:
            others = book.adverts.count({"cpu"})
            advert = Advert(
                signer=account.address,
                peer_id=net.peer_id,
                addresses=net.addrs(),
                devices=(DEVICE,),
                free=1,
                tier="sandbox",
                features=("dependencies", "image"),
                region="eu-west",
                facts=(),
                currency="USD",
                price_e18_per_device_ms=10**15 + number,
                sequence=now_ms(),
                expires_ms=now_ms() + life_ms(others),
            )
            net.advertise(capability_names(advert))
            neighbours = live_peers()
            await book.publish(sign(DOMAIN, advert, account))
            await trio.sleep(1)
            with trio.move_on_after(every_ms(others) / 1000):
                while not was_hardly_heard(neighbours, live_peers()):  # noqa: ASYNC110  # as the daemon does
                    await trio.sleep(1)

    async def greet() -> None:
        async for peer_id in net.arrivals():
            nursery.start_soon(discovery.sync.greet, peer_id)

    async def tell() -> None:
        while len(book.adverts) < KNOWN * said["all"]:  # noqa: ASYNC110  # a book says nothing when it grows
            await trio.sleep(0.05)
        print(json.dumps({"known_s": time.monotonic() - began_s}), flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(json.dumps({**passed, "cpu_s": time.process_time(), "peers": live_peers()}), flush=True)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for task in (discovery.run, greet, advertise, PeerExchange(net).run, tell):
            nursery.start_soon(task)
        for addr in said["bootstrap"]:
            if not addr.endswith(net.peer_id):
                net.learn(addr.rpartition("/p2p/")[2], (addr,))
                net.keep(addr.rpartition("/p2p/")[2])


def main() -> None:
    """Measure, or be one of those that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--nodes", type=int, default=min(MOST_NODES, free_bytes() // NODE_BYTES, NODES_PER_CORE * (os.cpu_count() or 1))
    )
    parser.add_argument("--steady", type=float, default=60, help="how many seconds of the steady state are measured")
    chosen = parser.parse_args()
    # A node that finds nothing would have this wait for ever; the signal ends it, and its nodes with it.
    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, _give_up)
    signal.alarm(LONGEST_S)
    measure(chosen.nodes, chosen.steady)


def _give_up(_number: int, _frame: object) -> None:
    raise SystemExit(
        f"ended before all was measured, which may take {LONGEST_S} s: do the nodes have the cores they need?"
    )


if __name__ == "__main__":
    main()
