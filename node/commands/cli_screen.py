"""A job as a person would want to see it: who bid what and why the winner won, the shards, the rounds, the money.

Two forms of one thing: a live screen for a terminal, and lines of news for everything else. Both are made from the
API's job view and from nothing else, and show a stranger's words as plain text.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hansa.node.commands.cli_tables import clock, how_far, money_text, queue_text, use_text
from hansa.node.plain_text import fields_of, number, plain, short_account, summary

View = Mapping[str, Any]
PHASE_STYLES = {
    "succeeded": "bold green",
    "finished": "green",
    "running": "cyan",
    "failed": "bold red",
    "lost": "red",
    "cancelled": "yellow",
}
_UNDER_WAY = ("starting", "running", "finished")
REFRESHES_PER_S = 4
BAR_WIDTH = 40


def rounds_of(view: View) -> int | None:
    """How many rounds the job will have, where its parameters say so."""
    rounds = fields_of(view.get("parameters")).get("rounds")
    return rounds if isinstance(rounds, int) and rounds > 0 else None


def metrics_text(metrics: object) -> str:
    """``loss 0.42  accuracy 0.91``: what a job reports, in the job's own order."""
    return "  ".join(f"{plain(name, 24)} {number(value)}" for name, value in list(fields_of(metrics).items())[:6])


def _phase(phase: object) -> Text:
    text = plain(phase, 20)
    return Text(text, style=PHASE_STYLES.get(text, ""))


def _header(view: View) -> Text:
    header = Text()
    header.append(plain(view.get("name"), 60), style="bold")
    header.append(f"  {plain(view.get('job'), 64)[:12]}  ", style="dim")
    header.append_text(_phase(view.get("phase")))
    if view.get("reason"):
        header.append(f"  {summary(view['reason'], 200)}")
    if view.get("warning"):
        header.append(f"\n{plain(view['warning'], 300)}", style="yellow")
    if view.get("queue"):
        header.append(f"\n{queue_text(view['queue'])} {plain(view['queue'].get('reason', ''), 200)}", style="yellow")
        header.append(f"\nwhat would help: hansa why {plain(view.get('job'), 64)[:12]}", style="dim")
    if _is_starting(view):
        header.append(f"\n{_look_at_logs(view)}", style="dim")
    return header


def _is_starting(view: View) -> bool:
    return any(shard.get("phase") == "starting" for shard in view.get("shards", []))


def _look_at_logs(view: View) -> str:
    """A start may take minutes: inputs are fetched and packages installed, and the log tells of it."""
    return f"what is fetched and made ready: hansa logs {plain(view.get('job'), 64)[:12]}"


def _tender_table(tender: View) -> Table:
    shards = ", ".join(plain(shard, 8) for shard in tender.get("shards", [])[:16])
    title = Text(f"tender for shard {shards}: {plain(tender.get('phase'), 20)} {plain(tender.get('reason', ''), 120)}")
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    # Expected is the price for an hour that ends well: price/h divided by how reliable the provider was so far.
    right = {"price/h", "reliable", "expected"}
    for name in ("provider", "price/h", "reliable", "expected", ""):
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name == "provider")
    table.add_column("why", overflow="fold")
    for bid in tender.get("bids", [])[:32]:
        won = bool(bid.get("won"))
        shard = bid.get("shard")
        result = "lost" if not won else "won" if shard is None else f"shard {plain(shard, 8)}"
        table.add_row(
            Text(short_account(bid.get("provider"))),
            Text(money_text(bid.get("price_per_hour"))),
            Text(plain(bid.get("reliability", ""), 8)),
            Text(money_text(bid.get("expected_cost"))),
            Text(result, style="green" if won else "dim"),
            Text(plain(bid.get("why", ""), 160)),
        )
    for decline in tender.get("declines", [])[:16]:
        why = plain(decline.get("reason", ""), 160)
        if decline.get("relaxation"):
            why += f" (would do: {plain(decline['relaxation'], 80)})"
        table.add_row(Text(short_account(decline.get("provider"))), "", "", "", Text("declined", "yellow"), Text(why))
    for silent in tender.get("silent", [])[:16]:
        table.add_row(Text(short_account(silent)), "", "", "", Text("silent", "dim"), "")
    return table


def _shard_table(view: View) -> Table:
    table = Table(expand=False)
    for name in ("shard", "phase", "provider", "step", "checkpoint", "metrics"):
        table.add_column(name, overflow="fold", no_wrap=name == "provider")
    for shard in view.get("shards", [])[:64]:
        checkpoint = fields_of(shard.get("checkpoint"))
        phase = _phase(shard.get("phase"))
        if isinstance(shard.get("attempts"), int) and shard["attempts"] > 1:
            phase.append(f" (attempt {shard['attempts']})", style="yellow")
        phase.append(_until(shard), style="yellow")
        if shard.get("reason"):
            before = "before: " if shard.get("phase") in _UNDER_WAY else ""
            phase.append(f" {before}{summary(shard['reason'], 120)}")
        table.add_row(
            Text(plain(shard.get("shard"), 8)),
            phase,
            Text(short_account(shard.get("provider") or "")),
            Text(plain(shard.get("step", ""), 16)),
            Text(_checkpoint(checkpoint) if checkpoint else ""),
            Text(metrics_text(shard.get("metrics"))),
        )
    return table


def _checkpoint(checkpoint: View) -> str:
    """How far the newest checkpoint is, and where it lies."""
    text = f"round {plain(checkpoint.get('round', ''), 8)}, step {plain(checkpoint.get('step', ''), 16)}: here"
    if checkpoint.get("mirror"):
        text += f" and at {short_account(checkpoint['mirror'])}"
    elif checkpoint.get("mirror_refusal"):
        text += f" only: {plain(checkpoint['mirror_refusal'], 120)}"
    if checkpoint.get("refusal"):
        text += f"; a newer one was refused: {plain(checkpoint['refusal'], 120)}"
    return text


def _until(shard: View) -> str:
    """How long a run that failed is kept, or by when one whose devices are taken back has left them."""
    kept, leaves = clock(shard.get("kept_until_ms")), clock(shard.get("leaves_by_ms"))
    if kept:
        return f" until {kept}"
    return f" moves by {leaves}: {plain(shard.get('leaves_why', ''), 120)}" if leaves else ""


def _progress(view: View) -> list[RenderableType]:
    history = view.get("history", [])
    total = rounds_of(view)
    done = view.get("round", 0)
    line = Text(f"round {plain(done, 12)} of {total}" if total else how_far(view))
    if history:
        line.append("   " + metrics_text(history[-1].get("metrics")), style="bold")
    if rejected := fields_of((view.get("rounds") or [{}])[-1]).get("rejected", []):
        line.append(f"   rejected: {', '.join(plain(item.get('shard'), 8) for item in rejected[:8])}", style="red")
    if not total or not isinstance(done, int):
        return [line]
    row = Table.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=total, completed=min(done, total), width=BAR_WIDTH), line)
    return [row]


def _money_line(view: View) -> Text:
    spend = fields_of(view.get("spend"))
    line = Text("vouched ")
    line.append(money_text(spend.get("vouched", "")), style="bold")
    line.append(f" of {money_text(spend.get('budget', ''))}")
    for share in spend.get("by_provider", [])[:8]:
        about = use_text(share)
        told = f" ({about})" if about else ""
        line.append(f"   {short_account(share.get('provider'))} {money_text(share.get('vouched'))}{told}", style="dim")
    return line


def render(view: View) -> RenderableType:
    """The whole screen for one view."""
    parts: list[RenderableType] = [_header(view)]
    tenders = view.get("tenders", [])
    # The first tender tells how the market looked; the last one is what happens now. Those between are history.
    parts += [_tender_table(tender) for tender in (tenders[:1] + tenders[-1:] if len(tenders) > 1 else tenders)]
    parts += [_shard_table(view), *_progress(view), _money_line(view)]
    return Group(*parts)


def news(before: View | None, view: View) -> Iterator[str]:
    """What changed between two views, one plain line each."""
    earlier: View = before or {}
    for index, tender in enumerate(view.get("tenders", [])):
        known = earlier.get("tenders", [])
        yield from _tender_news(known[index] if index < len(known) else {}, tender)
    known_shards = {shard.get("shard"): shard for shard in earlier.get("shards", [])}
    for shard in view.get("shards", []):
        yield from _shard_news(known_shards.get(shard.get("shard"), {}), shard)
    if _is_starting(view) and not _is_starting(earlier):
        yield _look_at_logs(view)
    yield from _forfeits(earlier, view)
    # By their numbers: only the newest thousand are kept, so that there comes a time when there are never more of them.
    known_steps = {done.get("round") for done in earlier.get("history", [])}
    total = rounds_of(view)
    for done in view.get("history", []):
        if done.get("round") in known_steps:
            continue
        number = f"round {plain(done.get('round'), 12)}/{total}" if total else f"step {plain(done.get('round'), 16)}"
        yield f"{number}: {metrics_text(done.get('metrics'))}"
    # A job's steps need not be its rounds.
    known_rounds = {done.get("round") for done in earlier.get("rounds", [])}
    for done in view.get("rounds", []):
        for rejected in [] if done.get("round") in known_rounds else done.get("rejected", []):
            shard, reason = plain(rejected.get("shard"), 8), plain(rejected.get("reason"), 200)
            yield f"round {plain(done.get('round'), 12)}: rejected shard {shard}: {reason}"
    if view.get("warning") and view["warning"] != earlier.get("warning"):
        yield f"warning: {plain(view['warning'], 300)}"
    queue, waited = fields_of(view.get("queue")), fields_of(earlier.get("queue"))
    if queue.get("next_ms") and (queue.get("tries") != waited.get("tries") or not waited.get("next_ms")):
        yield f"{queue_text(queue)} {plain(queue.get('reason', ''), 200)}"
    if view.get("phase") != earlier.get("phase"):
        reason = f": {summary(view['reason'], 300)}" if view.get("reason") else ""
        yield f"job {plain(view.get('phase'), 20)}{reason}"


def _tender_news(before: View, tender: View) -> Iterator[str]:
    known = {bid.get("bid"): bid for bid in before.get("bids", [])}
    for bid in tender.get("bids", []):
        who, price = short_account(bid.get("provider")), money_text(bid.get("price_per_hour"))
        if bid.get("bid") not in known:
            yield f"bid from {who}: {price} per hour"
        if bid.get("won") and not known.get(bid.get("bid"), {}).get("won"):
            why = f": {plain(bid['why'], 200)}" if bid.get("why") else ""
            yield f"won by {who} at {price} for shard {plain(bid.get('shard'), 8)}{why}"
    for decline in tender.get("declines", [])[len(before.get("declines", [])) :]:
        yield f"declined by {short_account(decline.get('provider'))}: {plain(decline.get('reason'), 200)}"
    if tender.get("phase") != before.get("phase"):
        reason = f": {summary(tender['reason'], 200)}" if tender.get("reason") else ""
        yield f"tender {plain(tender.get('phase'), 20)}{reason}"


def _forfeits(before: View, view: View) -> Iterator[str]:
    """Firm leases that did not end well: what is not paid for that."""
    known = {lease.get("lease") for lease in _kept_back(before)}
    for lease in _kept_back(view):
        if lease.get("lease") not in known:
            kept = f"{plain(lease.get('withheld'), 48)} of it is not paid"
            yield f"firm lease of shard {plain(lease.get('shard'), 8)} did not end well: {kept}"


def _kept_back(view: View) -> list[View]:
    leases = fields_of(view.get("spend")).get("by_provider", [])
    return [lease for lease in leases if lease.get("is_over") and lease.get("withheld", "0.000000") != "0.000000"]


def _shard_news(before: View, shard: View) -> Iterator[str]:
    if shard.get("leaves_by_ms") and not before.get("leaves_by_ms"):
        yield f"shard {plain(shard.get('shard'), 8)}{_until(shard)}"
    if shard.get("phase") == before.get("phase") and shard.get("provider") == before.get("provider"):
        return
    kept = _until(shard) if shard.get("kept_until_ms") else ""
    where = f" on {short_account(shard['provider'])}" if shard.get("provider") else ""
    reason = f": {summary(shard['reason'], 200)}" if shard.get("reason") else ""
    if reason and shard.get("phase") in _UNDER_WAY:
        # What ended the attempt before says nothing about this one.
        reason = (
            f" (attempt {plain(shard.get('attempts', ''), 8)}; before{reason})" if shard["phase"] == "starting" else ""
        )
    yield f"shard {plain(shard.get('shard'), 8)} {plain(shard.get('phase'), 20)}{kept}{where}{reason}"


def follow(views: Iterable[View], out: IO[str] | None = None) -> View | None:
    """Show a job until its views end; answer the last. Live on a terminal, lines of news elsewhere."""
    console = Console(file=out or sys.stdout, highlight=False, markup=False)
    last: View | None = None
    if not console.is_terminal:
        for view in views:
            for line in news(last, view):
                console.print(line, soft_wrap=True)
            last = view
        return last
    with Live(console=console, refresh_per_second=REFRESHES_PER_S, vertical_overflow="crop") as live:
        for view in views:
            live.update(render(view))
            last = view
    return last
