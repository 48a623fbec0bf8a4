"""The local API's routes about the market: why a job found nobody, its bids, a tender that is not sent, our answers."""

from itertools import islice
from typing import TYPE_CHECKING

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.node.api.desk import NodeDesk
from hansa.node.api.dry_run import dry_run_view, expected_view, hypothetical, would_be_asked
from hansa.node.api.http_api import job_named, json_body
from hansa.node.api.job_json import spec_from_json
from hansa.node.api.market_views import bids_view, job_part, market_part
from hansa.node.engine.tender_log import tenders_view
from hansa.node.faults import OperatorError
from hansa.proto.market_documents import Advert
from hansa.proto.typed_json import read_exact_keys
from hansa.proto.units import format_amount
from hansa.scheduler.job_spec import JobSpec
from hansa.scheduler.job_state import Job

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon


MOST_EXPLAINED = 2_000
MOST_FITTING = 500


class MarketDesk:
    """Answers from a running daemon's state and book."""

    def __init__(self, daemon: "Daemon") -> None:
        """Answer for this daemon."""
        self._daemon = daemon
        self._desk = NodeDesk(daemon)

    def _job(self, request: Request) -> Job:
        found = self._daemon.state.jobs.get(job_named(request.path_params["job"], self._desk.job_ids()))
        assert found is not None, "only jobs that are here are named"
        return found

    def _adverts(self, spec: JobSpec) -> tuple[list[Advert], int]:
        """Those that fit and the cheapest, as many as can be explained while somebody waits; how many are left out."""
        book, needs = self._daemon.book, spec.requirements
        known = [entry.advert for entry in book.standing()]
        serving = book.serving(needs, spec.currency, spec.price_ceiling_e18_per_device_ms)
        chosen = {advert.signer: advert for advert in (*islice(serving, MOST_FITTING), *known[:MOST_EXPLAINED])}
        return list(chosen.values()), len(known) - len(chosen)

    async def why(self, request: Request) -> Response:
        """Why a job has not all of its providers."""
        state, of = self._daemon.state, self._job(request)
        view, found = job_part(state, of)
        if found is not None:
            # A large book takes seconds, and the engine must turn meanwhile. All of this is frozen.
            blocked = frozenset(state.blocked)
            adverts, unseen = self._adverts(of.spec)
            view |= await trio.to_thread.run_sync(market_part, found, of.spec, blocked, adverts)
            view["unseen"] = unseen
        return JSONResponse(self._desk.named(view))

    async def bids(self, request: Request) -> Response:
        """Every bid of a job, with each term."""
        return JSONResponse(self._desk.named(bids_view(self._daemon.state, self._job(request))))

    async def dry_run(self, request: Request) -> Response:
        """What a tender for a job would find."""
        body = read_exact_keys(await json_body(request), ("spec",), "request")
        spec = self._desk.in_our_currency(spec_from_json(body["spec"]))
        most = self._daemon.config.buyer.max_job_budget
        if most is not None and spec.budget > most:
            what = f"the budget is above {format_amount(most)}, the most for one job here"
            raise OperatorError(what, "lower it, or raise buyer.max_job_budget")
        blocked = frozenset(self._daemon.state.blocked)
        adverts, unseen = self._adverts(spec)
        view = await trio.to_thread.run_sync(dry_run_view, spec, blocked, adverts)
        asked = await trio.to_thread.run_sync(would_be_asked, spec, blocked, adverts)
        begun = hypothetical(self._daemon.state, spec, asked, self._daemon.now_ms())
        expected = await trio.to_thread.run_sync(expected_view, begun, asked)
        return JSONResponse(self._desk.named(view | {"unseen": unseen, "expected": expected}))

    async def tenders(self, _request: Request) -> Response:
        """How this provider answered the newest tenders, and what became of its bids."""
        daemon = self._daemon
        return JSONResponse({"provides": daemon.state.terms is not None, "tenders": tenders_view(daemon.state)})


def market_routes(desk: MarketDesk) -> tuple[Route, ...]:
    """The routes for ``hansa.node.api.http_api.build_api``."""
    return (
        Route("/v1/jobs/{job}/why", desk.why),
        Route("/v1/jobs/{job}/bids", desk.bids),
        Route("/v1/dry-run", desk.dry_run, methods=["POST"]),
        Route("/v1/tenders", desk.tenders),
    )
