"""Print every message's fields: ``python tests/kit/print_protocol_tables.py > docs/protocol-messages.md``."""

import dataclasses
import inspect
import re
import sys
import types
import typing
from typing import Annotated, Any, Literal

from hansa.node.messaging import key_exchange, peer_exchange
from hansa.node.storage import blob_exchange, bulk_messages
from hansa.proto import book_messages, documents, history, market_documents, messages, shell_messages
from hansa.proto.codec import DEFAULT_BYTES, DEFAULT_ITEMS, DEFAULT_TEXT_BYTES
from hansa.proto.protocols import BLOB, BOOK, BOOK_SYNC, BULK, HELLO, KEYS, MARKET, PEERS, SHELL, VERSION
from hansa.proto.signing import Signed
from hansa.proto.typed_data import encode_type, type_hash
from hansa.proto.units import AbsentMeans, AtMost, Exactly, TwosComplement, Unsigned
from hansa.proto.workload import Workload

GOSSIP = (messages.AdvertPublished,)
BY_PROTOCOL: tuple[tuple[str, tuple[type, ...]], ...] = (
    (HELLO, (messages.Hello,)),
    ("gossip", GOSSIP),
    (MARKET, typing.get_args(messages.Direct)),
    (
        BOOK_SYNC,
        (
            book_messages.BookCompared,
            book_messages.BookDifference,
            book_messages.AdvertsWanted,
            book_messages.OwnAdvertWanted,
            messages.BookSent,
        ),
    ),
    (BOOK, (messages.BookRequested, messages.BookSent)),
    (PEERS, (peer_exchange.PeersWanted, peer_exchange.PeersKnown)),
    (history.HISTORY, (history.HistoryRequested, history.HistorySent)),
    (BLOB, (blob_exchange.TreeWanted, blob_exchange.ChunkWanted)),
    (
        BULK,
        (
            bulk_messages.ChannelWanted,
            bulk_messages.CallWanted,
            bulk_messages.CallOffered,
            bulk_messages.ChannelGranted,
        ),
    ),
    (KEYS, (key_exchange.KeysWanted,)),
    (SHELL, (*typing.get_args(shell_messages.ShellRequest), *typing.get_args(shell_messages.ShellAnswer))),
)
SIGNED = (
    documents.NodeBinding,
    market_documents.Advert,
    market_documents.Tender,
    market_documents.Bid,
    market_documents.Decline,
    market_documents.Award,
    documents.ChannelConfig,
    documents.Receipt,
    documents.Voucher,
    documents.CooperativeClose,
    documents.CreditLine,
    documents.Payment,
    documents.Netting,
    documents.TreeHead,
)
HASHED = (Workload, documents.MeterLine, market_documents.Evidence)

HEAD = f"""# Every message, every field

Printed from the code; a test fails when this page is stale, and `python tests/kit/print_protocol_tables.py >
docs/protocol-messages.md` writes it anew. [protocol.md](protocol.md) says what surrounds these tables: the frame
`[{VERSION}, name, fields]`, in which protocol and in which order a message may come, and what is signed.

How to read a type: `uintN` is an integer below 2^N; *text ≤ n* has at most n bytes of UTF-8; *list ≤ n of X* is an
array of at most n; *nil or X* may be nil; a name in italics is the map of that class's fields, given further down;
*signed X* is a map of two: `document`, the map of X, and `signature`, 65 bytes. Every map has exactly the fields that
are named here; one that says what its absence means may be missing in what an older node says. What is there *from
number* N on is not said under an earlier number of its protocol. Where no limit is named, {DEFAULT_TEXT_BYTES} bytes of
text, {DEFAULT_BYTES} bytes or {DEFAULT_ITEMS} items are the most.
"""

PARTS = """# What they are made of
"""

TYPED = """# What is signed

The EIP-712 type string of each document that somebody signs, and keccak256 of it. Fields are those of the tables above
with their names in camelCase, in this order.
"""

HASHED_HEAD = """The same for what is only hashed: a workload's digest stands in the award, and the struct hashes of
meter lines and evidence are the leaves of a receipt's two trees.
"""


def words(hint: Any) -> str:
    """A field's type, as a reader needs it."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        base, *rules = typing.get_args(hint)
        return _ruled(base, rules)
    if origin is tuple:
        return _list(hint, DEFAULT_ITEMS)
    if origin is Literal:
        return "one of " + ", ".join(f"`{word}`" for word in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        others = [each for each in typing.get_args(hint) if each is not type(None)]
        said = " or ".join(words(each) for each in others)
        named = f"[name, fields] of {said}" if len(others) > 1 else said
        return f"nil or {named}" if len(others) < len(typing.get_args(hint)) else named
    if origin is Signed:
        return f"signed *{typing.get_args(hint)[0].__name__}*"
    if dataclasses.is_dataclass(hint):
        return f"*{hint.__name__}*"
    return {
        int: "integer",
        bool: "bool",
        float: "finite double",
        str: f"text ≤ {DEFAULT_TEXT_BYTES}",
        bytes: f"bytes ≤ {DEFAULT_BYTES}",
    }[hint]


def _ruled(base: Any, rules: list[Any]) -> str:
    absent = next((each for each in rules if isinstance(each, AbsentMeans)), None)
    if absent is not None:
        return f"{words(base)}; from number {absent.since} on; absent, it is `{absent.value}`"
    (rule,) = (rule for rule in rules if isinstance(rule, AtMost | Exactly | Unsigned | TwosComplement))
    if isinstance(rule, Unsigned):
        return f"uint{rule.bits}"
    if isinstance(rule, TwosComplement):
        return f"int{rule.bits}"
    if isinstance(rule, Exactly):
        return f"{rule.size_bytes} bytes"
    if base is str:
        return f"text ≤ {rule.limit}"
    return f"bytes ≤ {rule.limit}" if base is bytes else _list(base, rule.limit)


def _list(hint: Any, most: int) -> str:
    items = typing.get_args(hint)
    assert len(items) == 2, f"{hint} is a list of a kind that this page does not know"
    assert items[1] is Ellipsis, f"{hint} is a list of a kind that this page does not know"
    return f"list ≤ {most} of {words(items[0])}"


def parts_of(hint: Any) -> list[type]:
    """The classes whose maps a type holds."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [found for each in typing.get_args(hint) for found in parts_of(each)]


def described(kind: type) -> dict[str, str]:
    """What a class's docstring says of its fields."""
    _, _, told = inspect.getdoc(kind).partition("Attributes:\n")  # type: ignore[union-attr]
    found: dict[str, str] = {}
    name = ""
    for line in told.splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start is not None:
            name, found[start[1]] = start[1], start[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def plain(text: str) -> str:
    """Docstrings' double backticks as Markdown has them, without what would end a table's cell."""
    return text.replace("``", "`").replace("|", "\\|")


def table(kind: type) -> str:
    """One class."""
    hints = typing.get_type_hints(kind, include_extras=True)
    told = described(kind)
    what = plain(" ".join(inspect.getdoc(kind).partition("\n\n")[0].split()))  # type: ignore[union-attr]
    if kind in messages.SINCE:
        what += f" From number {messages.SINCE[kind]} on."
    rows = [
        f"| `{field.name}` | {words(hints[field.name])} | {plain(told.get(field.name, ''))} |"
        for field in dataclasses.fields(kind)
    ]
    body = "\n".join(["| field | type | |", "|---|---|---|", *rows]) if rows else "No fields."
    return f"### {kind.__name__}\n\n{what}\n\n{body}\n"


def page() -> str:
    """The whole page."""
    out = [HEAD]
    told: set[type] = set()
    for protocol_id, kinds in BY_PROTOCOL:
        out.append(f"## {protocol_id}\n")
        for kind in kinds:
            out.append(f"### {kind.__name__}\n\nSee above.\n" if kind in told else table(kind))
            told.add(kind)
    waiting = [kind for _, kinds in BY_PROTOCOL for kind in kinds]
    out.append(PARTS)
    while waiting:
        for hint in typing.get_type_hints(waiting.pop(0), include_extras=True).values():
            for part in parts_of(hint):
                if part not in told and part is not Signed:
                    told.add(part)
                    out.append(table(part))
                    waiting.append(part)
    out += [TYPED, *(_typed(kind) for kind in SIGNED), HASHED_HEAD, *(_typed(kind) for kind in HASHED)]
    return "\n".join(out)


def _typed(kind: type) -> str:
    return f"**{kind.__name__}** `{type_hash(kind).hex()}`\n\n```\n{encode_type(kind)}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(page())
