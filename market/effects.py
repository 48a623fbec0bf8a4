"""The orders that market and scheduler machines give to the world.

An effect may be performed twice (after a crash, what is outstanding is ordered again), so each is safe to repeat.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from hansa.proto.currency import currency_of
from hansa.proto.keccak import keccak256
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, SigningKey, sign
from hansa.proto.typed_data import Domain
from hansa.proto.units import Address, UnixMs

Document = TypeVar("Document")
Message = TypeVar("Message")

UNSIGNED = bytes(65)
"""Stands in a message until the engine's edge signs it: machines are pure and never see a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Bring a message to the node that speaks for an account; repeat it until it is in that node's journal.

    Attributes:
        to: the account.
        message: one of ``hansa.proto.messages.Direct``.
        keep_until_ms: after this it is pointless to go on trying.
        replaces: a newer message with the same text to the same account takes the place of one still waiting.
    """

    to: Address
    message: Any
    keep_until_ms: UnixMs
    replaces: str = ""


def unsigned(document: Document) -> Signed[Document]:
    """A document that the edge is to sign on its way out."""
    return Signed(document=document, signature=UNSIGNED)


def domain_of(message: Any) -> Domain:
    """Where the documents in a message are signed for: what moves money says in which currency, hence on which books.

    Raises:
        Malformed: the currency is none.
    """
    currency = getattr(message, "currency", None)
    return DOMAIN if currency is None else currency_of(currency).domain


def sealed(message: Message, key: SigningKey) -> Message:
    """The message with every document signed that a machine left unsigned. Signing twice gives the same bytes."""
    domain = domain_of(message)
    signed: dict[str, Any] = {}
    for field in fields(message):  # type: ignore[arg-type]
        value = getattr(message, field.name)
        if isinstance(value, Signed) and value.signature == UNSIGNED:
            signed[field.name] = sign(domain, value.document, key)
    return replace(message, **signed) if signed else message  # type: ignore[type-var]


def clipped(text: str, size_bytes: int) -> str:
    """As much of a text as fits into so many bytes of UTF-8. What comes from elsewhere is cut before it is sent on."""
    return text.encode(errors="replace")[:size_bytes].decode(errors="ignore")


def clipped_inside(text: str, size_bytes: int) -> str:
    """The same with the cut in the first quarter: a traceback's beginning says what it is, its end what went wrong."""
    data = text.encode(errors="replace")
    if len(data) <= size_bytes:
        return data.decode()
    gap = "\n[…]\n".encode()
    first = (size_bytes - len(gap)) // 4
    last = data[len(data) - (size_bytes - len(gap) - first) :]
    return data[:first].decode(errors="ignore") + gap.decode() + last.decode(errors="ignore")


MOST_CHANNELS = 16
"""So many new channels one tender may open with one provider, each after an award that came to nothing."""


def channel_salt(tender_digest: bytes, provider: bytes, failed: int = 0) -> bytes:
    """The salt of the new channel that a tender may open with a provider.

    A channel that was closed never opens again, and one whose only award came to nothing may be closed. So after so
    many ``failed`` awards of one tender to one provider the next channel is another one.
    """
    number = min(failed, MOST_CHANNELS - 1)
    return derived_nonce(b"channel", tender_digest, provider, *((bytes([number]),) if number else ()))


def derived_nonce(*parts: bytes) -> bytes:
    """A nonce that follows from what it belongs to, so that a machine needs no chance and a replay gives the same."""
    return keccak256(b"\0".join((b"hansa nonce", *parts)))
