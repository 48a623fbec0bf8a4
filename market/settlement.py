"""The interface of every backend of settlement: the one state machine of a channel, whoever enforces it.

``hansa.market.escrow_model`` says in plain Python what each operation does; the ledger (signed debts between two nodes)
and the escrow contract (a deposit on a chain) do the same, and one conformance suite holds all of them to it::

    unset --open--> open --top_up--> open
    open, closing --claim--> same            the best voucher, at most the deposit; a bad one is skipped
    open --request_close (payer)--> closing  the payee has the challenge period to bring its best voucher
    closing --finalize (anyone, after it)--> closed
    open, closing --payee_close--> closed    at once, with a last voucher if there is one
    open, closing --cooperative_close--> closed   at once, at a total that both signed

Closed is for good: an id never opens again. Amounts are smallest units, times are seconds as a chain counts them.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from hansa.proto.documents import ChannelConfig, Voucher
from hansa.proto.signing import Signed
from hansa.proto.splits import Split
from hansa.proto.typed_data import Domain
from hansa.proto.units import Address, Amount, Bytes32, Line, Signature, Uint64

UNSET, OPEN, CLOSING, CLOSED = "unset", "open", "closing", "closed"
CHALLENGE_PERIOD_S = 86_400
"""What every channel has here: each side may be away for half a day and lose nothing by it."""
SHORTEST_CHALLENGE_S = 900
LONGEST_CHALLENGE_S = 30 * 86_400


class Refused(Exception):
    """A backend did not do what was asked: the reason in words. Nothing has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelState:
    """A channel as a backend has it. Once closed, deposit and claimed are what was settled: nothing else can be paid.

    Attributes:
        phase: unset, open, closing or closed.
        deposit: the most that it can pay, in all.
        claimed: the highest total that a voucher claimed.
        settled: how much of that has been credited to payee and splits.
        closable_at_s: from when a closing channel may be finalized; 0 otherwise.
    """

    phase: Line = UNSET
    deposit: Amount = 0
    claimed: Amount = 0
    settled: Amount = 0
    closable_at_s: Uint64 = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One voucher to be claimed, with the channel that it is for."""

    config: ChannelConfig
    voucher: Signed[Voucher]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimResult:
    """What came of a claim: by how much the channel's claimed total rose, or why it did not."""

    channel_id: Bytes32
    paid: Amount
    fault: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something that a backend's history says of a channel, or takes back.

    Attributes:
        cursor: where it stands in the history; ``events`` goes on after it.
        kind: opened, topped-up, claimed, close-requested, settled, closed or withdrawn.
        channel_id: the channel; 32 zero bytes for a withdrawal.
        account: who did it, or whose money it is; 20 zero bytes where nobody writes down who did it (claimed, settled,
            close-requested).
        amount: the deposit after it, the claimed or settled total, or what was withdrawn; 0 for close-requested.
        at_s: when.
        final: whether it can still be taken back (a chain's newest blocks can).
        retracted: it stood in the history and does no longer: a reorganisation dropped it.
    """

    cursor: Uint64
    kind: Line
    channel_id: Bytes32
    account: Address
    amount: Amount
    at_s: Uint64
    final: bool = True
    retracted: bool = False


class Backend(Protocol):
    """One account's way to settle. Every operation raises ``Refused`` with words where the backend says no.

    ``config`` and ``splits`` come with every operation that moves money, since a backend may keep no more than a
    channel's id: the id is the digest of the config, and the config names the hash of the splits.
    """

    @property
    def account(self) -> Address:
        """Whose operations these are."""
        ...

    @property
    def domain(self) -> Domain:
        """Where its channels' documents are signed for."""
        ...

    async def open(self, config: ChannelConfig, splits: Sequence[Split], amount: Amount) -> bytes:
        """Open a channel with a deposit; by its payer. Answers its id."""
        ...

    async def top_up(self, config: ChannelConfig, amount: Amount) -> None:
        """Add to an open channel's deposit; by anyone. The config says in which token."""
        ...

    async def state(self, channel_id: Bytes32, *, final: bool = True) -> ChannelState:
        """The channel as of the last state that cannot be taken back, or (``final=False``) as of the newest."""
        ...

    async def claim(self, claims: Sequence[Claim]) -> tuple[ClaimResult, ...]:
        """Claim vouchers; by anyone. One result for each; a bad one never keeps the others back."""
        ...

    async def settle(self, config: ChannelConfig, splits: Sequence[Split]) -> None:
        """Credit what was claimed and not yet settled to payee and splits; by anyone."""
        ...

    async def request_close(self, config: ChannelConfig) -> None:
        """Begin the end of a channel; by its payer or the payer's signer."""
        ...

    async def finalize(self, config: ChannelConfig, splits: Sequence[Split]) -> None:
        """End a closing channel whose challenge period is over; by anyone."""
        ...

    async def payee_close(
        self, config: ChannelConfig, splits: Sequence[Split], voucher: Signed[Voucher] | None
    ) -> None:
        """End a channel at once, with a last voucher if there is one; by its payee or the payee's signer."""
        ...

    async def cooperative_close(
        self,
        config: ChannelConfig,
        splits: Sequence[Split],
        cumulative: Amount,
        payer_signature: Signature,
        payee_signature: Signature,
    ) -> None:
        """End a channel at once at a total that both signed; by anyone. It may be below what was claimed."""
        ...

    async def credit(self, account: Address) -> Amount:
        """What an account could withdraw."""
        ...

    async def withdraw(self, account: Address) -> Amount:
        """Pay out an account's credit to it; by anyone. Answers how much that was."""
        ...

    def events(self, cursor: Uint64) -> AsyncIterator[Happening]:
        """What happened after a cursor, oldest first, up to now."""
        ...
