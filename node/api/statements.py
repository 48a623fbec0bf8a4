"""Statements as people read them: the books' sums of ``hansa.market.statements``, with names and what stands beside.

The ledger's file knows every entry and every channel's currency. What was metered and never vouched for, which shards
were tried again and what that cost is known of the leases that the node still remembers (the last 2,000 that ended).
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

from hansa.market.ledger import Entry, Leg, Post, netted, paid_by_buyer, paid_to_provider, payees_part
from hansa.market.ledger_records import File, FiledChannel, FiledEnd, FiledNetting, FiledPayment, Record
from hansa.market.purchase_state import Purchase
from hansa.market.sale_state import ENDED
from hansa.market.statements import AccountStatement, By, LeaseFacts, Row, Side, statement
from hansa.node.api.views import promise_for
from hansa.node.engine.engine import Engine
from hansa.node.engine.journal import SqliteJournal
from hansa.node.engine.state import NodeState
from hansa.node.faults import OperatorError
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.node.settings.config import Config
from hansa.proto.currency import currency_of, unit_of
from hansa.proto.documents import channel_id
from hansa.proto.signing import checksum_address
from hansa.proto.splits import Split
from hansa.proto.units import format_amount

Json = dict[str, Any]
LEDGER_NAME: Final = "ledger.sqlite"
JOURNAL_NAME: Final = "journal.sqlite"
NOT_LEASES: Final = ("failed", "awarded")
"""Placements that never became leases, or not yet."""
COLUMNS: Final = ("currency", "vouched", "closed", "paid", "open", "unvouched", "written_off", "retries", "lost_cost")
"""What every row has beside its key."""


def lease_facts(state: NodeState, side: Side) -> list[LeaseFacts]:
    """What a node remembers of its leases that the books do not know."""
    return list(_sold(state) if side == "earnings" else _bought(state))


def _sold(state: NodeState) -> Iterator[LeaseFacts]:
    totals: dict[bytes, int] = {}
    for _, sale in state.sales.all():
        if sale.terms is None:
            continue
        if sale.phase in ENDED:
            continue  # what nobody vouched for by then is written off in the books
        channel = state.earning.get(sale.channel_id)
        unvouched = max(0, sale.accrued - sale.vouched)
        if channel is not None:
            # Of several leases on one channel, each raises the total by what it has: together they are just its part.
            before = totals.get(sale.channel_id, channel.earned)
            totals[sale.channel_id] = before + unvouched
            unvouched = payees_part(before + unvouched, channel.splits) - payees_part(before, channel.splits)
        yield LeaseFacts(
            job=sale.tender.job.hex(),
            # Under the account that the books have as this buyer's: the payer of the channel.
            peer=(channel.config.payer if channel is not None else sale.buyer).hex(),
            currency=sale.tender.currency,
            at_ms=sale.over_ms or state.at_ms,
            unvouched=unvouched,
        )


def _bought(state: NodeState) -> Iterator[LeaseFacts]:
    last: dict[tuple[bytes, int], bytes] = {}
    found: list[tuple[Purchase, Any]] = []
    for _, bought in sorted(state.purchases.all(), key=lambda each: each[1].tender.bids_close_ms):
        for placement in bought.placements:
            if placement.phase not in NOT_LEASES:
                found.append((bought, placement))
                last[bought.tender.job, placement.shard] = placement.lease
    begun: set[tuple[bytes, int]] = set()
    for bought, placement in found:
        shard = (bought.tender.job, placement.shard)
        channel = state.paying.get(placement.award.channel_id)
        was_lost = last[shard] != placement.lease
        yield LeaseFacts(
            job=bought.tender.job.hex(),
            peer=placement.channel.payee.hex(),
            currency=bought.tender.currency,
            at_ms=placement.award.confirm_by_ms,
            is_retry=shard in begun,
            lost_cost=channel.vouched(placement.lease) if was_lost and channel is not None else 0,
        )
        begun.add(shard)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a node knows beside its ledger's file, taken from its state in one moment.

    Attributes:
        currency: the node's own, for entries that name no channel.
        currencies: by channel.
        names: of jobs, by hex of their ids.
        leases: what the books do not know.
        paid_by_chain: channels whose chain has paid all that was agreed on. Ledgers from before ends were filed there
            do not say so of older ones.
        earning: by channel that this node earns on, who pays and who else has a part of it.
    """

    currency: str
    currencies: Mapping[bytes, str]
    names: Mapping[str, str]
    leases: Sequence[LeaseFacts]
    paid_by_chain: frozenset[bytes] = frozenset()
    earning: Mapping[bytes, tuple[bytes, tuple[Split, ...]]] = field(default_factory=dict)


def known_of(state: NodeState, currency: str, side: Side) -> Known:
    """What the state has to say to a statement."""
    return Known(
        currency=currency,
        currencies={key: each.currency for shelf in (state.paying, state.earning) for key, each in shelf.all()},
        names={key.hex(): job.spec.name for key, job in state.jobs.all()},
        leases=lease_facts(state, side),
        paid_by_chain=frozenset(_paid_by_chain(state)),
        earning={key: (each.config.payer, each.splits) for key, each in state.earning.all()},
    )


def _paid_by_chain(state: NodeState) -> Iterator[bytes]:
    for key, paying in state.paying.all():
        if paying.settled_ms and currency_of(paying.currency).is_on_chain and paying.paid >= paying.metered:
            yield key
    for key, earning in state.earning.all():
        if earning.settled_ms and currency_of(earning.currency).is_on_chain and earning.paid >= earning.earned:
            yield key


def statement_view(records: Iterable[Record], known: Known, *, side: Side, by: By) -> Json:
    """A statement as the local API shows it. Amounts are decimal strings, exact to the last digit."""
    entries, currencies, of_entry = list[Entry](), dict(known.currencies), dict[bytes, str]()
    ended_by_chain, earning = set(known.paid_by_chain), dict(known.earning)
    units = {unit_of(name): name for name in (*currencies.values(), known.currency)}
    for record in records:
        match record:
            case Entry():
                entries.append(record)
            case FiledChannel(currency=name, config=config, splits=splits):
                key = channel_id(currency_of(name).domain, config)
                currencies[key], earning[key] = name, (config.payer, splits)
                units[unit_of(name)] = name
            case FiledEnd(end=end):
                ended_by_chain.add(end.document.channel_id)
            case FiledPayment() | FiledNetting():
                of_entry |= {each: units.get(unit, known.currency) for each, unit in _entries_of(record)}
            case _:
                pass

    def currency_of_entry(entry: Entry) -> str:
        return currencies.get(entry.channel_id) or of_entry.get(entry.id) or known.currency

    made = statement(
        _own_losses(entries, earning),
        side=side,
        by=by,
        currency_of=currency_of_entry,
        # That both sides have agreed on an end moves nothing yet: its contract may be out of reach, or pay less.
        is_paid_by_close=lambda entry: entry.channel_id in ended_by_chain,
        leases=known.leases,
    )
    return _view(made, known)


def _own_losses(entries: Iterable[Entry], earning: Mapping[bytes, tuple[bytes, tuple[Split, ...]]]) -> Iterator[Entry]:
    """The entries, with what was written off as this node's own part and under who pays, as all else that it earns.

    The books have it as the whole price and under the account that traded. Where parts are not whole units, a channel's
    loss may be a unit for each split beside what its vouchers would have come to.
    """
    seen: set[bytes] = set()
    lost: dict[bytes, int] = {}
    for entry in entries:
        whole = sum(leg.amount for leg in entry.legs if leg.account.startswith("unpaid:"))
        if entry.id in seen:
            continue
        seen.add(entry.id)
        if not whole or entry.channel_id not in earning:
            yield entry
            continue
        payer, splits = earning[entry.channel_id]
        before = lost.get(entry.channel_id, 0)
        lost[entry.channel_id] = after = max(0, before + whole)
        own = payees_part(after, splits) - payees_part(before, splits)
        jobs = [leg.account for leg in entry.legs if leg.account.startswith("written-off:")]
        legs = (Leg(account=f"unpaid:{payer.hex()}", amount=own), *(Leg(account=job, amount=-own) for job in jobs))
        yield replace(entry, legs=legs)


def _entries_of(record: FiledPayment | FiledNetting) -> Iterator[tuple[bytes, bytes]]:
    """The ids of the entries that follow from a document between two accounts, each with the document's unit."""
    if isinstance(record, FiledPayment):
        said = record.payment.document
        for made in (
            paid_to_provider(debtor=said.debtor, unit=said.unit, nonce=said.nonce, amount=0, how="", at_ms=0),
            paid_by_buyer(creditor=said.creditor, unit=said.unit, nonce=said.nonce, amount=0, how="", at_ms=0),
        ):
            yield made.id, said.unit
    else:
        both = record.by_lower.document
        for peer in (both.lower, both.higher):
            yield netted(peer=peer, unit=both.unit, nonce=both.nonce, amount=0, at_ms=0).id, both.unit


def _view(made: AccountStatement, known: Known) -> Json:
    rows = []
    for row in made.rows:
        view: Json = {made.by: _shown_key(row.key, made.by)}
        if made.by == "job":
            view["name"] = known.names.get(row.key, "")
        rows.append(view | _amounts(row))
    totals = [_amounts(total) for total in made.totals]
    promise = promise_for([total.currency for total in made.totals] or [known.currency])
    return {"side": made.side, "by": made.by, "rows": rows, "totals": totals, "promise": promise}


def _shown_key(key: str, by: By) -> str:
    if by == "day" and key:
        return datetime.fromtimestamp(int(key) / 1000, tz=UTC).strftime("%Y-%m-%d")
    return checksum_address(bytes.fromhex(key)) if by == "peer" and key else key


def _amounts(row: Row) -> Json:
    return {
        "currency": row.currency,
        "vouched": format_amount(row.vouched),
        "closed": format_amount(row.closed),
        "paid": format_amount(row.paid),
        "open": format_amount(row.open),
        "unvouched": format_amount(row.unvouched),
        "written_off": format_amount(row.written_off),
        "retries": row.retries,
        "lost_cost": format_amount(row.lost_cost),
    }


def read_statement(ledger: Path, known: Known, more: Sequence[Record] = (), *, side: Side, by: By) -> Json:
    """A statement from a ledger's file, which a daemon may be writing. ``more`` are records that it may not have yet.

    Raises:
        OperatorError: the file cannot be read.
    """
    if not ledger.exists():
        return statement_view(more, known, side=side, by=by)
    with closing(LedgerStore(ledger, read_only=True)) as store:
        return statement_view(chain(store.records(), more), known, side=side, by=by)


def offline_statement(config: Config, *, side: Side, by: By) -> Json:
    """A statement of a node whose daemon does not run. Nothing that stands in its files is changed.

    Raises:
        OperatorError: a daemon runs after all, or a file cannot be read.
    """
    state, recovered = _folded(config.data_dir / JOURNAL_NAME)
    known = known_of(state, config.currency, side)
    return read_statement(config.data_dir / LEDGER_NAME, known, recovered, side=side, by=by)


def _folded(journal: Path) -> tuple[NodeState, list[Record]]:
    if not journal.exists():
        return NodeState(), []
    try:
        found = SqliteJournal(journal)
    except OSError as fault:
        hint = "copy the data directory to where it may be written, and ask there: --data COPY"
        raise OperatorError(f"cannot read the journal {journal}: {fault.strerror}", hint) from None
    with closing(found) as opened:
        engine = Engine(opened)
        posts = [effect.entry for effect in engine.recovered if isinstance(effect, Post)]
        return engine.state, [*posts, *(effect.filed for effect in engine.recovered if isinstance(effect, File))]


def as_csv(view: Json) -> str:
    """A statement's rows as CSV, a header first. Totals are left out: a spreadsheet adds up by itself."""
    by = str(view["by"])
    columns = [by, *(("name",) if by == "job" else ()), *COLUMNS]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in view["rows"]:
        writer.writerow([_cell(row.get(column, "")) for column in columns])
    return out.getvalue()


def _cell(value: object) -> str:
    """A cell that no spreadsheet takes for a formula, whoever chose the text."""
    text = str(value)
    is_amount = text.lstrip("-").replace(".", "", 1).isdecimal()
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") and text and not is_amount else text
