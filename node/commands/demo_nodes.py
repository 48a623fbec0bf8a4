"""The demo's daemons: four real nodes as processes of their own, in one temporary directory, on free loopback ports.

However the demo ends, nothing stays behind. It stops its daemons itself where it can. Where it is killed outright, the
kernel tells each daemon (``--stop-on-parent-exit``), and a small keeper removes the directory: everyone holds one end
of a pipe, and when the last of them has gone the keeper reads the end of it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from hansa.node.api.cli_client import DaemonClient
from hansa.node.commands.first_setup import NewNode, Wishes, set_up
from hansa.node.faults import OperatorError
from hansa.node.plain_text import plain
from hansa.proto.signing import checksum_address

STOP_PATIENCE_S = 15.0
LOG_NAME = "node.log"
HINT = "hint: "
_KEEPER = """
import shutil, sys
if b"keep" not in sys.stdin.buffer.read():
    shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


@dataclass(slots=True, kw_only=True)
class DemoNode:
    """One of the demo's nodes.

    Attributes:
        name: ``"provider-1"`` or ``"buyer"``.
        made: its keys' names and its config.
        address: where the others dial it.
        price_per_hour: its posted price; empty for the buyer.
        daemon: its local API.
        process: the running daemon, once started.
    """

    name: str
    made: NewNode
    address: str
    price_per_hour: str
    daemon: DaemonClient
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def account(self) -> str:
        """Its account as people write it."""
        return checksum_address(self.made.account)

    @property
    def log(self) -> Path:
        """What its daemon printed."""
        return self.made.config.data_dir / LOG_NAME


@dataclass(slots=True, kw_only=True)
class DemoNodes:
    """All nodes of a demo. Use it as a context: leaving it stops every process.

    Attributes:
        prices: one provider for each.
        directory: where everything lies, once entered.
        nodes: providers first, the buyer last.
    """

    prices: tuple[str, ...]
    directory: Path = Path()
    nodes: list[DemoNode] = field(default_factory=list)
    _pipe: int = -1
    _keeper: "subprocess.Popen[bytes] | None" = None

    def __enter__(self) -> Self:
        """Make the directory and the keeper."""
        # Short and of our own: the path of a unix socket has room for 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="hansa-demo-"))
        reading, self._pipe = os.pipe()
        try:
            self._keeper = subprocess.Popen(
                [sys.executable, "-c", _KEEPER, str(self.directory)],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                # A terminal's Ctrl-C goes to the whole group; the keeper must outlive us.
                start_new_session=True,
            )
        finally:
            os.close(reading)
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop every daemon, then let the keeper remove the directory."""
        # A second Ctrl-C must not stop the cleaning up. Whoever goes on after us gets the handlers back.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._stop_all()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_all(self) -> None:
        for node in self.nodes:
            node.daemon.close()
            if node.process is not None:
                node.process.terminate()
        deadline = time.monotonic() + STOP_PATIENCE_S
        for node in self.nodes:
            if node.process is not None:
                _wait_or_kill(node.process, deadline)
        os.close(self._pipe)
        if self._keeper is not None:
            _wait_or_kill(self._keeper, time.monotonic() + STOP_PATIENCE_S)

    def keep(self) -> None:
        """Leave the directory where it is."""
        os.write(self._pipe, b"keep")

    @property
    def buyer(self) -> DemoNode:
        """Who buys."""
        return self.nodes[-1]

    @property
    def providers(self) -> list[DemoNode]:
        """Who lends."""
        return self.nodes[:-1]

    def make(self) -> None:
        """Make keys and config of every node. They all start from the first provider."""
        bootstrap: tuple[str, ...] = ()
        ports = free_ports(len(self.prices) + 1)
        for index, port in enumerate(ports):
            provides = index < len(self.prices)
            name = f"provider-{index + 1}" if provides else "buyer"
            price = self.prices[index] if provides else ""
            wishes = Wishes(
                provides=provides,
                listen=(f"/ip4/127.0.0.1/tcp/{port}",),
                bootstrap=bootstrap,
                region="loopback",
                price_per_hour=price or "0.40",
                gpus=(),
                cpu_slots=1 if provides else 0,
                cpu_cores_per_slot=1,
                memory_per_slot="1 GiB",
                meter_interval="1 s",
                metrics_port=0,
            )
            made = set_up(self.directory / name, wishes)
            address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{made.peer_id}"
            bootstrap = bootstrap or (address,)
            daemon = DaemonClient(made.config.data_dir)
            self.nodes.append(DemoNode(name=name, made=made, address=address, price_per_hour=price, daemon=daemon))

    def start(self) -> None:
        """Start every daemon as a process of its own."""
        for node in self.nodes:
            self.start_one(node)

    def start_one(self, node: DemoNode) -> None:
        """Start one daemon, also again after it was killed."""
        command = [sys.executable, "-P", "-m", "hansa", "node", "run", "--data", str(node.made.config.data_dir)]
        if os.getpid() != 1:
            # As the first process of a container we need no such promise: with us everything ends. And a daemon whose
            # parent is process 1 would take itself for an orphan.
            command.append("--stop-on-parent-exit")
        with node.log.open("ab") as log:
            node.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                pass_fds=(self._pipe,),
                start_new_session=True,
            )

    def check_alive(self) -> None:
        """Make sure that every daemon runs.

        Raises:
            OperatorError: one has ended; its last words are in the error.
        """
        for node in self.nodes:
            if node.process is not None and node.process.poll() is not None:
                words, hint = last_words(node.log)
                raise OperatorError(f"{node.name} ended with code {node.process.returncode}: {words}", hint)


def _wait_or_kill(process: "subprocess.Popen[bytes]", deadline: float) -> None:
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """TCP ports on loopback that nobody uses now; all are held at once so that no two are the same."""
    with contextlib.ExitStack() as held:
        listeners = [held.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


def last_words(log: Path) -> tuple[str, str]:
    """The last thing that a daemon said, and its hint, or where to look."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
    except OSError:
        return "it left no log", f"there is none at {log}"
    hint = f"see its log: {log}"
    if len(lines) > 1 and lines[-1].startswith(HINT):
        hint = plain(lines.pop().removeprefix(HINT), 300)
    return plain(lines[-1].removeprefix("hansa: "), 300) if lines else "it said nothing", hint
