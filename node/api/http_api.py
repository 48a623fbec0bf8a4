"""The daemon's local API: JSON over HTTP on a unix socket that only its own user can open.

The routes ask a ``Desk``, which the daemon is, and turn its answers into JSON; they hold no state and decide nothing
about the market. A person's mistake is a status of 400, 404 or 409 with ``{"error": one line, "hint": what to do}``.
"""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hansa.market import value_forms
from hansa.node.api.job_json import spec_from_json
from hansa.node.faults import OperatorError
from hansa.node.storage.sealing import ContentKey
from hansa.proto.blob import MAX_BLOB_BYTES, BlobRef
from hansa.proto.errors import Malformed, ProtocolError
from hansa.proto.typed_json import parse_json, read_exact_keys
from hansa.proto.units import Amount, format_amount
from hansa.scheduler.job_spec import JobSpec

Json = dict[str, Any]
LARGEST_JSON_BYTES = 1 << 20
_JOB = re.compile(r"[0-9a-f]{4,64}", re.ASCII)
_ROOT = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


Item_co = TypeVar("Item_co", covariant=True)


class Flow(Protocol[Item_co]):
    """Something to read item by item and to close: an async generator, or the receiving end of a trio channel."""

    def __aiter__(self) -> AsyncIterator[Item_co]:
        """Itself."""

    async def __anext__(self) -> Item_co:
        """The next item, or ``StopAsyncIteration``."""

    async def aclose(self) -> object:
        """Called when the reader has gone, also while nothing was read yet."""


class Desk(Protocol):
    """What the routes ask of the daemon. Views are the JSON objects of the API, ready to be sent."""

    def node_view(self) -> Json:
        """This node: who it is, what it lends, whom it knows, how its engine does."""

    async def submit(
        self, spec: JobSpec, package: BlobRef, files: BlobRef | None = None, key: ContentKey | None = None
    ) -> bytes:
        """Take a job and answer its id, once that is in the journal. Raises ``OperatorError`` to refuse it.

        ``files`` is the blob with the ``FileList`` of what it brings beside the package, if there is any, and ``key``
        what all of it is sealed under, if the job is sealed.
        """

    def job_views(self) -> list[Json]:
        """Every job of this buyer, newest first, without tenders and history."""

    def job_ids(self) -> Sequence[bytes]:
        """The ids of all these jobs."""

    def job_view(self, job: bytes) -> Json:
        """One job with everything about it."""

    def watch(self, job: bytes) -> Flow[Json]:
        """The job's view now, then each time it changed, at most five times a second, until it has ended."""

    def logs(self, job: bytes, shard: int | None, follow: bool) -> Flow[Json]:
        """Lines that the shards printed; with ``follow`` also those to come, until the job has ended."""

    def budget(self, job: bytes) -> Amount:
        """The most that a job may cost."""

    async def cancel(self, job: bytes) -> Json:
        """Stop a job and answer ``{"job", "phase"}``. Raises ``OperatorError`` when it has ended."""

    async def top_up(self, job: bytes, amount: Amount) -> Json:
        """Let a job cost more; answer ``{"job", "budget"}``. Raises ``OperatorError`` when it has ended."""

    def providers(self) -> list[Json]:
        """Providers whose adverts stand."""

    def balance(self) -> Json:
        """What this node earned, spent, owes and is owed."""

    def entries(self) -> list[Json]:
        """The ledger's entries in their order."""

    def vouchers(self) -> list[Json]:
        """The best voucher of each channel on a chain that is not settled, for a watchtower."""

    def deposits(self) -> list[Json]:
        """What another account than the node's should pay in, and for which jobs."""

    async def put_blob(self, chunks: AsyncIterator[bytes]) -> BlobRef:
        """Store bytes and answer their name."""

    def missing_blobs(self, blobs: Sequence[BlobRef]) -> list[int]:
        """The places in the list of those that this node does not have."""

    def open_blob(self, blob: BlobRef) -> Flow[bytes] | None:
        """The bytes of a blob, verified, or nothing when this node does not have it."""

    async def open_output(self, job: bytes, blob: BlobRef) -> Flow[bytes] | None:
        """What the job's code wrote into an output, opened if it is sealed, or nothing when this node does not have it.

        Raises ``OperatorError`` if it cannot be opened.
        """


class _Answer(Exception):
    """A request that is answered with an error, raised wherever the mistake is found."""

    def __init__(self, status: int, error: str, hint: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint


def _error(status: int, error: str, hint: str) -> JSONResponse:
    return JSONResponse({"error": error, "hint": hint}, status_code=status)


async def _answer_mistake(_request: Request, mistake: Exception) -> Response:
    assert isinstance(mistake, _Answer)
    return _error(mistake.status, mistake.error, mistake.hint)


async def _answer_operator(_request: Request, mistake: Exception) -> Response:
    assert isinstance(mistake, OperatorError)
    return _error(409, mistake.what, mistake.hint)


async def _answer_protocol(_request: Request, mistake: Exception) -> Response:
    assert isinstance(mistake, ProtocolError)
    return _error(400, f"{mistake.where} {mistake.why}", "use the hansa command of the same version as the daemon")


async def _answer_unknown_route(request: Request, _mistake: Exception) -> Response:
    return _error(404, f"nothing is at {request.url.path!r:.100}", "use the hansa command of the same version")


async def _answer_wrong_method(request: Request, _mistake: Exception) -> Response:
    return _error(405, f"{request.method} is not possible here", "use the hansa command of the same version")


async def json_body(request: Request) -> Any:
    """A request's body as JSON, of a bounded size."""
    body = bytearray()
    async with aclosing(request.stream()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > LARGEST_JSON_BYTES:
                raise _Answer(400, "the request is larger than 1 MiB", "send data as a blob")
    return parse_json(bytes(body))


class _Stream(StreamingResponse):
    """A streamed answer that closes what it reads from, however it ends: read to the end, left, or cancelled."""

    def __init__(self, flow: Flow[Any], pieces: AsyncGenerator[bytes, None], kind: str, size: str | None) -> None:
        super().__init__(pieces, media_type=kind, headers=None if size is None else {"content-length": size})
        self._flow = flow
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._flow), aclosing(self._pieces):
            await super().__call__(scope, receive, send)


async def _bytes_of(flow: Flow[bytes]) -> AsyncGenerator[bytes, None]:
    async for piece in flow:
        yield piece


async def _lines_of(views: Flow[Json]) -> AsyncGenerator[bytes, None]:
    async for view in views:
        yield json.dumps(view, separators=(",", ":")).encode() + b"\n"


def stream_lines(views: Flow[Json]) -> Response:
    """An answer of JSON lines, for as long as there are some."""
    return _Stream(views, _lines_of(views), "application/x-ndjson", None)


def job_named(begin: str, known: Sequence[bytes]) -> bytes:
    """The one job that an id, or the beginning of one, means. Raises what is answered where that is not one."""
    wanted = begin.lower()
    if not _JOB.fullmatch(wanted):
        raise _Answer(400, "a job's id is 4 to 64 hex digits", "hansa jobs lists them")
    found = [job for job in known if job.hex().startswith(wanted)]
    if not found:
        raise _Answer(404, f"no job {wanted} here", "hansa jobs lists them")
    if len(found) > 1:
        raise _Answer(409, f"{len(found)} jobs begin with {wanted}", "give more digits of the id")
    return found[0]


class _Routes:
    """The handlers, with the desk they ask."""

    def __init__(self, desk: Desk, max_job_budget: Amount | None) -> None:
        self._desk = desk
        self._max_job_budget = max_job_budget

    def _job(self, request: Request) -> bytes:
        """The one job that the path's id, or the beginning of one, means."""
        return job_named(request.path_params["job"], self._desk.job_ids())

    async def node(self, _request: Request) -> Response:
        return JSONResponse(self._desk.node_view())

    async def put_blob(self, request: Request) -> Response:
        async with aclosing(request.stream()) as pieces, aclosing(_bounded(pieces)) as bounded:
            blob = await self._desk.put_blob(bounded)
        return JSONResponse({"root": blob.root.hex(), "size_bytes": blob.size_bytes}, status_code=201)

    async def get_blob(self, request: Request) -> Response:
        root = request.path_params["root"]
        size = request.query_params.get("size_bytes", "")
        if not _ROOT.fullmatch(root) or not _NUMBER.fullmatch(size):
            raise _Answer(400, "a blob is named by 64 hex digits and size_bytes", "take both from the job's outputs")
        content = self._desk.open_blob(BlobRef(root=bytes.fromhex(root), size_bytes=int(size)))
        return _content(content, size)

    async def output(self, request: Request) -> Response:
        job, root = self._job(request), request.path_params["root"]
        size = request.query_params.get("size_bytes", "")
        if not _ROOT.fullmatch(root) or not _NUMBER.fullmatch(size):
            raise _Answer(400, "an output is named by 64 hex digits and size_bytes", "take both from the job's outputs")
        content = await self._desk.open_output(job, BlobRef(root=bytes.fromhex(root), size_bytes=int(size)))
        return _content(content, None)

    async def missing_blobs(self, request: Request) -> Response:
        body = read_exact_keys(await json_body(request), ("blobs",), "request")
        if type(body["blobs"]) is not list:
            raise Malformed("blobs", "is not a JSON array")
        return JSONResponse({"missing": self._desk.missing_blobs([_blob(raw, "blobs") for raw in body["blobs"]])})

    async def submit(self, request: Request) -> Response:
        raw = await json_body(request)
        more = tuple(name for name in ("files", "key") if type(raw) is dict and name in raw)
        body = read_exact_keys(raw, ("spec", "package", *more), "job")
        key = _key(body["key"]) if body.get("key") is not None else None
        package = _blob(body["package"], "package")
        files = _blob(body["files"], "files") if body.get("files") is not None else None
        spec = spec_from_json(body["spec"])
        if self._max_job_budget is not None and spec.budget > self._max_job_budget:
            most = format_amount(self._max_job_budget)
            raise _Answer(
                409, f"the budget is above {most}, the most for one job here", "lower it, or raise buyer.max_job_budget"
            )
        job = await self._desk.submit(spec, package, files, key)
        return JSONResponse({"job": job.hex()}, status_code=201)

    async def jobs(self, _request: Request) -> Response:
        return JSONResponse({"jobs": self._desk.job_views()})

    async def job(self, request: Request) -> Response:
        return JSONResponse(self._desk.job_view(self._job(request)))

    async def watch(self, request: Request) -> Response:
        return stream_lines(self._desk.watch(self._job(request)))

    async def logs(self, request: Request) -> Response:
        follow = request.query_params.get("follow", "0")
        shard = request.query_params.get("shard")
        if follow not in ("0", "1") or (shard is not None and not _NUMBER.fullmatch(shard)):
            raise _Answer(400, "follow is 0 or 1, and shard is a number", "for example ?follow=1&shard=0")
        job = self._job(request)
        return stream_lines(self._desk.logs(job, None if shard is None else int(shard), follow == "1"))

    async def cancel(self, request: Request) -> Response:
        return JSONResponse(await self._desk.cancel(self._job(request)))

    async def top_up(self, request: Request) -> Response:
        job = self._job(request)
        body = read_exact_keys(await json_body(request), ("amount",), "request")
        try:
            amount = value_forms.amount(body["amount"]) if type(body["amount"]) is str else None
        except ValueError as fault:
            raise _Answer(400, f"amount: {fault}", "for example 1.50") from None
        if amount is None:
            raise Malformed("amount", "is not a text")
        raised = self._desk.budget(job) + amount
        if self._max_job_budget is not None and raised > self._max_job_budget:
            most = format_amount(self._max_job_budget)
            raise _Answer(
                409, f"the budget would be above {most}, the most for one job here", "raise buyer.max_job_budget"
            )
        return JSONResponse(await self._desk.top_up(job, amount))

    async def providers(self, _request: Request) -> Response:
        return JSONResponse({"providers": self._desk.providers()})

    async def balance(self, _request: Request) -> Response:
        return JSONResponse(self._desk.balance())

    async def entries(self, _request: Request) -> Response:
        return JSONResponse({"entries": self._desk.entries()})

    async def vouchers(self, _request: Request) -> Response:
        return JSONResponse({"vouchers": self._desk.vouchers()})

    async def deposits(self, _request: Request) -> Response:
        return JSONResponse({"deposits": self._desk.deposits()})


def _content(content: Flow[bytes] | None, size: str | None) -> Response:
    if content is None:
        raise _Answer(404, "this node does not have that blob", "it may not have been delivered yet")
    return _Stream(content, _bytes_of(content), "application/octet-stream", size)


def _key(raw: object) -> ContentKey:
    """A sealed job's key in a request. What is wrong with it is said without repeating it."""
    if type(raw) is not str or not _ROOT.fullmatch(raw):
        raise Malformed("key", "is not 64 hex digits")
    return ContentKey(bytes.fromhex(raw))


def _blob(raw: object, where: str) -> BlobRef:
    """A blob's name in a request."""
    named = read_exact_keys(raw, ("root", "size_bytes"), where)
    root, size_bytes = named["root"], named["size_bytes"]
    if type(root) is not str or not _ROOT.fullmatch(root):
        raise Malformed(f"{where}.root", "is not 64 hex digits")
    if type(size_bytes) is not int or not 0 <= size_bytes <= MAX_BLOB_BYTES:
        raise Malformed(f"{where}.size_bytes", "is not the size of a blob")
    return BlobRef(root=bytes.fromhex(root), size_bytes=size_bytes)


async def _bounded(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """A request's body. A client that goes in the middle is a mistake of its own and no fault of the daemon."""
    total_bytes = 0
    try:
        async for piece in pieces:
            total_bytes += len(piece)
            if total_bytes > MAX_BLOB_BYTES:
                raise _Answer(400, "a blob is at most 1 TiB", "cut it into several files")
            if piece:
                yield piece
    except ClientDisconnect:
        raise _Answer(400, "the upload broke off", "send it again") from None


def build_api(desk: Desk, *, max_job_budget: Amount | None = None, more: Sequence[Route] = ()) -> Starlette:
    """The application for ``hansa.node.api.http_server.serve_api``.

    Args:
        desk: the daemon.
        max_job_budget: jobs with a larger budget are refused (``buyer.max_job_budget``).
        more: routes of other rooms.
    """
    routes = _Routes(desk, max_job_budget)
    handlers: Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        _Answer: _answer_mistake,
        OperatorError: _answer_operator,
        ProtocolError: _answer_protocol,
        404: _answer_unknown_route,
        405: _answer_wrong_method,
    }
    return Starlette(
        routes=[
            Route("/v1/node", routes.node),
            Route("/v1/blobs", routes.put_blob, methods=["POST"]),
            Route("/v1/jobs/{job}/outputs/{root}", routes.output),
            Route("/v1/blobs/missing", routes.missing_blobs, methods=["POST"]),
            Route("/v1/blobs/{root}", routes.get_blob),
            Route("/v1/jobs", routes.submit, methods=["POST"]),
            Route("/v1/jobs", routes.jobs),
            Route("/v1/jobs/{job}", routes.job),
            Route("/v1/jobs/{job}/watch", routes.watch),
            Route("/v1/jobs/{job}/logs", routes.logs),
            Route("/v1/jobs/{job}/cancel", routes.cancel, methods=["POST"]),
            Route("/v1/jobs/{job}/top-up", routes.top_up, methods=["POST"]),
            Route("/v1/providers", routes.providers),
            Route("/v1/balance", routes.balance),
            Route("/v1/entries", routes.entries),
            Route("/v1/vouchers", routes.vouchers),
            Route("/v1/deposits", routes.deposits),
            *more,
        ],
        exception_handlers=handlers,
    )
