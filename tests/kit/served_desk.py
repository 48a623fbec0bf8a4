"""A local API that serves on its socket in a thread of its own, as a daemon's does, for tests of the command line."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio
from starlette.applications import Starlette

from hansa.node.api.http_server import serve_api

Application = Callable[[], AbstractAsyncContextManager[Starlette]]


@contextmanager
def served(directory: Path, application: Application) -> Iterator[Path]:
    """Serve while the context lasts; gives the data directory. The application is made inside trio."""
    directory.mkdir(mode=0o700)
    ready = threading.Event()
    stop: list[Any] = []

    async def serve() -> None:
        async with application() as app, trio.open_nursery() as nursery:
            await nursery.start(serve_api, app, directory / "api.sock")
            stop.append((trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(20)
    try:
        yield directory
    finally:
        token, scope = stop[0]
        token.run_sync_soon(scope.cancel)
        thread.join(20)


def just(app: Starlette) -> Application:
    """An application that needs nothing around it."""

    @asynccontextmanager
    async def made() -> AsyncIterator[Starlette]:
        yield app

    return made
