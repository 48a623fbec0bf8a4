"""``hansa chain dev``: a local chain kept in a directory, with a token, the escrow, and money for whoever is named."""

import json
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from hansa.market.value_forms import amount
from hansa.node.chain.chain_dev import STATE_FILE, Deployed, DevChain, find_anvil, running_anvil
from hansa.node.chain.chain_setup import as_toml, chain_values, put_on_chain
from hansa.node.chain.json_rpc import RpcNode
from hansa.node.chain.keystore import account_address
from hansa.node.faults import ConfigError
from hansa.proto.errors import Malformed
from hansa.proto.signing import checksum_address, parse_address

CONTRACTS_FILE: Final = "contracts.json"
COINS: Final = 10**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the operator may say.

    Attributes:
        port: where the chain listens.
        accounts: who is given tokens and coins.
        nodes: data directories whose nodes are put on the chain, and given to.
        tokens: how many, as a decimal text.
        block_time: seconds between blocks.
        once: end when all is set up.
    """

    port: int
    accounts: tuple[str, ...]
    nodes: tuple[Path, ...]
    tokens: str
    block_time: int
    once: bool


def run_chain(room: Path, wishes: Wishes, *, say: Callable[[dict[str, Any]], None]) -> None:
    """Run the chain until a signal comes.

    Raises:
        OperatorError: anvil is not to be had or does not start, or a wish cannot be granted.
    """
    program = find_anvil(room)
    given = [_address(text) for text in wishes.accounts] + [_account_of(data_dir) for data_dir in wishes.nodes]
    try:
        tokens = amount(wishes.tokens)
    except ValueError as fault:
        raise ConfigError(f"--tokens: {fault}", 'for example --tokens "1000.00"') from None
    room.mkdir(parents=True, exist_ok=True)
    # Two blocks deep is final here: nobody wants to wait a quarter of an hour for a local chain.
    more = ("--slots-in-an-epoch", "1", "--block-time", str(max(1, wishes.block_time)))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with running_anvil(program, port=wishes.port, state=room / STATE_FILE, log=room / "anvil.log", more=more) as url:
        deployed = trio.run(_set_up, url, _kept(room / CONTRACTS_FILE), given, tokens)
        _keep(room / CONTRACTS_FILE, deployed)
        values = chain_values(url, deployed)
        for data_dir in wishes.nodes:
            put_on_chain(data_dir, values)
        say(
            {
                "url": url,
                "state": str(room),
                "chain_id": deployed.chain_id,
                "token": checksum_address(deployed.token),
                "escrow": checksum_address(deployed.escrow),
                "given": [checksum_address(account) for account in given],
                "tokens": wishes.tokens,
                "written": [str(data_dir) for data_dir in wishes.nodes],
                "config": as_toml(values),
            }
        )
        if not wishes.once:
            stop.wait()


async def _set_up(url: str, kept: Deployed | None, given: list[bytes], tokens: int) -> Deployed:
    rpc = RpcNode(url)
    try:
        chain = DevChain(rpc)
        deployed = kept if kept is not None and await _stands(chain, kept) else await chain.deploy()
        for account in given:
            await chain.give(account, deployed.token, tokens=tokens, coins=COINS)
        return deployed
    finally:
        await rpc.close()


async def _stands(chain: DevChain, kept: Deployed) -> bool:
    """Whether what was deployed in an earlier life of the chain is still there."""
    there = kept.chain_id == await chain.chain_id() and await chain.has_code(kept.escrow)
    return there and await chain.has_code(kept.token)


def _kept(file: Path) -> Deployed | None:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        escrow, token = parse_address(raw["escrow"]), parse_address(raw["token"])
        return Deployed(chain_id=int(raw["chain_id"]), escrow=escrow, token=token)
    except (OSError, ValueError, KeyError, TypeError, Malformed):
        return None


def _keep(file: Path, deployed: Deployed) -> None:
    names = {"escrow": checksum_address(deployed.escrow), "token": checksum_address(deployed.token)}
    file.write_text(json.dumps({"chain_id": deployed.chain_id, **names}) + "\n", encoding="utf-8")


def _address(text: str) -> bytes:
    try:
        return parse_address(text)
    except Malformed as fault:
        hint = "for example 0x52908400098527886E0F7030069857D2E4169EE7"
        raise ConfigError(f"--give: an account {fault.why}", hint) from None


def _account_of(data_dir: Path) -> bytes:
    return account_address(data_dir.absolute() / "account.json")
