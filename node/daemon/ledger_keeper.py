"""The daemon's hand on its ledger: what is posted stands there under a signed head before anything is said of it.

Around it are the heads and proofs that nodes show each other, which are never journaled: what they need to know of this
node (with whom it deals, who is connected, whom it heard of) is gathered here.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hansa.market.effects import Send
from hansa.node.engine.filing import records_of
from hansa.node.engine.gate import deals_with, partners
from hansa.node.faults import OperatorError
from hansa.node.ledger.head_exchange import HeadExchange, refuse_rolled_back
from hansa.node.ledger.head_store import HeadStore
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.node.ledger.proof_exchange import ProofExchange
from hansa.proto.documents import TreeHead, log_id_of
from hansa.proto.messages import ProofSent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, sign

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon


class LedgerKeeper:
    """One daemon's."""

    def __init__(self, daemon: "Daemon") -> None:
        """Open what is on disk.

        Raises:
            OperatorError: the ledger is older than, or another one than, the newest head that was signed here; or there
                are records and no journal to which they belong.
        """
        self._daemon = daemon
        account = daemon.account.address
        self.store = LedgerStore(daemon.config.data_dir / "ledger.sqlite")
        self.heads = HeadStore(daemon.config.data_dir / "heads.sqlite")
        if self.store.size and not daemon.last_life_ms:
            # A node that knows of no channel would say that nothing is owed, while its books say what is.
            raise OperatorError(
                f"the ledger has {self.store.size} records, and the journal beside it is empty",
                "journal.sqlite was lost or replaced: restore the newest copy of the whole directory; without one go on"
                " in a new directory with a new account, as docs/running-a-node.md says under Backups",
            )
        refuse_rolled_back(self.store, self.heads, account)
        self.proof_exchange = ProofExchange(
            self.heads,
            account=account,
            send=self._bring,
            tell=daemon.tell,
            now_ms=daemon.now_ms,
            partners=lambda: partners(daemon.state),
            connected=self._connected_accounts,
            deals_with=lambda peer: deals_with(daemon.state, peer),
            knows=self._knows,
            refuses=lambda peer: peer in daemon.state.proven or peer in daemon.state.blocked,
        )
        self.head_exchange = HeadExchange(
            self.store,
            self.heads,
            account=account,
            send=self._bring,
            tell=daemon.tell,
            now_ms=daemon.now_ms,
            hand_on=self.proof_exchange.found,
        )

    def post(self, effects: Sequence[Any]) -> None:
        """Have money's documents and entries in the ledger, under a signed head, before anything is said of them."""
        records = records_of(effects, self._daemon.account)
        if records:
            self.store.post(records, self._sign_head)
            self.head_exchange.keep_own()

    def _sign_head(self, size: int, root: bytes) -> Signed[TreeHead]:
        account = self._daemon.account
        at_ms = self._daemon.now_ms()
        head = TreeHead(log_id=log_id_of(account.address), size=size, root=root, timestamp_ms=at_ms)
        return sign(DOMAIN, head, account)

    def show(self, send: Send) -> None:
        """Something goes to an account: with money go this node's newest head and the newest proofs of lies."""
        self.head_exchange.show(send)
        self.proof_exchange.show(send)

    def hear(self, sender: bytes, message: Any) -> None:
        """What a peer says of ledgers' histories, and what it proves."""
        if isinstance(message, ProofSent):
            self.proof_exchange.hear(sender, message)
        else:
            self.head_exchange.hear(sender, message)

    def counters(self) -> Counter[str]:
        """What was refused of heads and proofs, by reason."""
        return self.head_exchange.counters + self.proof_exchange.counters

    def close(self) -> None:
        """Keep the newest head and give the files back."""
        self.head_exchange.keep_own(now=True)
        self.store.close()
        self.heads.close()

    # What the exchanges ask of the daemon.

    def _bring(self, send: Send) -> None:
        self._daemon.outbox.put(send)

    def _connected_accounts(self) -> list[bytes]:
        """The accounts that connected peers proved to speak for."""
        daemon = self._daemon
        found = (daemon.directory.account_of(peer.peer_id) for peer in daemon.net.peers() if peer.phase == "live")
        return [account for account in found if account is not None]

    def _knows(self, account: bytes) -> bool:
        """Whether anything was heard of an account beside what somebody proves of it."""
        state = self._daemon.state
        return account in state.records or deals_with(state, account) or bool(self._daemon.directory.peers_of(account))
