"""``hansa wallet deposit`` and ``take-back``: what only the account that pays can do, signed away from this machine."""

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json
from hansa.node.commands.cli_passwords import opened_account, password_option, signer_option

if TYPE_CHECKING:
    from hansa.node.chain.chain_funding import PaidIn
    from hansa.node.chain.cold_wallet import ColdWallet, Plan, Signer
    from hansa.node.settings.config import Config

FOLLOW_S = 3.0
GATHER_S = 90.0
"""So long a job that was woken may take to find providers and to want its deposits: bids are open for a minute."""
_keystore = click.option(
    "--keystore",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="The account's keystore file, opened here for this command. A signer outside is safer.",
)
_sure = click.option("--yes", is_flag=True, help="Do not ask here: the signer asks, or nobody does. Needs --up-to.")


def _paying(data_dir: Path) -> "tuple[Config, bytes]":
    """The node's settings, and the account whose money pays."""
    from hansa.node.faults import ConfigError
    from hansa.node.settings.config import load_config

    config = load_config(data_dir)
    if config.chain is None or config.buyer.payer is None:
        hint = (
            "name the account in config.toml, on a chain: [buyer] payer. Otherwise the node makes its deposits itself"
        )
        raise ConfigError("no other account pays for this node's jobs", hint)
    return config, config.buyer.payer


def _signing(
    data_dir: Path, payer: bytes, signer: str | None, keystore: Path | None, password_file: Path | None
) -> "Signer":
    """Who signs for the payer."""
    from hansa.node.chain.evm_signing import AccountSigner
    from hansa.node.chain.external_signer import ExternalSigner
    from hansa.node.chain.outside_account import OutsideAccount
    from hansa.node.faults import ConfigError

    if (signer is None) == (keystore is None):
        raise click.UsageError("give either --signer URL or --keystore FILE")
    if signer is not None:
        return OutsideAccount(ExternalSigner(signer, payer), payer, say=_say)
    _, key, _ = opened_account(data_dir, str(Path(str(keystore)).absolute()), password_file)
    if key.address != payer:
        raise ConfigError("that keystore is of another account than buyer.payer", "give that account's file")
    return AccountSigner(key)


async def _close(cold: "ColdWallet", who: "Signer") -> None:
    from hansa.node.chain.outside_account import OutsideAccount

    await cold.close()
    if isinstance(who, OutsideAccount):
        await who.close()


def _say(words: str) -> None:
    click.echo(words, err=True)


@click.command()
@with_data
@with_json
@signer_option
@_keystore
@password_option
@click.option("--up-to", metavar="AMOUNT", help="Deposit no more than this in all, however much is wanted.")
@click.option("--follow", is_flag=True, help="Go on: deposit what is wanted from now on, until Ctrl-C.")
@_sure
def deposit(
    *,
    data_dir: Path,
    as_json: bool,
    signer: str | None,
    keystore: Path | None,
    password_file: Path | None,
    up_to: str | None,
    follow: bool,
    yes: bool,
) -> None:
    """Make the deposits that jobs wait for, out of the account in [buyer] payer.

    Each is shown, then signed by that account: by a signer outside (--signer), or with its keystore. Nothing else can
    ever be taken from the account: the node itself has no key of it.
    """
    import trio

    from hansa.node.chain.cold_wallet import ColdWallet, store_path

    config, payer = _paying(data_dir)
    assert config.chain is not None
    left = _amount(up_to)
    if yes and left is None:
        raise click.UsageError("--yes needs --up-to AMOUNT: what nobody is asked about has a bound")
    who = _signing(data_dir, payer, signer, keystore, password_file)
    chain = config.chain

    async def work() -> None:
        nonlocal left
        cold = ColdWallet(chain, store_path(data_dir, payer), who, say=_say)
        try:
            await cold.check()
            declined: set[tuple[bytes, int]] = set()
            woken: set[str] = set()
            until_s = trio.current_time()
            while True:
                if _wake(config, woken):
                    until_s = trio.current_time() + GATHER_S
                plans = [each for each in await cold.plans(_wanted(config, payer)) if _name(each) not in declined]
                chosen = await _chosen(cold, plans, left, yes=yes)
                declined |= {_name(plan) for plan in plans if plan not in chosen}
                for plan in chosen:
                    done = await cold.pay(plan)
                    left = None if left is None else max(0, left - done.amount)
                    _tell(plan, done, as_json)
                gathers = not plans and trio.current_time() < until_s
                if not follow and not gathers:
                    if not plans:
                        _say("no deposit is wanted now")
                    return
                await trio.sleep(FOLLOW_S)
                await cold.tend()
        finally:
            await _close(cold, who)

    trio.run(work)


def _wake(config: "Config", woken: set[str]) -> bool:
    """Have jobs look for providers again whose deposits nobody made in time: somebody is here now.

    Each once for as long as it waits: one that went on meanwhile, and waits anew, is woken anew.
    """
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.commands.cli_jobs import job_path_part
    from hansa.node.faults import OperatorError
    from hansa.node.plain_text import plain
    from hansa.proto.units import format_amount

    nothing = format_amount(0)
    with closing(DaemonClient(config.data_dir)) as daemon:
        # What waits and lacks nothing of its budget waits for its channel's money.
        waiting = [view["job"] for view in daemon.get("/v1/jobs")["jobs"] if view.get("missing") == nothing]
        for job in waiting:
            if job in woken:
                continue
            try:
                daemon.post(f"/v1/jobs/{job_path_part(job)}/top-up", {"amount": nothing})
            except OperatorError as fault:
                _say(f"job {plain(job, 64)[:12]}: {plain(fault.what, 200)}")  # it may have ended meanwhile
            else:
                _say(f"job {plain(job, 64)[:12]} looks for providers again")
    is_new = not woken.issuperset(waiting)
    woken.intersection_update(waiting)
    woken.update(waiting)
    return is_new


def _name(plan: "Plan") -> tuple[bytes, int]:
    return plan.wanted.channel_id, plan.wanted.amount


def _amount(text: str | None) -> int | None:
    from hansa.market.value_forms import amount
    from hansa.node.faults import ConfigError

    try:
        return None if text is None else amount(text)
    except ValueError as fault:
        raise ConfigError(f"--up-to {fault}", 'for example --up-to "25.00"') from None


def _wanted(config: "Config", payer: bytes) -> "list[tuple[Any, tuple[str, ...]]]":
    """What the daemon says is wanted, each held against this machine's own settings."""
    from hansa.node.api.cli_client import DaemonClient
    from hansa.node.chain.cold_deposits import read_deposit
    from hansa.node.chain.keystore import account_address
    from hansa.node.chain.wallet import KEYSTORE_NAME
    from hansa.node.faults import OperatorError
    from hansa.node.plain_text import plain
    from hansa.proto.errors import ProtocolError

    node = account_address(config.data_dir / KEYSTORE_NAME)
    with closing(DaemonClient(config.data_dir)) as daemon:
        listed = daemon.get("/v1/deposits")["deposits"]
    found = []
    for each in listed:
        try:
            wanted = read_deposit(each["deposit"], payer=payer, signer=node, currency=config.currency)
        except (ProtocolError, KeyError, TypeError) as fault:
            hint = "is the daemon of this version, and was it started again after config.toml was changed?"
            raise OperatorError(f"the daemon asks for a deposit that cannot be: {plain(fault, 200)}", hint) from None
        found.append((wanted, tuple(plain(job, 60) for job in each.get("jobs", []))))
    return found


async def _chosen(cold: "ColdWallet", plans: "list[Plan]", left: int | None, *, yes: bool) -> "list[Plan]":
    """Those that fit the limit, once a person has seen them and said yes."""
    from hansa.proto.signing import checksum_address
    from hansa.proto.units import format_amount

    chosen: list[Plan] = []
    symbol = cold.backend.symbol
    for plan in plans:
        if left is not None and sum(each.missing for each in chosen) + plan.missing > left:
            _say(f"{format_amount(plan.missing)} {symbol} more would be above --up-to: left out")
        else:
            chosen.append(plan)
    if not chosen:
        return []
    _say(f"{checksum_address(cold.payer)} pays. It has {await cold.has()}.")
    for plan in chosen:
        provider = checksum_address(plan.wanted.config.payee_signer)
        kind = "opens a channel with" if plan.is_new else "more on the channel with"
        jobs = ", ".join(plan.jobs) or "a job that is over"
        _say(f"  {format_amount(plan.missing)} {symbol}  {kind} provider {provider}, for {jobs}")
        for words in _other_receivers(plan):
            _say(f"    {words}")
    total = format_amount(sum(plan.missing for plan in chosen))
    _say(f"In all {total} {symbol}. The node can pay those shown from it, and nobody else; the rest comes back.")
    return chosen if yes or click.confirm("Deposit it?", err=True) else []


def _other_receivers(plan: "Plan") -> list[str]:
    """Who gets what is paid, where that is not the provider's own account: its signer says nothing of it."""
    from hansa.proto.signing import checksum_address

    config, found = plan.wanted.config, []
    if config.payee != config.payee_signer:
        found.append(f"it pays to {checksum_address(config.payee)}, which is not that provider's own account")
    for split in plan.wanted.splits:
        part = f"{split.bps // 100}.{split.bps % 100:02}"
        found.append(f"{part} % of it to {checksum_address(split.account)}")
    return found


def _tell(plan: "Plan", done: "PaidIn", as_json: bool) -> None:
    from hansa.proto.units import format_amount

    if as_json:
        print_json(
            {"channel_id": plan.wanted.channel_id.hex(), "deposited": format_amount(done.amount), "words": done.words}
        )
    else:
        click.echo(f"{done.words or 'it was there already'} (channel {plan.wanted.channel_id.hex()[:12]})")


@click.command("take-back")
@with_data
@with_json
@signer_option
@_keystore
@password_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def take_back(
    *,
    data_dir: Path,
    as_json: bool,
    signer: str | None,
    keystore: Path | None,
    password_file: Path | None,
    yes: bool,
) -> None:
    """Get deposits back without the node: for when its key is lost, or in somebody else's hands.

    Asks the escrow for the end of every channel that was paid into from here, ends those whose providers had their time
    to claim, and takes out what came back. Give it again until nothing is left. A node that works does that by itself.
    """
    import trio

    from hansa.node.chain.cold_wallet import ColdWallet, store_path
    from hansa.node.faults import ConfigError

    config, payer = _paying(data_dir)
    path = store_path(data_dir, payer)
    if config.chain is None or not path.exists():
        raise ConfigError("no deposit was ever made from here", "give the --data DIR that `hansa wallet deposit` had")
    if not yes:
        click.confirm("Jobs that run on these channels will end for want of money. Go on?", err=True, abort=True)
    who = _signing(data_dir, payer, signer, keystore, password_file)
    cold = ColdWallet(config.chain, path, who, say=_say)

    async def work() -> list[str]:
        try:
            await cold.check()
            return await cold.take_back(cold.kept())
        finally:
            await _close(cold, who)

    said = trio.run(work)
    if as_json:
        print_json({"done": said, "at_ms": time.time_ns() // 1_000_000})
        return
    for words in said or ["nothing is left in the escrow"]:
        click.echo(words)


DEPOSIT_COMMANDS = (deposit, take_back)
