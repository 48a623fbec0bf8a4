"""The commands that explain the market: why a job found nobody, what was bid, how this node answered tenders."""

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_jobs import job_path_part
from hansa.node.commands.cli_options import print_json, with_data, with_json

View = Mapping[str, Any]
_TERMS = {"finishing": "work", "risk": "risk", "transfer": "inputs", "reclaim": "reclaim", "rounds": "rounds"}
_AMOUNT = re.compile(r"[0-9]{1,20}\.[0-9]{6}", re.ASCII)
MOST_ROWS = 40


@click.command("why")
@click.argument("job")
@with_data
@with_json
def why_command(job: str, data_dir: Path, as_json: bool) -> None:
    """Explain why a job has not all of its providers, and what would change that, the cheapest change first.

    JOB is an id or its first digits.
    """
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon:
        view = daemon.get(f"/v1/jobs/{job_path_part(job)}/why")
    if as_json:
        print_json(view)
    else:
        print_why(view)


@click.command()
@click.argument("job")
@with_data
@with_json
def bids(job: str, data_dir: Path, as_json: bool) -> None:
    """Show every bid on a job with each term of its score, who won, and what the choice cost or saved."""
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon:
        view = daemon.get(f"/v1/jobs/{job_path_part(job)}/bids")
    if as_json:
        print_json(view)
    else:
        print_bids(view)


@click.command()
@with_data
@with_json
def tenders(data_dir: Path, as_json: bool) -> None:
    """Show how this provider answered the newest tenders: why it declined, and why its bids were lost."""
    from hansa.node.api.cli_client import DaemonClient

    with closing(DaemonClient(data_dir)) as daemon:
        view = daemon.get("/v1/tenders")
    if as_json:
        print_json(view)
    else:
        print_tenders(view)


def print_why(view: View) -> None:
    """The explanation as words and tables."""
    from hansa.node.commands.cli_tables import clock, queue_text
    from hansa.node.plain_text import fields_of, plain, summary

    queue = fields_of(view.get("queue"))
    phase = "queued" if queue else plain(view.get("phase"), 20)
    reason = f": {summary(view['reason'], 300)}" if view.get("reason") else ""
    click.echo(f"{plain(view.get('name'), 60)}  {plain(view.get('job'), 64)[:12]}  {phase}{reason}")
    if view.get("warning"):
        click.echo(plain(view["warning"], 300))
    if queue:
        click.echo(queue_text(queue))
    if view.get("deadline_ms"):
        click.echo(f"It is worth nothing after {clock(view['deadline_ms'])}.")
    if not view.get("unfilled"):
        job = plain(view.get("job"), 64)[:12]
        failed = f" Why it failed: hansa watch {job}." if view.get("phase") == "failed" else ""
        click.echo(f"It looks for no provider.{failed} Why each was chosen: hansa bids {job}")
        return
    click.echo(plain(view.get("summary"), 1_000))
    # Where money is what it waits for, no provider more would be enough.
    _print_relaxations({**view, "relaxations": ()} if view.get("warning") and not queue else view)
    _print_answers(view.get("answers", []))


def _print_relaxations(view: View) -> None:
    from hansa.node.commands.cli_tables import print_table
    from hansa.node.plain_text import plain

    found = view.get("relaxations", [])[:MOST_ROWS]
    if found:
        click.echo("\nWhat would help, each for itself, the cheapest first:")
        for one in found:
            enough = "   (would be enough)" if one.get("enough") else ""
            click.echo(f"  {plain(one.get('words'), 300)}{enough}")
    helpless = view.get("helpless")
    if isinstance(helpless, int) and helpless > 0:
        click.echo(f"  no change is known that would have {helpless} more provider{'s' * (helpless != 1)} bid")
    if isinstance(view.get("unseen"), int) and view["unseen"] > 0:
        click.echo(f"  {view['unseen']} more providers are known, all dearer; what they lack was not looked at")
    failing = view.get("failing", [])[:MOST_ROWS]
    if failing:
        click.echo()
        rows = [(row.get("wanted"), row.get("providers"), _near(row.get("nearest"))) for row in failing]
        print_table(("what is lacking", "at providers", "nearest that there is"), rows)


def _near(nearest: object) -> object:
    return "nothing that would do" if not nearest else "only without it" if nearest == "any" else nearest


def _print_answers(answers: Sequence[View]) -> None:
    from hansa.node.commands.cli_tables import print_table
    from hansa.node.plain_text import short_account, summary

    if not answers:
        return
    click.echo()
    rows = []
    for answer in answers[:MOST_ROWS]:
        why = summary(answer.get("reason") or "", 160)
        if answer.get("relaxation"):
            why += f" (would do: {summary(answer['relaxation'], 120)})"
        rows.append((short_account(answer.get("provider")), answer.get("outcome"), why))
    print_table(("provider", "", "why"), rows)
    if len(answers) > MOST_ROWS:
        click.echo(f"and {len(answers) - MOST_ROWS} more: --json shows all")


def print_bids(view: View) -> None:
    """Each tender with its bids."""
    from hansa.node.plain_text import plain, summary

    found = view.get("tenders", [])
    if not found:
        click.echo("no tender was sent yet")
    for number, tender in enumerate(found):
        shards = ", ".join(plain(shard, 8) for shard in tender.get("shards", [])[:16])
        reason = f": {summary(tender['reason'], 200)}" if tender.get("reason") else ""
        answered = f"{plain(tender.get('asked'), 8)} asked, {plain(tender.get('declined'), 8)} declined"
        answered += f", {plain(tender.get('silent'), 8)} silent"
        click.echo(("\n" if number else "") + f"tender for shard {shards}: {plain(tender.get('phase'), 20)}{reason}")
        click.echo(f"  {answered}")
        _print_tender(tender)


def _print_tender(tender: View) -> None:
    from hansa.node.commands.cli_tables import how_much, money_text, print_table
    from hansa.node.plain_text import plain, short_account
    from hansa.node.quantities import format_duration, format_size

    bids = tender.get("bids", [])[:MOST_ROWS]
    # A term that nobody has is no column: eighty characters are not many.
    terms = {name: shown for name, shown in _TERMS.items() if any(_rounded(bid.get(name)) != "0.00" for bid in bids)}
    rows, reasons = [], []
    for bid in bids:
        shard = bid.get("shard")
        result = plain(bid.get("result"), 10) if shard is None else f"shard {plain(shard, 8)}"
        rows.append(
            (
                short_account(bid.get("provider")),
                f"{how_much(bid)}x{money_text(bid.get('price_per_hour'))}",
                _percent(bid.get("speed_ppm")),
                _percent(bid.get("reliability_ppm")),
                *(_rounded(bid.get(name)) for name in terms),
                _rounded(bid.get("expected_cost")),
            )
        )
        reasons.append(f"  {short_account(bid.get('provider'))} {result}: {plain(bid.get('why'), 200)}{_way(bid)}")
    if rows:
        print_table(("provider", "price/h", "speed", "reliable", *terms.values(), "expected"), rows)
    for reason in reasons:
        click.echo(reason)
    if tender.get("open"):
        click.echo("  bids of " + ", ".join(short_account(one) for one in tender["open"][:16]) + ": bidding is open")
    if tender.get("choice"):
        click.echo(plain(tender["choice"], 400))
    work_ms, state_bytes = tender.get("round_work_ms"), tender.get("state_bytes")
    if "rounds" in terms and isinstance(work_ms, int) and isinstance(state_bytes, int):
        work, size = format_duration(work_ms), format_size(state_bytes)
        click.echo(f"A round is taken for {work} of work and a state of {size} from each shard.")


def _way(bid: View) -> str:
    """How long the states of a round are on a bid's line, where rounds are known of."""
    from hansa.node.plain_text import plain

    way_ms = bid.get("way_ms")
    if not isinstance(way_ms, int) or not bid.get("line_source"):
        return ""
    return f"; states take {way_ms / 1000:.1f} s a round on its line ({plain(bid['line_source'], 60)})"


def _rounded(amount: object) -> str:
    """An amount for a narrow column: at most four decimals, the rest rounded."""
    from hansa.node.commands.cli_tables import money_text

    text = str(amount)
    if _AMOUNT.fullmatch(text):
        text = str(Decimal(text).quantize(Decimal("0.0001")))
    return money_text(text)


def _percent(ppm: object) -> str:
    from hansa.market.value_forms import percent_text

    return percent_text(ppm) if isinstance(ppm, int) else ""


def print_tenders(view: View) -> None:
    """How a provider answered."""
    from hansa.node.commands.cli_tables import clock, how_much, money_text, print_table
    from hansa.node.plain_text import plain, short_account, summary

    found = view.get("tenders", [])
    if not found:
        lends = "no tender has come yet" if view.get("provides") else "this node lends nothing, so nobody asks it"
        click.echo(lends)
        return
    rows = []
    for tender in found[:MOST_ROWS]:
        about = (clock(tender.get("closes_ms")), short_account(tender.get("buyer")), tender.get("shards"))
        for bid in tender.get("bids", []):
            price = f"{how_much(bid)} x {money_text(bid.get('price_per_hour'))}"
            rows.append((*about, plain(bid.get("outcome"), 12), price, summary(bid.get("why") or "", 160)))
        if tender.get("declined"):
            why = summary(tender["declined"], 160)
            if tender.get("relaxation"):
                why += f" (told: {summary(tender['relaxation'], 120)})"
            # Who has room for some of the shards bids on these, and says why not on the rest.
            rows.append((*about, "no more" if tender.get("bids") else "declined", "", why))
    print_table(("bids close", "buyer", "shards", "", "price/h", "why"), rows)


def _from_to(least: str, most: str) -> str:
    """What a shard costs where its provider may give one of several sets of devices."""
    return f"{least} to {most}" if most.strip("-") and most != least else least


def print_dry_run(view: View) -> None:
    """What a tender would find."""
    from hansa.node.commands.cli_tables import money_text, print_table
    from hansa.node.plain_text import plain, short_account
    from hansa.node.quantities import format_duration

    currency = plain(view.get("currency"), 12)
    click.echo(f"{plain(view.get('name'), 60)}: nothing was sent. By the adverts that are known here:")
    click.echo(plain(view.get("summary"), 400))
    rows = [
        (
            short_account(one.get("provider")),
            money_text(one.get("price_per_hour")),
            _from_to(money_text(one.get("shard_per_hour")), money_text(one.get("shard_per_hour_most"))),
            f"{plain(one.get('free'), 8)} of {plain(one.get('devices'), 8)}",
            one.get("slots"),
            one.get("tier"),
            one.get("region"),
        )
        for one in view.get("invited", [])[:MOST_ROWS]
    ]
    if rows:
        click.echo("\nWho would be asked:")
        print_table(("provider", "price/h", "a shard/h", "free", "shards now", "tier", "region"), rows)
    expected = view.get("expected") or {}
    if expected.get("bids"):
        click.echo("\nWhat as much work as an hour does is expected to cost, if they bid what they advertise:")
        _print_tender(expected)
    wall_ms = view.get("wall_ms")
    wall = format_duration(wall_ms) if isinstance(wall_ms, int) else ""
    if view.get("enough"):
        least, most = money_text(view.get("hourly_least")), money_text(view.get("hourly_most"))
        click.echo(f"\nAn hour of all shards: {least} {currency} at the cheapest, at most {most} (your price ceiling).")
        promised = money_text(view.get("promised_least"))
        click.echo(
            f"For {wall}, the longest that a run may take: {promised} of a budget of {money_text(view['budget'])}."
        )
        lacks = money_text(view.get("budget_lacks"))
        if lacks.strip("0."):
            waits = f"The budget lacks {lacks} for that: the job would wait for money."
            click.echo(f"{waits} Lower limits.wall, or raise budget.total.")
    elif isinstance(view.get("queue_ms"), int) and view["queue_ms"]:
        click.echo(f"\nIt would wait in the queue for up to {format_duration(view['queue_ms'])}.")
    else:
        click.echo("\nIt would fail at once: give it time with --queue 2h, or change what it needs.")
    if not view.get("enough"):
        _print_relaxations(view)
    others = [one for one in view.get("answers", []) if one.get("outcome") != "bid"]
    _print_answers(others)


MARKET_COMMANDS = (why_command, bids)
