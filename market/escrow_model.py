"""What the escrow does, in plain Python: the specification that the contract and every backend are held to.

``contracts/HansaEscrow.vy`` does the same on a chain; a fuzzer does the same operations to both and compares everything
that can be seen, refusals and their words included. Callers and times are arguments. Tokens are sound here: what
hostile ones do to the contract is in its own tests, and so are signers that are contracts.

At all times, for every token, what came in less what was withdrawn is what accounts may withdraw and what channels hold
(``assert_conserved``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hansa.market.settlement import (
    CLOSED,
    CLOSING,
    LONGEST_CHALLENGE_S,
    OPEN,
    SHORTEST_CHALLENGE_S,
    ChannelState,
    Claim,
    ClaimResult,
    Happening,
    Refused,
)
from hansa.proto.documents import ChannelConfig, CooperativeClose, Voucher, channel_id
from hansa.proto.errors import ProtocolError
from hansa.proto.signing import ZERO_ADDRESS, Signed, check
from hansa.proto.splits import Split, check_splits, shares_of, splits_hash
from hansa.proto.typed_data import Domain
from hansa.proto.units import Address, Amount, Bytes32, Signature, Uint64

LARGEST_AMOUNT = (1 << 128) - 1
NO_CHANNEL = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Channel:
    """A channel's state, its token, and how much of its deposit has been credited so far."""

    token: Address
    state: ChannelState
    credited: Amount = 0


class EscrowModel:
    """All channels and credits of one escrow.

    Attributes:
        history: everything that happened, oldest first.
    """

    def __init__(self, domain: Domain) -> None:
        """An escrow with nothing in it, whose documents are signed for ``domain``."""
        self.domain = domain
        self.history: list[Happening] = []
        self._channels: dict[bytes, _Channel] = {}
        self._credits: dict[tuple[bytes, bytes], int] = {}
        self._held: dict[bytes, int] = {}

    def state(self, id_: Bytes32) -> ChannelState:
        """A channel by its id."""
        return self._channels[id_].state if id_ in self._channels else ChannelState()

    def credit(self, token: Address, account: Address) -> Amount:
        """What an account could withdraw."""
        return self._credits.get((token, account), 0)

    def held(self, token: Address) -> Amount:
        """How much of a token the escrow has: all that came in, less what was withdrawn."""
        return self._held.get(token, 0)

    def assert_conserved(self) -> None:
        """Stop if any unit of any token is missing, or there twice."""
        for token, held in self._held.items():
            credited = sum(amount for (each, _), amount in self._credits.items() if each == token)
            live = [each for each in self._channels.values() if each.token == token and each.state.phase != CLOSED]
            assert held == credited + sum(each.state.deposit - each.credited for each in live), "money is missing"

    # ------------------------------------------------------------ opening

    def open(
        self, caller: Address, config: ChannelConfig, splits: Sequence[Split], amount: Amount, *, now_s: Uint64
    ) -> bytes:
        """Open a channel with a deposit; by its payer, with the splits whose hash the config names."""
        _require(caller == config.payer, "not the payer")
        _require(config.payer_signer != ZERO_ADDRESS, "no signer of the payer")
        _require(config.payee != ZERO_ADDRESS, "no payee")
        _require(config.payee_signer != ZERO_ADDRESS, "no signer of the payee")
        _require(config.challenge_period >= SHORTEST_CHALLENGE_S, "the challenge period is too short")
        _require(config.challenge_period <= LONGEST_CHALLENGE_S, "the challenge period is too long")
        _require(amount > 0, "nothing is deposited")
        try:
            check_splits(splits)
        except ProtocolError as error:
            raise Refused(str(error)) from error
        _check_hash(config, splits)
        id_ = channel_id(self.domain, config)
        _require(id_ not in self._channels, "the channel was opened before")
        self._channels[id_] = _Channel(token=config.token, state=ChannelState(phase=OPEN, deposit=amount))
        self._held[config.token] = self.held(config.token) + amount
        self._note("opened", id_, config.payer, amount, now_s)
        return id_

    def top_up(self, caller: Address, config: ChannelConfig, amount: Amount, *, now_s: Uint64) -> None:
        """Add to an open channel's deposit; by anyone."""
        id_ = channel_id(self.domain, config)
        _require(self.state(id_).phase == OPEN, "the channel is not open")
        _require(amount > 0, "nothing is deposited")
        deposit = self.state(id_).deposit + amount
        _require(deposit <= LARGEST_AMOUNT, "the deposit would be too large")
        self._change(id_, deposit=deposit)
        self._held[config.token] = self.held(config.token) + amount
        self._note("topped-up", id_, caller, deposit, now_s)

    # ------------------------------------------------------------ claims

    def claim(self, claims: Sequence[Claim], *, now_s: Uint64) -> tuple[ClaimResult, ...]:
        """Count vouchers; by anyone. What cannot be counted is passed over with the reason, and keeps no other back."""
        return tuple(self._claim_one(each, now_s) for each in claims)

    def _claim_one(self, claim: Claim, now_s: Uint64) -> ClaimResult:
        id_ = channel_id(self.domain, claim.config)
        fault = self._fault_of(claim)
        if fault:
            return ClaimResult(channel_id=id_, paid=0, fault=fault)
        paid = self._count(id_, claim.voucher.document.cumulative, now_s)
        return ClaimResult(channel_id=id_, paid=paid, fault="")

    def _fault_of(self, claim: Claim) -> str:
        state = self.state(channel_id(self.domain, claim.config))
        total = claim.voucher.document.cumulative
        is_live = state.phase in (OPEN, CLOSING)
        if total > (state.deposit if is_live else 0):
            return "above the deposit, or no open channel"
        if total <= (state.claimed if is_live else 0):
            return "not above what was claimed"
        return "" if self._is_voucher(claim.config, claim.voucher) else "not signed by the payer's signer"

    def _count(self, id_: bytes, total: Amount, now_s: Uint64) -> Amount:
        before = self.state(id_).claimed
        self._change(id_, claimed=total)
        self._note("claimed", id_, ZERO_ADDRESS, total, now_s)
        return total - before

    def settle(self, config: ChannelConfig, splits: Sequence[Split], *, now_s: Uint64) -> None:
        """Credit what was claimed and is not yet settled to payee and splits; by anyone."""
        id_, state = self._live(config)
        _require(state.claimed > state.settled, "nothing is to be settled")
        _check_hash(config, splits)
        self._credit_shares(id_, config, splits, state.claimed, last=False)
        self._change(id_, settled=state.claimed)
        self._note("settled", id_, ZERO_ADDRESS, state.claimed, now_s)

    # ------------------------------------------------------------ closing

    def request_close(self, caller: Address, config: ChannelConfig, *, now_s: Uint64) -> None:
        """Begin the end of a channel; by its payer or the payer's signer. The payee has the challenge period."""
        _require(caller in (config.payer, config.payer_signer), "not the payer or its signer")
        id_ = channel_id(self.domain, config)
        _require(self.state(id_).phase == OPEN, "the channel is not open")
        self._change(id_, phase=CLOSING, closable_at_s=now_s + config.challenge_period)
        self._note("close-requested", id_, ZERO_ADDRESS, 0, now_s)

    def finalize(self, caller: Address, config: ChannelConfig, splits: Sequence[Split], *, now_s: Uint64) -> None:
        """End a closing channel whose challenge period is over; by anyone."""
        id_ = channel_id(self.domain, config)
        state = self.state(id_)
        _require(state.phase == CLOSING, "the channel is not closing")
        _require(now_s >= state.closable_at_s, "the challenge period is not over")
        _check_hash(config, splits)
        self._close(id_, caller, config, splits, state.claimed, now_s=now_s)

    def payee_close(
        self,
        caller: Address,
        config: ChannelConfig,
        splits: Sequence[Split],
        voucher: Signed[Voucher] | None,
        *,
        now_s: Uint64,
    ) -> None:
        """End a channel at once; by its payee or the payee's signer.

        A voucher that somebody claimed meanwhile, or one above it, does no harm: it is passed over.
        """
        _require(caller in (config.payee, config.payee_signer), "not the payee or its signer")
        id_, state = self._live(config)
        total = state.claimed
        if voucher is not None and voucher.document.cumulative > total:
            total = voucher.document.cumulative
            _require(total <= state.deposit, "above the deposit")
            _require(self._is_voucher(config, voucher), "not signed by the payer's signer")
        _check_hash(config, splits)
        if total > state.claimed:
            self._count(id_, total, now_s)
        self._close(id_, caller, config, splits, total, now_s=now_s)

    def cooperative_close(
        self,
        caller: Address,
        config: ChannelConfig,
        splits: Sequence[Split],
        cumulative: Amount,
        *,
        payer_signature: Signature,
        payee_signature: Signature,
        now_s: Uint64,
    ) -> None:
        """End a channel at once at a total that both signed; by anyone. It may be below what was claimed."""
        id_, state = self._live(config)
        _require(cumulative >= state.settled, "below what was settled")
        _require(cumulative <= state.deposit, "above the deposit")
        close = CooperativeClose(channel_id=id_, cumulative=cumulative)
        for signature, signer, whose in (
            (payer_signature, config.payer_signer, "payer"),
            (payee_signature, config.payee_signer, "payee"),
        ):
            signed = Signed(document=close, signature=signature)
            _require(_is_signed(self.domain, signed, signer), f"not signed by the {whose}'s signer")
        _check_hash(config, splits)
        self._close(id_, caller, config, splits, cumulative, now_s=now_s)

    def withdraw(self, token: Address, account: Address, *, now_s: Uint64) -> Amount:
        """Pay out an account's credit to it; by anyone."""
        amount = self.credit(token, account)
        _require(amount > 0, "there is no credit")
        self._credits[token, account] = 0
        self._held[token] -= amount
        self._note("withdrawn", NO_CHANNEL, account, amount, now_s)
        return amount

    # ------------------------------------------------------------ inside

    def _live(self, config: ChannelConfig) -> tuple[bytes, ChannelState]:
        id_ = channel_id(self.domain, config)
        state = self.state(id_)
        _require(state.phase in (OPEN, CLOSING), "the channel is neither open nor closing")
        return id_, state

    def _is_voucher(self, config: ChannelConfig, voucher: Signed[Voucher]) -> bool:
        """Whether the payer's signer signed the voucher for the very channel of this config."""
        of_channel = replace(voucher.document, channel_id=channel_id(self.domain, config))
        return _is_signed(self.domain, replace(voucher, document=of_channel), config.payer_signer)

    def _close(
        self,
        id_: bytes,
        caller: Address,
        config: ChannelConfig,
        splits: Sequence[Split],
        total: Amount,
        *,
        now_s: Uint64,
    ) -> None:
        refund = self.state(id_).deposit - total
        self._credit_shares(id_, config, splits, total, last=True)
        self._pay(id_, config.payer, refund)
        self._change(id_, phase=CLOSED, deposit=total, claimed=total, settled=total, closable_at_s=0)
        self._note("closed", id_, caller, total, now_s)

    def _credit_shares(
        self, id_: bytes, config: ChannelConfig, splits: Sequence[Split], total: Amount, *, last: bool
    ) -> None:
        parts, payee_part = shares_of(total, self.state(id_).settled, splits, last=last)
        for split, part in zip(splits, parts, strict=True):
            self._pay(id_, split.account, part)
        self._pay(id_, config.payee, payee_part)

    def _pay(self, id_: bytes, account: Address, amount: Amount) -> None:
        channel = self._channels[id_]
        key = (channel.token, account)
        self._credits[key] = self._credits.get(key, 0) + amount
        self._channels[id_] = replace(channel, credited=channel.credited + amount)

    def _change(self, id_: bytes, **changes: int | str) -> None:
        channel = self._channels[id_]
        self._channels[id_] = replace(channel, state=replace(channel.state, **changes))  # type: ignore[arg-type]

    def _note(self, kind: str, id_: bytes, account: Address, amount: Amount, now_s: Uint64) -> None:
        cursor = len(self.history) + 1
        self.history.append(
            Happening(cursor=cursor, kind=kind, channel_id=id_, account=account, amount=amount, at_s=now_s)
        )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Refused(otherwise)


def _check_hash(config: ChannelConfig, splits: Sequence[Split]) -> None:
    _require(splits_hash(splits) == config.splits_hash, "not the channel's splits")


def _is_signed(domain: Domain, signed: Signed[Any], signer: Address) -> bool:
    try:
        check(domain, signed, signer)
    except ProtocolError:
        return False
    return True
