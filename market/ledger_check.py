"""Replay a whole ledger from its rows alone and say what holds: the order, the tree, every signature, every sum.

Nothing is believed that follows from a signature or a hash: what is written beside the documents is worked out again
and compared. The first place that is wrong is named by its position. What this cannot find out is a ledger that was
rolled back together with everything that its owner ever signed over it, or that never was shown to anybody: for that
it takes heads from elsewhere, those that peers hold.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hansa.market.ledger import Entry, Ledger
from hansa.market.ledger_documents import SIGNATURES, TOTALS, DocumentReplay
from hansa.market.ledger_records import (
    Record,
)
from hansa.market.receipts import NOTHING
from hansa.proto.codec import decode
from hansa.proto.documents import TreeHead, log_id_of
from hansa.proto.errors import ProtocolError
from hansa.proto.keccak import keccak256
from hansa.proto.merkle_log import EMPTY_ROOT, Edge
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, signer_of

LIMIT_BYTES = 1 << 20
OLDEST = 1
CHAIN, TREE, HEADS, BOOKS, ELSEWHERE = "chain", "tree", "heads", "books", "elsewhere"
ASPECTS = {
    CHAIN: "every record follows the one before it, and none is missing, changed or put in between",
    TREE: "the stored tree is the tree of these records",
    HEADS: "every head that this ledger signed is of these records",
    SIGNATURES: "every document is signed by the one whose word it is",
    TOTALS: "what rises only rises, receipts follow each other and vouchers pay for receipts",
    BOOKS: "the balances are those that follow from the documents",
    ELSEWHERE: "heads kept elsewhere are of these records",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One aspect of a ledger.

    Attributes:
        name: which.
        holds: whether.
        words: what holds, or what does not.
        position: the first record that is wrong, from 1; 0 where no record is.
    """

    name: str
    holds: bool
    words: str
    position: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a replay came to.

    Attributes:
        owner: whose ledger it is; empty where nothing says.
        records: how many records there are.
        documents: how many of them are signed documents.
        signatures: how many signatures were checked.
        root: the root of the tree over all records.
        findings: one for each aspect.
        books: the balances that follow from the entries.
    """

    owner: bytes
    records: int
    documents: int
    signatures: int
    root: bytes
    findings: tuple[Finding, ...]
    books: Ledger

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.holds for finding in self.findings)

    @property
    def first_fault(self) -> Finding | None:
        """The finding whose record comes first among those that are wrong."""
        faults = [finding for finding in self.findings if not finding.holds]
        return min(faults, key=lambda finding: finding.position or 1 << 64, default=None)


class LedgerCheck:
    """The replay. Give it every row in order, then ask for the report."""

    def __init__(self, *, owner: bytes = b"", heads: Iterable[tuple[int, bytes]] = ()) -> None:
        """Args: whose ledger it is, where that is known; and the heads in it, as written: size and encoded head."""
        self.owner = owner
        self._faults: dict[str, tuple[str, int]] = {}
        self._chain, self._edge = NOTHING, Edge()
        self._sums: dict[str, int] = {}
        self._strange: list[int] = []
        self._entries: set[bytes] = set()
        self._roots: dict[int, bytes] = {}
        self._heads_signed = 0
        self._heads = [self._read_head(size, body) for size, body in heads]
        self._sizes = {head.document.size for head in self._heads if head is not None}
        self._documents = DocumentReplay(self.owner, self._fault)

    def _fault(self, aspect: str, words: str, position: int) -> None:
        self._faults.setdefault(aspect, (words, position))

    def _read_head(self, size: int, body: bytes) -> Signed[TreeHead] | None:
        if type(body) is not bytes:
            self._fault(HEADS, f"the head of size {size} is unreadable: it is of another type than was written", size)
            return None
        try:
            head: Signed[TreeHead] = decode(body, Signed[TreeHead], limit_bytes=LIMIT_BYTES, oldest=OLDEST)
            signer = signer_of(DOMAIN, head)
        except ProtocolError as fault:
            self._fault(HEADS, f"the head of size {size} is unreadable: {fault}", size)
            return None
        self._heads_signed += 1
        self.owner = self.owner or signer
        if signer != self.owner or head.document.log_id != log_id_of(self.owner) or head.document.size != size:
            self._fault(HEADS, f"the head of size {size} is not this ledger's own", size)
        return head

    # Rows.

    def take(self, row: tuple[Any, Any, Any, Any], nodes: Iterator[tuple[int, bytes]] | None = None) -> None:
        """One more row: position, id, body and chain, as written. ``nodes`` are the stored nodes, all in order."""
        position, record_id, body, chain = row
        expected = self._edge.size + 1
        if any(type(part) is not bytes for part in row[1:]):
            # One bent byte in a row's header makes text or a number of what its table holds as bytes.
            self._fault(CHAIN, f"record {expected} is unreadable: it is of another type than was written", expected)
            body = body if type(body) is bytes else b""
        self._chain = keccak256(self._chain + body)
        if position != expected:
            self._fault(CHAIN, f"record {expected} is missing: the next one is numbered {position}", expected)
        elif chain != self._chain:
            self._fault(CHAIN, f"record {position} is not what was written there", position)
        for node in self._edge.append(body):
            if nodes is not None and (next(nodes, (0, b""))[1] != node):
                self._fault(TREE, f"the tree's nodes for record {expected} are not those of its bytes", expected)
        if expected in self._sizes:
            self._roots[expected] = self._edge.root
        try:
            record: Record = decode(body, Record, limit_bytes=LIMIT_BYTES, oldest=OLDEST)
        except (ProtocolError, AssertionError) as fault:
            self._fault(CHAIN, f"record {expected} is unreadable: {fault}", expected)
            return
        if record.id != record_id:
            self._fault(CHAIN, f"record {expected} stands under another id than its own", expected)
        self._read(record, expected)

    def _read(self, record: Record, at: int) -> None:
        if isinstance(record, Entry):
            self._post(record, at)
            return
        self._documents.read(record, at)

    # Books.

    def _post(self, entry: Entry, at: int) -> None:
        for leg in entry.legs:
            self._sums[leg.account] = self._sums.get(leg.account, 0) + leg.amount
        if entry.id in self._entries:
            self._fault(BOOKS, f"record {at}: an entry that was posted before", at)
        self._entries.add(entry.id)
        expected = self._documents.expected.get(entry.id)
        if expected is None:
            self._strange.append(at)
            return
        legs = {leg.account: leg.amount for leg in entry.legs}
        if any(legs.get(account) != amount for account, amount in expected):
            self._fault(BOOKS, f"record {at}: {entry.memo!r} is not what its documents say", at)

    def _check_books(self) -> None:
        if not self.owner:
            if self._entries:
                self._fault(BOOKS, "nobody's: no head says whose ledger this is, so say whose it is", 0)
            return
        follows = self._documents.balances()
        places = {name.split(":")[0] for name in follows} | {
            "due", "settled", "owed", "paid", "received", "acknowledged", "remitted", "acquitted",
        }  # fmt: skip
        names = {name for name in self._sums if name.split(":")[0] in places} | set(follows)
        wrong = sorted(name for name in names if self._sums.get(name, 0) != follows.get(name, 0))
        if wrong:
            name, at = wrong[0], next(iter(self._strange), 0)
            written, right = self._sums.get(name, 0), follows.get(name, 0)
            more = f" (record {at} has no document behind it)" if at else ""
            self._fault(BOOKS, f"{name} stands at {written} and its documents come to {right}{more}", at)
        if sum(self._sums.values()):
            self._fault(BOOKS, "the entries do not sum to zero", 0)

    # The end.

    def _root_of(self, size: int) -> bytes | None:
        return EMPTY_ROOT if size == 0 else self._roots.get(size)

    def _check_heads(self) -> None:
        size = self._edge.size
        for head in self._heads:
            if head is None:
                continue
            said = head.document
            if said.size > size:
                words = f"records {size + 1} to {said.size} are gone: a signed head in the file is of {said.size}"
                self._fault(HEADS, words, size + 1)
            elif self._root_of(said.size) != said.root:
                self._fault(HEADS, f"the signed head of size {said.size} is of other records", said.size)

    def report(
        self,
        *,
        elsewhere: Iterable[Signed[TreeHead]] = (),
        nodes: Iterator[tuple[int, bytes]] | None = None,
    ) -> Report:
        """What it all came to.

        Args:
            elsewhere: heads that others keep, of this ledger or of any other; those that ``want_roots`` was told of.
            nodes: what is left of the stored nodes.
        """
        if nodes is not None and next(nodes, None) is not None:
            self._fault(TREE, "more nodes are stored than these records have", 0)
        self._check_heads()
        self._check_books()
        counted = self._check_elsewhere(elsewhere)
        signatures = self._heads_signed + self._documents.signatures
        words = dict(ASPECTS)
        words[HEADS] += f" ({len(self._heads)} of them)"
        words[SIGNATURES] += f" ({signatures} checked)"
        if self._documents.chain_ends:
            words[BOOKS] += (
                f"; of {self._documents.chain_ends} ends of channels there is this node's own word: ask their chain"
            )
        words[ELSEWHERE] += f" ({counted} of them)" if counted else ": none was given"
        findings = []
        for aspect in ASPECTS:
            fault = self._faults.get(aspect)
            if fault is None:
                findings.append(Finding(name=aspect, holds=True, words=words[aspect]))
            else:
                findings.append(Finding(name=aspect, holds=False, words=fault[0], position=fault[1]))
        return Report(
            owner=self.owner,
            records=self._edge.size,
            documents=self._documents.documents,
            signatures=signatures,
            root=self._edge.root,
            findings=tuple(findings),
            books=Ledger(balances=self._sums, entries=len(self._entries)),
        )

    def want_roots(self, heads: Iterable[Signed[TreeHead]]) -> None:
        """Remember the roots at the sizes of these heads too. Before the first row."""
        self._sizes |= {head.document.size for head in heads}

    def _check_elsewhere(self, heads: Iterable[Signed[TreeHead]]) -> int:
        size, counted = self._edge.size, 0
        for head in heads:
            said = head.document
            try:
                signer = signer_of(DOMAIN, head)
            except ProtocolError:
                continue
            if not self.owner or signer != self.owner or said.log_id != log_id_of(self.owner):
                continue
            counted += 1
            if said.size > size:
                words = f"rolled back: {said.size} records were signed for, and here are {size}"
                self._fault(ELSEWHERE, words, size + 1)
                continue
            if self._root_of(said.size) != said.root:
                words = f"another history: the first {said.size} records are not those that were signed for"
                self._fault(ELSEWHERE, words, said.size)
        return counted


def check_ledger(
    rows: Iterable[tuple[Any, Any, Any, Any]],
    *,
    owner: bytes = b"",
    heads: Iterable[tuple[int, bytes]] = (),
    nodes: Iterable[tuple[int, bytes]] | None = None,
    elsewhere: Iterable[Signed[TreeHead]] = (),
) -> Report:
    """Replay a ledger and say what holds.

    Args:
        rows: position, id, body and chain of every record, as written, in order.
        owner: whose ledger it is, where that is known; else the first head in it says.
        heads: the heads in it, as written: size and encoded head.
        nodes: the stored nodes of its tree, as written, in order.
        elsewhere: heads that others keep.
    """
    kept = tuple(elsewhere)
    replay = LedgerCheck(owner=owner, heads=heads)
    replay.want_roots(kept)
    stored = iter(nodes) if nodes is not None else None
    for row in rows:
        replay.take(row, stored)
    return replay.report(elsewhere=kept, nodes=stored)
