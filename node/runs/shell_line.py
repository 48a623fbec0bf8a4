"""The buyer's end of a shell in one of its runs: asks the provider, asks again when an answer is lost, and gives up."""

import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import trio

from hansa.node.faults import OperatorError
from hansa.node.messaging.directory import Directory, Stranger
from hansa.node.network.net import Net, NetError, Refused
from hansa.proto.codec import decode, encode
from hansa.proto.errors import ProtocolError
from hansa.proto.protocols import SHELL
from hansa.proto.shell_messages import (
    MAX_SHELL_ANSWER_BYTES,
    ShellAnswer,
    ShellAwaited,
    ShellClosed,
    ShellRequest,
    ShellSaid,
    ShellTaken,
    ShellTyped,
    ShellWanted,
)

TIMEOUT_MS = 10_000
PATIENCE_S = 30.0
"""A provider that cannot be reached for so long has lost the shell."""
RETRY_S = 0.5
CLOSE_S = 5.0

Ask = Callable[[bytes], Awaitable[bytes]]
Answer = TypeVar("Answer", ShellTaken, ShellSaid)


class ShellFault(OperatorError):
    """The shell cannot be had, or no more. The words may be the provider's."""


def ask_provider(net: Net, directory: Directory, provider: bytes) -> Ask:
    """How a provider is asked, wherever its node is at that moment."""

    async def ask(data: bytes) -> bytes:
        peer_id = await directory.reach(provider)
        return await net.request(peer_id, SHELL, data, timeout_ms=TIMEOUT_MS, max_response_bytes=MAX_SHELL_ANSWER_BYTES)

    return ask


class ShellLine:
    """One shell. One task may read while another types."""

    def __init__(self, ask: Ask) -> None:
        """Nothing is opened yet."""
        self._ask = ask
        self._shell = secrets.token_bytes(16)
        self._typed = 0
        self._read = 0
        self._typing = trio.Lock()

    async def open(self, lease: bytes, argv: tuple[str, ...], *, piped: bool, columns: int, rows: int) -> None:
        """Start the program. Raises ``ShellFault``."""
        wanted = ShellWanted(shell=self._shell, lease=lease, argv=argv, piped=piped, columns=columns, rows=rows)
        await self._request(wanted, ShellTaken)

    async def enter(self, data: bytes, columns: int, rows: int) -> None:
        """Type, and let the terminal have this size; returns when the provider has taken it. Raises ``ShellFault``."""
        async with self._typing:
            sequence = self._typed + 1
            message = ShellTyped(shell=self._shell, sequence=sequence, data=data, columns=columns, rows=rows)
            while not (await self._request(message, ShellTaken)).taken:
                pass  # it has waited for us already
            self._typed = sequence

    async def read(self) -> ShellSaid:
        """What the program wrote next, which may be nothing yet. Raises ``ShellFault``."""
        answer = await self._request(ShellAwaited(shell=self._shell, sequence=self._read + 1), ShellSaid)
        self._read += 1
        return answer

    async def close(self) -> None:
        """Hang up, if the provider can be told."""
        with trio.move_on_after(CLOSE_S), suppress(NetError, Stranger):
            await self._ask(encode(ShellClosed(shell=self._shell)))

    async def _request(self, message: ShellRequest, kind: type[Answer]) -> Answer:
        data = encode(message)
        give_up_at = trio.current_time() + PATIENCE_S
        while True:
            try:
                answer: ShellAnswer = decode(await self._ask(data), ShellAnswer, limit_bytes=MAX_SHELL_ANSWER_BYTES)
            except Refused as no:
                raise ShellFault(f"the provider says: {no.why}", "hansa watch shows how the shards are") from no
            except (NetError, Stranger) as fault:
                why = str(fault)
            except ProtocolError as fault:
                raise ShellFault("the provider's answer is none", "it may run another version of Hansa") from fault
            else:
                if isinstance(answer, kind):
                    return answer
                raise ShellFault("the provider answered something else", "it may run another version of Hansa")
            if trio.current_time() > give_up_at:
                raise ShellFault(f"the provider cannot be reached: {why}", "hansa watch shows whether it still runs")
            await trio.sleep(RETRY_S)
