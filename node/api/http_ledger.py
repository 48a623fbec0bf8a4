"""The local API's routes about debts on the ledger: who owes what within which line, payments acknowledged, credit."""

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.market.ledger import owed_by, owed_to
from hansa.market.statements import SIDES
from hansa.market.value_forms import amount
from hansa.node.api.http_api import json_body
from hansa.node.api.statement_desk import StatementDesk
from hansa.node.api.views import promise_for
from hansa.node.engine.events import CreditDecided, PaymentReceived
from hansa.node.engine.mutual_credit import limit_for, with_peer
from hansa.node.engine.state import NodeState
from hansa.node.faults import OperatorError
from hansa.proto.currency import currency_of
from hansa.proto.errors import Malformed
from hansa.proto.signing import checksum_address, parse_address
from hansa.proto.typed_json import read_exact_keys
from hansa.proto.units import format_amount

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

Json = dict[str, Any]
MOST_HOW_BYTES = 200
NOTHING = format_amount(0)


def debts_view(state: NodeState) -> list[Json]:
    """What stands between this node and every account with which money ever moved, largest debts first."""
    names = ("due", "owed", "settled", "paid")
    peers = {
        bytes.fromhex(name.split(":")[1]) for name in state.ledger.balances if name.split(":")[0] in names
    } | state.mutual.keys()
    views = [_debt_view(state, peer) for peer in sorted(peers)]
    return sorted(views, key=lambda view: (-view["order"], view["account"]))


def _debt_view(state: NodeState, peer: bytes) -> Json:
    known = with_peer(state, peer)
    owes_us, we_owe = owed_by(state.ledger, peer), owed_to(state.ledger, peer)
    taken, paid_in, paid_out = known.taken, known.paid_in, known.paid_out
    return {
        "account": checksum_address(peer),
        "order": max(abs(owes_us), abs(we_owe)),
        "owes_us": format_amount(owes_us),
        "may_owe_us": format_amount(limit_for(state, peer)),
        "we_owe": format_amount(we_owe),
        "we_may_owe": format_amount(taken.limit) if taken is not None else None,
        "paid_to_us": format_amount(paid_in.total if paid_in else 0),
        "paid_by_us": format_amount(paid_out.total if paid_out else 0),
        "netted": format_amount(known.netted()),
        "last_paid_how": next((paid.how for paid in (paid_in, paid_out) if paid is not None), ""),
        "proven": state.proven.get(peer),
    }


def chain_debts_view(state: NodeState, earnings: Json, spend: Json) -> list[Json]:
    """The same where a contract pays: what it has not paid yet, by the statements. Nothing is lent or netted there."""
    views: dict[tuple[str, str], Json] = {}
    for made, owes, paid in ((earnings, "owes_us", "paid_to_us"), (spend, "we_owe", "paid_by_us")):
        for row in made["rows"]:
            account, currency = row["peer"], row["currency"]
            blank = {"account": account, "currency": currency, "owes_us": NOTHING, "may_owe_us": None}
            blank |= {"we_owe": NOTHING, "we_may_owe": None, "paid_to_us": NOTHING, "paid_by_us": NOTHING}
            blank |= {"netted": NOTHING, "last_paid_how": "", "proven": state.proven.get(parse_address(account))}
            views.setdefault((account, currency), blank).update({owes: row["open"], paid: row["paid"]})
    return [views[key] for key in sorted(views)]


class LedgerDesk:
    """Answers about debts from a running daemon, and takes its owner's word on them."""

    def __init__(self, daemon: "Daemon") -> None:
        """Answer for this daemon."""
        self._daemon = daemon

    async def debts(self, _request: Request) -> Response:
        """Everybody who owes or is owed."""
        daemon, currency = self._daemon, self._daemon.config.currency
        if currency_of(currency).is_on_chain:
            desk = StatementDesk(daemon)
            made = [await desk.statement(side, "peer") for side in SIDES]
            shown = chain_debts_view(daemon.state, *made)
            promise = promise_for([currency, *(view["currency"] for view in shown)])
            return JSONResponse({"currency": currency, "debts": shown, "promise": promise})
        shown = [{key: value for key, value in view.items() if key != "order"} for view in debts_view(daemon.state)]
        return JSONResponse({"currency": currency, "debts": shown, "promise": promise_for([currency])})

    async def paid(self, request: Request) -> Response:
        """The owner was paid outside."""
        body = read_exact_keys(await json_body(request), ("account", "amount", "how", "ahead"), "request")
        debtor, how, amount = parse_address(body["account"]), body["how"], _amount(body["amount"])
        state = self._daemon.state
        self._require_ledger()
        if type(how) is not str or not how.strip() or len(how.encode(errors="replace")) > MOST_HOW_BYTES:
            raise Malformed("how", f"is no text of 1 to {MOST_HOW_BYTES} bytes")
        if amount <= 0:
            raise Malformed("amount", "is nothing")
        owed = owed_by(state.ledger, debtor)
        if amount > owed and body["ahead"] is not True:
            raise OperatorError(
                f"{checksum_address(debtor)} owes {format_amount(owed)}, and that is less than {format_amount(amount)}",
                "a payment cannot be taken back; give --ahead if it really paid more than it owes",
            )
        at_ms = self._daemon.now_ms()
        await self._daemon.take(PaymentReceived(debtor=debtor, amount=amount, how=how, at_ms=at_ms))
        return JSONResponse(self._shown(debtor), status_code=201)

    async def credit(self, request: Request) -> Response:
        """The owner decides how much one account may owe."""
        body = read_exact_keys(await json_body(request), ("account", "limit"), "request")
        debtor = parse_address(body["account"])
        self._require_ledger()
        limit = None if body["limit"] is None else _amount(body["limit"])
        await self._daemon.take(CreditDecided(debtor=debtor, limit=limit, at_ms=self._daemon.now_ms()))
        return JSONResponse(self._shown(debtor), status_code=201)

    def _shown(self, peer: bytes) -> Json:
        view = _debt_view(self._daemon.state, peer)
        del view["order"]
        return view

    def _require_ledger(self) -> None:
        if currency_of(self._daemon.config.currency).is_on_chain:
            raise OperatorError("this node settles on a chain, where the contract pays", "see hansa balance")


def _amount(text: Any) -> int:
    try:
        return amount(text) if type(text) is str else -1
    except ValueError as fault:
        raise Malformed("amount", str(fault)) from None


def ledger_routes(desk: LedgerDesk) -> tuple[Route, ...]:
    """The routes for ``hansa.node.api.http_api.build_api``."""
    return (
        Route("/v1/debts", desk.debts),
        Route("/v1/debts/paid", desk.paid, methods=["POST"]),
        Route("/v1/debts/credit", desk.credit, methods=["POST"]),
    )
