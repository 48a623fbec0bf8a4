"""A chain of one's own to try things on: Foundry's anvil, with a token and the escrow on it, and money for everybody.

Nothing on it is worth anything: the keys of its first accounts are known to everyone. Its state lies in a directory.
"""

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from hansa.node.chain.escrow_artefact import ESCROW, TEST_TOKEN, artefact
from hansa.node.chain.evm_escrow import call
from hansa.node.chain.json_rpc import RpcNode, data, hex_data, hex_quantity, quantity, table
from hansa.node.faults import OperatorError
from hansa.proto.units import CURRENCY_DECIMALS

ANVIL_VERSION: Final = "1.7.1"
_PACKAGES: Final = {"x86_64": "anvil-linux-amd64", "aarch64": "anvil-linux-arm64"}
READY_TIMEOUT_S: Final = 30.0
RECEIPT_ATTEMPTS: Final = 600
RECEIPT_PAUSE_S: Final = 0.05
STOP_TIMEOUT_S: Final = 10.0
STATE_FILE: Final = "anvil-state.json"


def anvil_package() -> str:
    """The package of npm that holds anvil for this machine."""
    return f"@foundry-rs/{_PACKAGES.get(platform.machine(), 'anvil')}"


def anvil_room() -> Path:
    """Where anvil is looked for beside the places where everybody looks: this Python environment's own directory."""
    return Path(sys.prefix) / "anvil"


def find_anvil(*rooms: Path) -> Path:
    """The program: on the PATH, or where npm puts it below this environment, the working directory or a given one.

    Raises:
        OperatorError: it is nowhere; the hint is the command that gets it.
    """
    on_path = shutil.which("anvil")
    if on_path is not None:
        return Path(on_path)
    for room in (anvil_room(), Path.cwd(), *rooms):
        for package in sorted((room / "node_modules" / "@foundry-rs").glob("anvil*")):
            program = package / "bin" / "anvil"
            # The package without a machine's name holds a script that looks for the one with it.
            if package.name != "anvil" and program.is_file() and os.access(program, os.X_OK):
                return program
    raise OperatorError(
        "anvil, the program that is the local chain, is not on this machine",
        f"npm install --prefix {anvil_room()} {anvil_package()}@{ANVIL_VERSION}",
    )


def free_port() -> int:
    """A port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running_anvil(
    program: Path, *, port: int, state: Path | None = None, log: Path | None = None, more: Sequence[str] = ()
) -> Iterator[str]:
    """Run anvil on loopback until the block ends; the value is its address.

    Args:
        program: where it is.
        port: where it listens.
        state: a file that it goes on from, and writes its state to.
        log: where its output goes; nowhere if none.
        more: further arguments.

    Raises:
        OperatorError: it does not get ready, or something else listens there.
    """
    if _listens(port):
        raise OperatorError(f"something listens on port {port} already", "choose another one: --port")
    kept = ["--state", str(state), "--state-interval", "10"] if state else []
    output = log.open("wb") if log else None
    try:
        child = subprocess.Popen(
            [str(program), "--host", "127.0.0.1", "--port", str(port), *kept, *more],
            stdin=subprocess.DEVNULL,
            stdout=output or subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_ready(child, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(child)
    finally:
        if output is not None:
            output.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_until_ready(child: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _listens(port):
        if child.poll() is not None or time.monotonic() > deadline:
            raise OperatorError("anvil did not start", "run it by hand to see why, or look at its log")
        time.sleep(0.02)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Politely first: at the interrupt it writes its state down."""
    child.send_signal(2)
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """What stands on a local chain, and since when."""

    chain_id: int
    escrow: bytes
    token: bytes


class DevChain:
    """A local chain that obeys: its first account signs whatever it is asked to, and coins cost nothing."""

    def __init__(self, rpc: RpcNode) -> None:
        """Order things through this connection."""
        self._rpc = rpc

    async def _transact(self, content: bytes, to: bytes | None = None) -> dict[str, Any]:
        """One transaction of the chain's first account, in a block."""
        accounts = await self._rpc.order("eth_accounts")
        order = {"from": accounts[0], "data": hex_data(content), **({} if to is None else {"to": hex_data(to)})}
        name = await self._rpc.order("eth_sendTransaction", order)
        # A chain that makes a block a second puts it into the next; one that makes them as needed has done so already.
        for _ in range(RECEIPT_ATTEMPTS):
            receipt = await self._rpc.order("eth_getTransactionReceipt", name)
            if receipt is not None:
                break
            await trio.sleep(RECEIPT_PAUSE_S)
        found = table(receipt, "receipt", "status")
        assert quantity(found["status"], "status") == 1, "the local chain did not do what it was told"
        return found

    async def _deploy(self, code: bytes) -> bytes:
        return data((await self._transact(code)).get("contractAddress"), "address", 20)

    async def deploy(self) -> Deployed:
        """A token with our number of decimals that anybody may mint, and the escrow."""
        token = await self._deploy(artefact(TEST_TOKEN).creation_code + CURRENCY_DECIMALS.to_bytes(32, "big"))
        escrow = await self._deploy(artefact(ESCROW).creation_code)
        return Deployed(chain_id=await self.chain_id(), escrow=escrow, token=token)

    async def chain_id(self) -> int:
        """Which chain it is."""
        return quantity(await self._rpc.order("eth_chainId"), "chain id", 63)

    async def has_code(self, address: bytes) -> bool:
        """Whether a contract stands at an address."""
        return bool(data(await self._rpc.order("eth_getCode", hex_data(address), "latest"), "code"))

    async def give(self, account: bytes, token: bytes, *, tokens: int, coins: int) -> None:
        """Tokens to pay with and coins for fees."""
        await self._rpc.order("anvil_setBalance", hex_data(account), hex_quantity(coins))
        await self._transact(call("mint", account, tokens), token)
