"""Shells in this buyer's own runs, as the local API asks for them."""

import base64
import secrets
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import trio

from hansa.node.api.http_api import Json
from hansa.node.faults import OperatorError
from hansa.node.runs.shell_line import Ask, ShellFault, ShellLine, ask_provider
from hansa.proto.shell_messages import MAX_ARGUMENT_BYTES, MAX_ARGUMENTS, MAX_SHELL_REQUEST_BYTES
from hansa.scheduler.job_state import Job, Shard

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

OPEN_PHASES = ("running", "kept", "leaving", "ending")
SHELLS = 16
UNREAD_S = 30.0


class ShellDesk:
    """Implements ``hansa.node.api.http_shell.Shells`` over a running daemon."""

    def __init__(self, daemon: "Daemon") -> None:
        """Ask the providers of this daemon's runs."""
        self._daemon = daemon
        self._lines: dict[str, ShellLine] = {}
        self._unread: dict[str, float] = {}

    async def open(
        self, job: bytes, shard: int | None, argv: tuple[str, ...], *, piped: bool, columns: int, rows: int
    ) -> str:
        """See ``Shells``."""
        found = self._daemon.state.jobs.get(job)
        if found is None:
            raise OperatorError("no such job here", "hansa jobs lists them")
        at = _shard(found, shard)
        size_bytes = sum(len(one.encode()) for one in argv)
        longest = max((len(one.encode()) for one in argv), default=0)
        if len(argv) > MAX_ARGUMENTS or longest > MAX_ARGUMENT_BYTES or size_bytes > MAX_SHELL_REQUEST_BYTES // 2:
            raise OperatorError("the command is too long", "put it into a file of the job's package")
        self._forget_unread()
        if len(self._lines) >= SHELLS:
            raise OperatorError(f"{SHELLS} shells are open at this node", "end some of them")
        line = ShellLine(self._ask(at.provider))
        await line.open(at.lease, argv, piped=piped, columns=columns, rows=rows)
        name = secrets.token_hex(16)
        self._lines[name] = line
        self._unread[name] = trio.current_time()
        return name

    def _forget_unread(self) -> None:
        """Let go of shells whose reader left before it began; their providers close them when nobody asks."""
        for name, since in list(self._unread.items()):
            if trio.current_time() - since > UNREAD_S:
                del self._lines[name], self._unread[name]

    def _ask(self, provider: bytes) -> Ask:
        daemon = self._daemon
        if provider != daemon.account.address:
            return ask_provider(daemon.net, daemon.directory, provider)

        async def ask_ourselves(data: bytes) -> bytes:
            # A node that lends and buys may run its own job, and no node can dial itself.
            return await daemon.shells.answer(provider, data)

        return ask_ourselves

    def _line(self, shell: str) -> ShellLine:
        if shell not in self._lines:
            raise OperatorError("there is no such shell, or no more", "open another with hansa exec")
        return self._lines[shell]

    async def enter(self, shell: str, data: bytes, columns: int, rows: int) -> None:
        """See ``Shells``."""
        await self._line(shell).enter(data, columns, rows)

    async def said(self, shell: str) -> AsyncGenerator[Json, None]:
        """See ``Shells``. However it is left, the shell is closed with it."""
        line = self._line(shell)
        del self._unread[shell]
        is_over = False
        try:
            yield {"shell": shell}
            while not is_over:
                said = await line.read()
                is_over = said.ended
                if said.data:
                    yield {"output": base64.b64encode(said.data).decode("ascii")}
                if said.ended:
                    yield {"ended": said.status}
        except ShellFault as fault:
            is_over = True
            yield {"error": fault.what, "hint": fault.hint}
        finally:
            del self._lines[shell]
            if not is_over:
                with trio.CancelScope(shield=True):
                    await line.close()

    async def close(self, shell: str) -> None:
        """See ``Shells``."""
        await self._line(shell).close()


def _shard(job: Job, wanted: int | None) -> Shard:
    """The shard that is meant: the one of that number, or the first that runs."""
    if wanted is not None and wanted >= len(job.shards):
        have = "one shard, number 0" if len(job.shards) == 1 else f"shards 0 to {len(job.shards) - 1}"
        raise OperatorError(f"there is no shard {wanted}: the job has {have}", "choose one of them with --shard")
    candidates = job.shards if wanted is None else (job.shards[wanted],)
    for shard in candidates:
        if shard.phase in OPEN_PHASES:
            return shard
    if wanted is None and job.phase == "running":
        now = ", ".join(f"shard {number} is {shard.phase}" for number, shard in enumerate(job.shards[:8]))
        raise OperatorError(f"no shard runs at the moment: {now}", "hansa watch shows when one does")
    if wanted is None:
        so_far = f"has {job.phase}" if job.phase in ("succeeded", "failed") else f"is {job.phase}"
        raise OperatorError(f"no shard runs: the job {so_far}", "hansa watch shows how the shards are")
    reason = f": {candidates[0].reason}" if candidates[0].reason else ""
    raise OperatorError(f"shard {wanted} does not run, it is {candidates[0].phase}{reason}", "hansa watch shows more")
