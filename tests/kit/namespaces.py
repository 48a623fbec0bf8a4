"""A small internet of network namespaces on this machine: public hosts, homes behind routers, cuts, slow lines.

Each place is a namespace; the core in the middle passes packets between them. Nodes run in threads of the test's own
process, each of which has entered its namespace: a process for each would take seconds to start.
"""

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import trio
from kit.slow_wire import SlowWire, tap_in

from hansa.node.messaging.book import Book
from hansa.node.messaging.discovery import Discovery
from hansa.node.messaging.peer_exchange import PeerExchange
from hansa.node.network.libp2p_host import Libp2pNet, open_net
from hansa.node.network.net import Context, NetConfig, NetError
from hansa.proto.market_documents import Advert, Device
from hansa.proto.network import DOMAIN
from hansa.proto.signing import SigningKey, sign

CLONE_NEWNET = 0x40000000
PORT = 4077
ECHO = "/hansa/echo/1"
ADVERT_LIFE_MS = 300_000
T = TypeVar("T")
_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


def now_ms() -> int:
    """UTC."""
    return time.time_ns() // 1_000_000


def run(words: str, *, stdin: str | None = None) -> None:
    """A command that must succeed."""
    done = subprocess.run(words.split(), input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{words}: {done.stderr.strip()}")


def why_not() -> str | None:
    """Why no such internet can be made here, if so."""
    if os.geteuid() != 0:
        return "network namespaces with routers need root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in ("ip", "nft", "tc") if shutil.which(name, path=path) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    name = f"hansa-try-{os.getpid()}"
    try:
        run(f"ip netns add {name}")
        try:
            one, other = f"hx{os.getpid() % 10_000}a", f"hx{os.getpid() % 10_000}b"
            run(f"ip link add {one} netns {name} type veth peer name {other} netns {name}")
            chain = "add chain ip n p { type nat hook postrouting priority 100 ; }"
            rules = f"add table ip n\n{chain}\nadd rule ip n p masquerade"
            run(f"ip netns exec {name} nft -f -", stdin=rules)
        finally:
            run(f"ip netns del {name}")
    except OSError as fault:
        return f"the kernel or its rights do not allow it: {fault}"
    return None


def enter(name: str) -> None:
    """Have this thread live in a namespace."""
    descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if _libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {name}")
    finally:
        os.close(descriptor)


class Internet:
    """The core, and what hangs on it. Site ``n`` has the public network 45.33.n.0/24."""

    def __init__(self) -> None:
        self._tag = f"hx{os.getpid() % 100_000}x{next(_numbers)}"
        self._made: list[str] = []
        self.wires: list[SlowWire] = []
        self._links = itertools.count(1)
        self._sites = itertools.count(1)
        try:
            self.core = self._namespace("core")
            self.inside(self.core, "sysctl -qw net.ipv4.ip_forward=1")
            self.filter_core("")
        except BaseException:
            self.close()
            raise

    def _namespace(self, name: str) -> str:
        full = f"{self._tag}-{name}"
        run(f"ip netns add {full}")
        self._made.append(full)
        self.inside(full, "ip link set lo up")
        return full

    def inside(self, name: str, words: str, *, stdin: str | None = None) -> None:
        """A command in a namespace."""
        run(f"ip netns exec {name} {words}", stdin=stdin)

    def _join_slowly(self, one: str, one_addr: str, other: str, other_addr: str, *, delay_s: float, loss: float) -> str:
        """As ``_join``, by a wire with delay and loss."""
        number = next(self._links)
        a, b = f"{self._tag}s{number}"[-15:], f"{self._tag}t{number}"[-15:]
        ends = tap_in(enter, one, a), tap_in(enter, other, b)
        self.wires.append(SlowWire(ends, delay_s=delay_s, loss=loss))
        for name, device, addr in ((one, a, one_addr), (other, b, other_addr)):
            self.inside(name, f"ip addr add {addr} dev {device}")
            self.inside(name, f"ip link set {device} up")
        return b

    def _join(self, one: str, one_addr: str, other: str, other_addr: str) -> str:
        """A line between two namespaces; gives the name of its end in the second."""
        number = next(self._links)
        a, b = f"{self._tag}a{number}"[-15:], f"{self._tag}b{number}"[-15:]
        run(f"ip link add {a} netns {one} type veth peer name {b} netns {other}")
        for name, device, addr in ((one, a, one_addr), (other, b, other_addr)):
            self.inside(name, f"ip addr add {addr} dev {device}")
            self.inside(name, f"ip link set {device} up")
        return b

    def public_host(self, *, delay_s: float = 0.0, loss: float = 0.0) -> "Site":
        """A host with an address of its own, perhaps at the end of a slow wire."""
        number = next(self._sites)
        name = self._namespace(f"host{number}")
        here, there = f"45.33.{number}.1/24", f"45.33.{number}.2/24"
        if delay_s or loss:
            device = self._join_slowly(self.core, here, name, there, delay_s=delay_s, loss=loss)
        else:
            device = self._join(self.core, here, name, there)
        self.inside(name, f"ip route add default via 45.33.{number}.1")
        return Site(self, name, number, device=device)

    def home(self, *, symmetric: bool = False, lets_in_known: bool = False) -> "Site":
        """A host behind a router that lets nothing in. A symmetric one gives each connection a port of its own.

        ``lets_in_known``: but for hosts to which the node has spoken from its own port, as many routers do.
        """
        number = next(self._sites)
        router, name = self._namespace(f"router{number}"), self._namespace(f"home{number}")
        self._join(self.core, f"45.33.{number}.1/24", router, f"45.33.{number}.2/24")
        self.inside(router, f"ip route add default via 45.33.{number}.1")
        device = self._join(router, f"192.168.{number}.1/24", name, f"192.168.{number}.2/24")
        self.inside(name, f"ip route add default via 192.168.{number}.1")
        self.inside(router, "sysctl -qw net.ipv4.ip_forward=1")
        how = "masquerade random,fully-random" if symmetric else "masquerade"
        lan = f"192.168.{number}.0/24"
        self.inside(
            router,
            "nft -f -",
            stdin=f"""
table ip home {{
  chain out {{ type nat hook postrouting priority 100; ip saddr {lan} ip daddr != {lan} {how}; }}
  chain door {{
    type filter hook input priority 0; policy drop;
    ct state established,related accept; ip saddr {lan} accept;
  }}
  chain through {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept; ip saddr {lan} accept;
  }}
}}
""",
        )
        if lets_in_known:
            self.inside(
                router,
                "nft -f -",
                stdin=f"""
table ip known {{
  set spoken {{ type ipv4_addr; flags dynamic,timeout; timeout 10m; }}
  chain out {{ type filter hook postrouting priority 50; ip saddr {lan} tcp sport {PORT} add @spoken {{ ip daddr }}; }}
  chain in {{
    type nat hook prerouting priority -100;
    ip daddr 45.33.{number}.2 tcp dport {PORT} ip saddr @spoken dnat to 192.168.{number}.2:{PORT};
  }}
}}
""",
            )
            self.inside(router, "nft insert rule ip home through ct status dnat accept")
        return Site(self, name, number, device=device, router=router)

    def give_ipv6(self, site: "Site") -> str:
        """Let a public host speak IPv6 as well; gives its address. Raises ``OSError`` where the kernel has none."""
        head, _, tail = site.device.rpartition("b")
        self.inside(self.core, "sysctl -qw net.ipv6.conf.all.forwarding=1")
        network = f"2a01:4f8:{site.number}:"
        for name, device, addr in (
            (self.core, f"{head}a{tail}", f"{network}:1"),
            (site.name, site.device, f"{network}:2"),
        ):
            self.inside(name, f"ip -6 addr add {addr}/64 dev {device} nodad")
        self.inside(site.name, f"ip -6 route add default via {network}:1")
        return f"{network}:2"

    def filter_core(self, rules: str) -> None:
        """What the core does not pass on; empty for everything."""
        chain = (
            f"chain through {{\n type filter hook forward priority 0; policy accept;\n{rules.replace(';', chr(10))}\n}}"
        )
        text = f"table ip cut\ndelete table ip cut\ntable ip cut {{\n{chain}\n}}\n"
        self.inside(self.core, "nft -f -", stdin=text)

    def cut(self, one: list["Site"], other: list["Site"]) -> None:
        """No packet passes between these any more, in either direction."""
        a = ", ".join(f"45.33.{site.number}.0/24" for site in one)
        b = ", ".join(f"45.33.{site.number}.0/24" for site in other)
        self.filter_core(f"ip saddr {{ {a} }} ip daddr {{ {b} }} drop; ip saddr {{ {b} }} ip daddr {{ {a} }} drop;")

    def heal(self) -> None:
        """Everything passes again."""
        self.filter_core("")

    def close(self) -> None:
        for wire in self.wires:
            wire.close()
        for name in reversed(self._made):
            with contextlib.suppress(OSError):
                run(f"ip netns del {name}")


class Site:
    """A place where a node can live."""

    def __init__(self, net: Internet, name: str, number: int, *, device: str, router: str = "") -> None:
        self.net, self.name, self.number, self.device, self.router = net, name, number, device, router
        self.address = f"45.33.{number}.2"

    def slow_down(self, rate: str) -> None:
        """Let no more out of here than this, e.g. ``8mbit``."""
        line = f"tc qdisc replace dev {self.device} root tbf rate {rate} burst 64kbit latency 400ms"
        self.net.inside(self.name, line)

    def let_go(self) -> None:
        """As fast as the line is, again."""
        self.net.inside(self.name, f"tc qdisc del dev {self.device} root")

    def unplug(self) -> None:
        """Pull the plug."""
        self.net.inside(self.name, f"ip link set {self.device} down")


class NodeThread:
    """A net that lives in a namespace, in a thread and a trio loop of its own."""

    def __init__(self, site: Site, config: NetConfig, *, exchange: bool = True) -> None:
        self.site = site
        self._config = replace(
            config, listen=config.listen if config.listen != NetConfig().listen else (f"/ip4/0.0.0.0/tcp/{PORT}",)
        )
        self._exchange = exchange
        self._ready = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        assert self._ready.wait(60), "the node did not start"
        if self._fault is not None:
            raise self._fault

    def _live(self) -> None:
        try:
            enter(self.site.name)
            trio.run(self._main)
        except BaseException as fault:  # noqa: BLE001 - told to the test's thread
            self._fault = fault
        finally:
            self._ready.set()

    async def _main(self) -> None:
        async with open_net(self._config, os.urandom(32)) as self.net, trio.open_nursery() as nursery:
            self.heard: list[Context] = []
            self.net.serve(ECHO, self._echo, max_request_bytes=4 << 20)
            if self._exchange:
                nursery.start_soon(PeerExchange(self.net).run)
            self._furnish_book(nursery)
            self.nursery, self._token, self._scope = nursery, trio.lowlevel.current_trio_token(), nursery.cancel_scope
            self.peer_id = self.net.peer_id
            self._ready.set()
            await trio.sleep_forever()

    def _furnish_book(self, nursery: trio.Nursery) -> None:
        """A book of adverts, kept as a daemon keeps it."""
        self.account = SigningKey(os.urandom(32))
        self.book = Book(self.net, now_ms, self._learn)
        self.discovery = Discovery(self.net, self.book, now_ms, account=self.account.address, useful=frozenset)
        self.discovery.serve()
        nursery.start_soon(self.discovery.run)
        nursery.start_soon(self._greet)

    def _learn(self, advert: Advert) -> None:
        self.net.learn(advert.peer_id, advert.addresses, told_by=advert.peer_id)

    async def _greet(self) -> None:
        async for peer_id in self.net.arrivals():
            with contextlib.suppress(NetError):
                await self.discovery.sync.pull(peer_id)

    def advertise(self) -> int:
        """Tell everybody what this node would lend; gives the advert's number."""
        device = Device(id=bytes(32), kind="cpu", model="Xeon", memory_bytes=8 << 30, cores_milli=4_000, facts=())
        advert = Advert(
            facts=(),
            signer=self.account.address,
            peer_id=self.peer_id,
            addresses=self.ask(self.net.addrs)[:16],
            devices=(device,),
            free=1,
            tier="sandbox",
            features=(),
            region="nowhere",
            currency="USD",
            price_e18_per_device_ms=10**12,
            sequence=now_ms(),
            expires_ms=now_ms() + ADVERT_LIFE_MS,
        )
        self.call(self.book.publish, sign(DOMAIN, advert, self.account))
        return advert.sequence

    def known(self) -> dict[bytes, int]:
        """The accounts in this node's book, and the numbers of their adverts."""
        return self.ask(lambda: {each.advert.signer: each.advert.sequence for each in self.book.standing()})

    async def _echo(self, context: Context, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        self.heard.append(context)
        return data

    def call(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Await something in the node's loop."""
        return trio.from_thread.run(work, *arguments, trio_token=self._token)

    def ask(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call something in the node's loop."""
        return trio.from_thread.run_sync(work, *arguments, trio_token=self._token)

    def until(self, condition: Callable[[Libp2pNet], Any], patience_s: float = 30.0) -> Any:
        """What the condition gives when it is true of the net."""

        async def wait() -> Any:
            with trio.fail_after(patience_s):
                while not (found := condition(self.net)):  # noqa: ASYNC110
                    await trio.sleep(0.05)
                return found

        return self.call(wait)

    @property
    def addrs(self) -> tuple[str, ...]:
        return self.ask(self.net.addrs)

    def path_to(self, other: "NodeThread") -> str:
        """How the other is connected, or nothing."""
        stats = self.ask(self.net.peers)
        return next((each.path for each in stats if each.peer_id == other.peer_id and each.phase == "live"), "")

    def echo(self, other: "NodeThread", data: bytes = b"hello", timeout_ms: int = 10_000) -> bytes:
        """Ask the other to say something back."""

        async def ask() -> bytes:
            return await self.net.request(other.peer_id, ECHO, data, timeout_ms=timeout_ms, max_response_bytes=4 << 20)

        return self.call(ask)

    def stop(self) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(trio.RunFinishedError):
                trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)
            self._thread.join(20)


@pytest.fixture
def internet() -> Iterator[Internet]:
    """An internet, or a skip with the reason."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Internet()
    try:
        yield made
    finally:
        made.close()
