"""The routes of the local API for statements: ``GET /v1/statements/earnings`` and ``/v1/statements/spend``."""

from typing import TYPE_CHECKING

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.market.statements import SIDES, WAYS, By, Side
from hansa.node.api.http_api import Json
from hansa.node.api.statements import LEDGER_NAME, known_of, read_statement
from hansa.proto.errors import Malformed

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon


class StatementDesk:
    """Answers over a running daemon."""

    def __init__(self, daemon: "Daemon") -> None:
        """Speak of this daemon's books."""
        self._daemon = daemon

    async def statement(self, side: Side, by: By) -> Json:
        """One statement. What is long, reading the file, is done beside the engine and not in its way."""
        config = self._daemon.config
        known = known_of(self._daemon.state, config.currency, side)
        ledger = config.data_dir / LEDGER_NAME
        return await trio.to_thread.run_sync(lambda: read_statement(ledger, known, side=side, by=by))


def statement_routes(desk: StatementDesk) -> list[Route]:
    """The routes, for ``hansa.node.api.http_api.build_api``."""

    async def statement(request: Request) -> Response:
        asked_side, asked_by = request.path_params["side"], request.query_params.get("by", "job")
        for side in SIDES:
            for by in WAYS:
                if (side, by) == (asked_side, asked_by):
                    return JSONResponse(await desk.statement(side, by))
        raise Malformed("statement", f"is one of {', '.join(SIDES)}, by one of {', '.join(WAYS)}")

    return [Route("/v1/statements/{side}", statement)]
