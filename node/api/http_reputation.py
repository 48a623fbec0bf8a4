"""The local API's routes about reputation: a figure with what it follows from, and the list of blocked accounts."""

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.market.reputation import BUYER, PROVIDER, Standing
from hansa.node.api.http_api import json_body
from hansa.node.engine.events import AccountBlocked, AccountUnblocked
from hansa.node.engine.standings import standing_of
from hansa.node.faults import OperatorError
from hansa.node.messaging.histories import shown_dealing
from hansa.proto.codec import encode
from hansa.proto.errors import Malformed
from hansa.proto.history import HistorySent
from hansa.proto.signing import checksum_address, parse_address
from hansa.proto.typed_json import read_exact_keys
from hansa.proto.units import format_amount

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

Json = dict[str, Any]


def standing_view(found: Standing, *, viewer: bytes, currency: str, at_ms: int, documents: dict[bytes, str]) -> Json:
    """A figure as JSON, complete: whoever has it can work the figure out again.

    Args:
        found: the figure.
        viewer: in whose eyes.
        currency: the currency whose dealings count.
        at_ms: the time for which it was worked out.
        documents: each dealing's signed documents, as hex of their encoding, by channel.
    """
    return {
        "subject": checksum_address(found.subject),
        "viewer": checksum_address(viewer),
        "role": found.role,
        "currency": currency,
        "at_ms": at_ms,
        "ppm": found.ppm,
        "good": format_amount(found.good),
        "bad": format_amount(found.bad),
        "proven_false": found.proven_false,
        "terms": [
            {
                "teller": checksum_address(term.teller),
                "own": term.teller == viewer,
                "known": format_amount(term.known),
                "told_good": format_amount(term.told_good),
                "told_bad": format_amount(term.told_bad),
                "good": format_amount(term.good),
                "bad": format_amount(term.bad),
                "dealings": [
                    {
                        "channel_id": dealt.channel_id.hex(),
                        "value": format_amount(dealt.value),
                        "at_ms": dealt.at_ms,
                        "unpaid": format_amount(dealt.unpaid),
                        "unpaid_ms": dealt.unpaid_ms,
                    }
                    for dealt in term.dealings
                ],
            }
            for term in found.terms
        ],
        "documents": [documents[key] for key in sorted(documents)],
    }


class ReputationDesk:
    """Answers about reputation from a running daemon."""

    def __init__(self, daemon: "Daemon") -> None:
        """Answer for this daemon."""
        self._daemon = daemon

    def _document(self, key: bytes) -> str | None:
        dealing = shown_dealing(self._daemon.state, key, self._daemon.account)
        heard = self._daemon.state.heard.get(key)
        dealing = dealing or (heard.dealing if heard else None)
        return encode(HistorySent(dealings=(dealing,))).hex() if dealing else None

    async def reputation(self, request: Request) -> Response:
        """One account's figure, in both roles."""
        daemon = self._daemon
        subject = parse_address(request.path_params["account"])
        at_ms, state = daemon.now_ms(), daemon.state
        if request.query_params.get("ask") == "1":
            await daemon.histories.ask_about(subject)
        figures: list[Json] = []
        for role in (PROVIDER, BUYER):
            found = standing_of(state, subject, role, currency=daemon.config.currency, at_ms=at_ms)
            # What the viewer had with the tellers is part of the arithmetic, so it goes along.
            tellers = {term.teller for term in found.terms} | {subject}
            keys = {dealt.channel_id for term in found.terms for dealt in term.dealings}
            for shelf in (state.paying, state.earning):
                keys |= {
                    key
                    for key, channel in shelf.all()
                    if {channel.config.payer_signer, channel.config.payee_signer} & tellers
                }
            documents = {key: text for key in keys if (text := self._document(key)) is not None}
            figures.append(
                standing_view(
                    found, viewer=state.account, currency=daemon.config.currency, at_ms=at_ms, documents=documents
                )
            )
        return JSONResponse({"figures": figures, "blocked": state.blocked.get(subject)})

    async def blocked(self, _request: Request) -> Response:
        """The block list."""
        listed = sorted(self._daemon.state.blocked.items())
        return JSONResponse({"blocked": [{"account": checksum_address(who), "reason": why} for who, why in listed]})

    async def block(self, request: Request) -> Response:
        """Put an account on it."""
        body = read_exact_keys(await json_body(request), ("account", "reason"), "request")
        account, reason = parse_address(body["account"]), body["reason"]
        if type(reason) is not str or len(reason.encode(errors="replace")) > 256:
            raise Malformed("reason", "is no text of at most 256 bytes")
        if account == self._daemon.state.account:
            raise OperatorError("this is this node's own account", "name somebody else's")
        await self._daemon.take(AccountBlocked(account=account, reason=reason, at_ms=self._daemon.now_ms()))
        return JSONResponse({"account": checksum_address(account)}, status_code=201)

    async def unblock(self, request: Request) -> Response:
        """Take an account off it."""
        account = parse_address(read_exact_keys(await json_body(request), ("account",), "request")["account"])
        if account not in self._daemon.state.blocked:
            raise OperatorError(f"{checksum_address(account)} is not blocked", "hansa blocked lists who is")
        await self._daemon.take(AccountUnblocked(account=account, at_ms=self._daemon.now_ms()))
        return JSONResponse({"account": checksum_address(account)})


def reputation_routes(desk: ReputationDesk) -> tuple[Route, ...]:
    """The routes for ``hansa.node.api.http_api.build_api``."""
    return (
        Route("/v1/reputation/{account}", desk.reputation),
        Route("/v1/blocked", desk.blocked),
        Route("/v1/blocked", desk.block, methods=["POST"]),
        Route("/v1/blocked/remove", desk.unblock, methods=["POST"]),
    )
