"""Lists on the terminal: jobs, providers, money. A stranger's words are shown as plain text."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa.node.plain_text import fields_of, plain, short_account, summary
from hansa.node.quantities import format_size

Rows = Sequence[dict[str, Any]]
COPIED = ("job", "lease", "channel", "device", "account", "provider", "buyer", "counterparty")
"""Columns whose cells people copy, or compare letter by letter."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, whole: Collection[str] = COPIED) -> None:
    """Rows under their columns. Whatever is in a cell is made plain.

    The columns ``whole`` are never broken, however narrow the terminal: they hold what people copy.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in whole)
    for row in rows:
        # Text objects: nothing in a cell is read as markup.
        table.add_row(*(Text(plain(cell, 200)) for cell in row))
    Console(highlight=False, markup=False).print(table)


def money_text(text: object) -> str:
    """An amount without the zeros that say nothing: at least two decimals stay."""
    shown = plain(text, 40)
    whole, point, fraction = shown.partition(".")
    return whole + point + fraction.rstrip("0").ljust(2, "0") if point else shown


def _when(at_ms: object) -> str:
    """A time for the eye, in UTC."""
    if not isinstance(at_ms, int) or not 0 <= at_ms < 1 << 47:
        return ""
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def clock(at_ms: object) -> str:
    """A time for the eye, in UTC, with its date if that is not today's; empty where there is none."""
    when = _when(at_ms)
    is_today = when[:10] == f"{datetime.now(UTC):%Y-%m-%d}"
    return f"{when[-8:] if is_today else when} UTC" if when else ""


def queue_text(queue: Mapping[str, Any]) -> str:
    """What a job in the queue waits for, on one line."""
    tries = queue.get("tries")
    asked = f"asked {plain(tries, 8)} time{'s' * (tries != 1)}"
    then = f"asks again at {clock(queue.get('next_ms'))}" if queue.get("next_ms") else "asks now"
    return f"It waits for a provider: {asked}, {then}, gives up at {clock(queue.get('until_ms'))}."


def print_jobs(jobs: Rows) -> None:
    """One line for each job."""
    if not jobs:
        click.echo("no jobs yet: hansa submit JOBFILE")
        return
    rows = []
    for job in jobs:
        spend = fields_of(job.get("spend"))
        rows.append(
            (
                plain(job.get("job"), 64)[:12],
                job.get("name"),
                "queued" if job.get("queue") and job.get("phase") == "gathering" else job.get("phase"),
                how_far(job),
                f"{money_text(spend.get('vouched'))} of {money_text(spend.get('budget'))}",
                _uses(spend.get("by_provider")),
                _when(job.get("submitted_ms")),
            )
        )
    print_table(("job", "name", "phase", "progress", "vouched", "isolation and use", "submitted (UTC)"), rows)
    # A reason in a column would be as wide as a thumb, and make the table long.
    reasons = [(job, summary(job.get("reason") or job.get("warning") or _queue_words(job), 200)) for job in jobs]
    told = [f"{plain(job.get('job'), 64)[:12]}  {reason}" for job, reason in reasons if reason]
    if told:
        click.echo("\n" + "\n".join(told))


def how_far(job: Mapping[str, Any]) -> str:
    """The last round that was published; of a job that has come to none, the furthest step that a shard reported."""
    if job.get("round"):
        return f"round {plain(job['round'], 12)}"
    shards = job.get("shards")
    steps = [fields_of(shard).get("step") for shard in shards] if isinstance(shards, list) else []
    furthest = max((step for step in steps if type(step) is int), default=0)
    return f"step {plain(furthest, 16)}" if furthest else ""


def _queue_words(job: Mapping[str, Any]) -> str:
    queue = fields_of(job.get("queue"))
    if not queue:
        return ""
    then = f"asks again at {clock(queue['next_ms'])}" if queue.get("next_ms") else "asks now"
    return f"{then}: {plain(queue.get('reason'), 60)}"


def _uses(leases: object) -> str:
    """What ``use_text`` says of a job's leases, each thing once."""
    known = leases if isinstance(leases, list) else []
    return ", ".join(dict.fromkeys(use_text(fields_of(lease)) for lease in known[:16]))


def print_devices(devices: Rows) -> None:
    """One line for each device, with all that holds it back."""
    rows = []
    for device in devices:
        now = fields_of(device.get("now"))
        memory = device.get("memory_bytes")
        figures = (("busy_percent", "%"), ("temperature_c", " °C"), ("power_w", " W"))
        rows.append(
            (
                plain(device.get("id"), 64)[:12],
                device.get("model"),
                format_size(memory) if isinstance(memory, int) else "",
                _device_state(device),
                ", ".join(f"{now[name]}{unit}" for name, unit in figures if isinstance(now.get(name), int)),
                "; ".join(plain(reason, 200) for reason in device.get("withheld", [])),
            )
        )
    print_table(("device", "model", "memory", "state", "now", "why it is not lent"), rows)


def _device_state(device: dict[str, Any]) -> str:
    """Who has it; of a device that is wanted back, by when it is left."""
    leaves = clock(device.get("leaves_by_ms"))
    parts = [plain(fields_of(part).get("share"), 8) for part in device.get("parts", [])[:8]]
    shared = f", {' + '.join(parts)} of it" if parts and parts != ["1"] else ""
    return plain(device.get("state"), 16) + shared + (f", left by {leaves}" if leaves else "")


def how_much(view: Mapping[str, Any]) -> str:
    """How many devices a bid or a lease is about, or which part of one."""
    share, devices = view.get("share"), view.get("devices")
    if isinstance(share, str) and share != "1":
        return plain(share, 8)
    return plain(len(devices) if isinstance(devices, list) else devices, 6)


def print_leases(leases: Rows) -> None:
    """One line for each lease that this node has out."""
    rows = []
    for lease in leases:
        leaves = clock(lease.get("leaves_by_ms"))
        rows.append(
            (
                plain(lease.get("lease"), 64)[:12],
                short_account(lease.get("buyer")),
                plain(lease.get("phase"), 16) + (f", leaves by {leaves}" if leaves else ""),
                lease.get("step"),
                how_much(lease),
                use_text(lease),
                f"{lease.get('vouched')} of {lease.get('accrued')}" + _firm(lease),
            )
        )
    print_table(("lease", "buyer", "phase", "step", "devices", "isolation and use", "vouched"), rows)


def _firm(lease: dict[str, Any]) -> str:
    """What a firm lease withholds until it has ended well."""
    return f", {plain(lease.get('withheld', ''), 48)} withheld" if lease.get("lease_kind") == "firm" else ""


def use_text(lease: Mapping[str, Any]) -> str:
    """``sandbox 87 %``: a lease's isolation, and how much of its time the devices computed, where that is known."""
    used = lease.get("used_percent")
    return plain(lease.get("tier", ""), 32) + (f" {used} %" if isinstance(used, int) else "")


def print_providers(providers: Rows) -> None:
    """One line for each provider."""
    if not providers:
        click.echo("no provider's advert has arrived yet")
        return
    rows = []
    for provider in providers:
        devices = provider.get("devices", [])
        kinds: dict[str, int] = {}
        for device in devices:
            memory = device.get("memory_bytes")
            size = format_size(memory) if isinstance(memory, int) else ""
            what = f"{plain(device.get('kind'), 8)} {plain(device.get('model'), 60)} {size}"
            kinds[what] = kinds.get(what, 0) + 1
        rows.append(
            (
                short_account(provider.get("account")),
                f"{provider.get('price_per_hour')} {provider.get('currency')}",
                f"{provider.get('free')} of {len(devices)}",
                "; ".join(f"{count} x {what}" for what, count in list(kinds.items())[:8]),
                provider.get("tier"),
                provider.get("region"),
                "connected" if provider.get("connected") else "not connected",
            )
        )
    print_table(("account", "price/h", "free", "devices", "tier", "region", ""), rows)


def print_chain(chain: Mapping[str, Any]) -> None:
    """Where the node settles, what it has there, and what is wrong with it."""
    symbol = plain(chain.get("symbol"), 12)
    sound = "checked" if chain.get("sound") else "NOT CHECKED YET"
    click.echo(f"chain      {plain(chain.get('chain_id'), 20)}, final to block {plain(chain.get('final_block'), 20)}")
    click.echo(f"escrow     {plain(chain.get('escrow'), 64)}: {sound}; {plain(chain.get('warning'), 100)}")
    has = f"{plain(chain.get('tokens'), 40)} {symbol}, {plain(chain.get('coins'), 40)} coins for fees"
    click.echo(f"holds      {has}; {plain(chain.get('credit'), 40)} {symbol} to take out of the escrow")
    payer = chain.get("payer")
    if isinstance(payer, Mapping):
        has = f"{plain(payer.get('tokens'), 40)} {symbol}; {plain(payer.get('credit'), 40)} {symbol} in the escrow"
        click.echo(f"payer      {plain(payer.get('account'), 64)}: {has}")
        if payer.get("deposits_wanted"):
            click.echo(f"WANTED     {plain(payer.get('deposits_wanted'), 12)} deposits: hansa wallet deposit")
    for purpose in chain.get("waiting", []):
        click.echo(f"on its way {plain(purpose, 60)}")
    for trouble in chain.get("troubles", []):
        click.echo(f"TROUBLE    {plain(trouble, 300)}")


def print_balance(balance: dict[str, Any]) -> None:
    """The totals, the channels and the sum that must be zero."""
    currency = plain(balance.get("currency"), 12)
    click.echo(f"account {plain(balance.get('account'), 64)}")
    for key, words in (
        ("earned", "earned as provider"),
        ("spent", "spent as buyer"),
        ("due", "due to this node on open channels"),
        ("paid_in", "due to this node on closed channels"),
        ("received", "of that paid to this node outside, or cancelled out"),
        ("chain_in", "paid to this node on the chain"),
        ("open_in", "STILL DUE to this node in all"),
        ("owed", "owed by this node on open channels"),
        ("paid_out", "owed by this node on closed channels"),
        ("remitted", "of that paid by this node outside, or cancelled out"),
        ("chain_out", "paid by this node on the chain"),
        ("open_out", "STILL OWED by this node in all"),
    ):
        if key not in balance or ("chain_in" in balance and key in ("received", "remitted")):
            continue
        click.echo(f"  {plain(balance.get(key), 40):>20} {currency}  {words}")
    channels = balance.get("channels", [])
    if channels:
        rows = [
            (
                plain(channel.get("channel_id"), 64)[:12],
                channel.get("role"),
                short_account(channel.get("counterparty")),
                channel.get("phase"),
                channel.get("vouched"),
                channel.get("metered"),
            )
            for channel in channels
        ]
        print_table(("channel", "role", "counterparty", "phase", "vouched", "metered"), rows)
    zero = plain(balance.get("sum"), 40)
    entries = plain(balance.get("entries"), 20)
    click.echo(f"sum over the ledger ({entries} entries): {zero}" + ("" if _is_zero(zero) else "  <- MUST BE ZERO"))
    click.echo(plain(balance.get("promise", "")))


def _is_zero(amount: str) -> bool:
    return bool(amount) and set(amount) <= {"0", "."}


def print_entries(entries: Rows) -> None:
    """The ledger's entries, each leg on a line of its own."""
    rows = [
        (
            plain(entry.get("id"), 12),
            _when(entry.get("at_ms")),
            entry.get("memo"),
            leg.get("account"),
            leg.get("amount"),
        )
        for entry in entries
        for leg in entry.get("legs", [])
    ]
    print_table(("entry", "at (UTC)", "memo", "account", "amount"), rows, whole=("amount",))
