"""The market's door: what peers say comes in here, is decoded, proved to be theirs, journaled, and only then taken."""

from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any

from hansa.market.effects import domain_of
from hansa.node.engine.events import MessageArrived
from hansa.node.engine.gate import DEBT_EVERY_MS, DEBTS_AT_ONCE, SIGNATURE_EVERY_MS, SIGNATURES_AT_ONCE, PeerRate
from hansa.node.ledger.head_exchange import UNJOURNALED
from hansa.node.messaging.directory import Directory
from hansa.node.messaging.outbox import NO_ROOM
from hansa.node.network.net import Context, Net, Refused
from hansa.proto.codec import decode
from hansa.proto.errors import BadSignature
from hansa.proto.messages import CreditGranted, Direct, PaymentAcknowledged, RunLogSent
from hansa.proto.protocols import MARKET, MAX_MARKET_BYTES, OLDER_MARKET
from hansa.proto.signing import Signed, check
from hansa.proto.units import UnixMs


class Courier:
    """Serves ``/hansa/market/2``, and ``/hansa/market/1``: what was said on that is read as it is today."""

    def __init__(
        self,
        net: Net,
        directory: Directory,
        *,
        take: Callable[[MessageArrived], Awaitable[None]],
        log: Callable[[bytes, RunLogSent], None],
        now_ms: Callable[[], UnixMs],
        hear: Callable[[bytes, Any], None] = lambda _sender, _message: None,
        matters: Callable[[bytes, Any], bool] = lambda _sender, _message: True,
    ) -> None:
        """``take`` returns when the event is in the journal; ``log`` and ``hear`` get what needs no journal.

        ``matters`` says, before any signature is looked into, whether a message can mean anything here.
        """
        self._matters = matters
        self._rate = PeerRate(SIGNATURES_AT_ONCE, SIGNATURE_EVERY_MS)
        self._debts = PeerRate(DEBTS_AT_ONCE, DEBT_EVERY_MS)
        self._net = net
        self._directory = directory
        self._take = take
        self._log = log
        self._hear = hear
        self._now_ms = now_ms

    def serve(self) -> None:
        """Answer from now on."""
        self._net.serve(
            MARKET,
            self._answer,
            max_request_bytes=MAX_MARKET_BYTES,
            timeout_ms=20_000,
            per_peer=16,
            total=256,
            older=(OLDER_MARKET,),
        )

    async def _answer(self, context: Context, data: bytes) -> bytes:
        message: Any = decode(data, Direct, limit_bytes=MAX_MARKET_BYTES)
        sender = await self._directory.require(context.peer_id)
        if not self._matters(sender, message):
            return b""
        # To recover a signer is the dear part of a message, and whoever sends signatures without end pays nothing.
        if _is_signed(message) and not self._rate.admits(sender, self._now_ms()):
            raise Refused(f"{NO_ROOM}: more signed messages than one peer may send")
        check_signatures(message, sender)
        if isinstance(message, CreditGranted | PaymentAcknowledged) and not self._debts.admits(sender, self._now_ms()):
            raise Refused(f"{NO_ROOM}: more credit lines and payments than one peer may send")
        if isinstance(message, RunLogSent):
            self._log(sender, message)
        elif isinstance(message, UNJOURNALED):
            self._hear(sender, message)
        else:
            await self._take(MessageArrived(sender=sender, message=message, at_ms=self._now_ms()))
        return b""


def _is_signed(message: Any) -> bool:
    return any(isinstance(getattr(message, field.name), Signed) for field in fields(message))


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
