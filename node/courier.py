"""The market's door: what peers say comes in here, is decoded, proved to be theirs, journaled, and only then taken."""

from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any

from hansa.market.effects import domain_of
from hansa.node.directory import Directory
from hansa.node.events import MessageArrived
from hansa.node.net import Context, Net
from hansa.proto.codec import decode
from hansa.proto.errors import BadSignature
from hansa.proto.messages import Direct, RunLogSent
from hansa.proto.protocols import MARKET, MAX_MARKET_BYTES
from hansa.proto.signing import Signed, check
from hansa.proto.units import UnixMs


class Courier:
    """Serves ``/hansa/market/1``."""

    def __init__(
        self,
        net: Net,
        directory: Directory,
        *,
        take: Callable[[MessageArrived], Awaitable[None]],
        log: Callable[[bytes, RunLogSent], None],
        now_ms: Callable[[], UnixMs],
    ) -> None:
        """``take`` returns when the event is in the journal; ``log`` gets what needs no journal."""
        self._net = net
        self._directory = directory
        self._take = take
        self._log = log
        self._now_ms = now_ms

    def serve(self) -> None:
        """Answer from now on."""
        self._net.serve(
            MARKET, self._answer, max_request_bytes=MAX_MARKET_BYTES, timeout_ms=20_000, per_peer=16, total=256
        )

    async def _answer(self, context: Context, data: bytes) -> bytes:
        message: Any = decode(data, Direct, limit_bytes=MAX_MARKET_BYTES)
        sender = await self._directory.require(context.peer_id)
        check_signatures(message, sender)
        if isinstance(message, RunLogSent):
            self._log(sender, message)
        else:
            await self._take(MessageArrived(sender=sender, message=message, at_ms=self._now_ms()))
        return b""


def check_signatures(message: Any, sender: bytes) -> None:
    """Every document in a direct message is signed by the one who brings it, and says so where it names a signer.

    Raises:
        BadSignature: it is not.
        Malformed: it names a currency that is none.
    """
    domain = domain_of(message)
    for field in fields(message):
        value = getattr(message, field.name)
        if isinstance(value, Signed):
            named = getattr(value.document, "signer", sender)
            if named != sender:
                raise BadSignature(field.name, "is signed by somebody else than its bringer")
            check(domain, value, sender)
