"""Check a ledger's file: the node's own, or a copy of anybody's. Offline, and without changing a byte."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from hansa.market.ledger import Ledger
from hansa.market.ledger_check import CHAIN, Finding, Report, check_ledger
from hansa.node.faults import OperatorError
from hansa.node.ledger.head_store import HeadStore
from hansa.node.ledger.ledger_store import LedgerDamaged, LedgerStore
from hansa.proto.documents import TreeHead
from hansa.proto.signing import Signed

LEDGER_FILE, HEADS_FILE = "ledger.sqlite", "heads.sqlite"


def verify_file(path: Path, *, heads: Iterable[Signed[TreeHead]] = (), owner: bytes = b"") -> Report:
    """Replay a ledger's file.

    Args:
        path: the file.
        heads: heads of it that are kept elsewhere; those of other ledgers are passed over.
        owner: whose ledger it should be; else its own heads say.

    Raises:
        OperatorError: there is no such file, or it is no ledger at all.
    """
    if not path.is_file():
        raise OperatorError(f"there is no ledger at {path}", "name the file, or --data DIR of the node")
    store = None
    try:
        store = LedgerStore(path, read_only=True)
        return check_ledger(store.rows(), owner=owner, heads=list(store.heads()), nodes=store.nodes(), elsewhere=heads)
    except LedgerDamaged as fault:
        broken = Finding(name=CHAIN, holds=False, words=fault.what)
        return Report(owner=owner, records=0, documents=0, signatures=0, root=b"", findings=(broken,), books=Ledger())
    finally:
        if store is not None:
            store.close()


def heads_of(files: Sequence[Path]) -> list[Signed[TreeHead]]:
    """Every head in these files, each a node's ``heads.sqlite`` or a copy of one.

    Raises:
        OperatorError: one of them is none.
    """
    found: list[Signed[TreeHead]] = []
    for path in files:
        if not path.is_file():
            raise OperatorError(f"there are no heads at {path}", "name a node's heads.sqlite, or a copy of it")
        store = HeadStore(path, read_only=True)
        found += [kept.head for kept in store.heads()]
        store.close()
    return found
