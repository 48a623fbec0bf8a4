"""The contract and the model do the same, whatever is done to them: refusals and their words, states, credits, history.

In `make test` with a small budget; `make fuzz-contract EXAMPLES=2000` with a large one, which prints how many
operations were compared.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("pyrevm", reason="pyrevm, the EVM in this process, has no wheel for this Python")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kit.escrow_bench import EscrowBench
from kit.settlement_scene import PAYEE, PAYEE_SIGNER, PAYER, PAYER_SIGNER, STRANGER, twins

from hansa.market.escrow_model import EscrowModel
from hansa.market.settlement import (
    CLOSED,
    CLOSING,
    LONGEST_CHALLENGE_S,
    OPEN,
    SHORTEST_CHALLENGE_S,
    Claim,
    ClaimResult,
    Refused,
)
from hansa.node.chain.evm_escrow import CLAIM_FAULTS, claim_words, config_words, split_words
from hansa.proto.documents import ChannelConfig, CooperativeClose, Voucher
from hansa.proto.signing import Signed, SigningKey, sign
from hansa.proto.splits import Split, splits_hash

KEYS = (PAYER, PAYER_SIGNER, PAYEE, PAYEE_SIGNER, STRANGER)
ACCOUNTS = tuple(key.address for key in KEYS)
EVERYBODY = sorted({*ACCOUNTS, *(bytes([n]) * 20 for n in range(1, 6))})
LARGEST = 2**128 - 1
DONE: Counter[str] = Counter()

small = st.integers(0, 12)
amounts = st.one_of(small, st.integers(0, 100_000), st.sampled_from([LARGEST, LARGEST - 1, 2**127]))
usual = st.one_of(st.integers(1, 30), st.integers(1, 100_000))
seldom = st.integers(0, 14).map(lambda number: number == 7)
picks = st.integers(0, 59)


@st.composite
def split_lists(draw: st.DrawFn) -> tuple[Split, ...]:
    """Sound splits: accounts rising, shares of the whole at most."""
    accounts = draw(st.lists(st.sampled_from(EVERYBODY), unique=True, max_size=4))
    left, splits = 10_000, []
    for account in sorted(accounts):
        bps = draw(st.one_of(st.integers(1, max(1, min(left, 9))), st.integers(1, max(1, left))))
        if bps <= left:
            splits.append(Split(account=account, bps=bps))
            left -= bps
    return tuple(splits)


STRANGE: tuple[dict[str, Any], ...] = (
    {"payee": bytes(20)},
    {"payer_signer": bytes(20)},
    {"payee_signer": bytes(20)},
    {"challenge_period": SHORTEST_CHALLENGE_S - 1},
    {"challenge_period": LONGEST_CHALLENGE_S + 1},
    {"splits_hash": b"\x01" * 32},
)
Channel = tuple[ChannelConfig, tuple[Split, ...]]


class EscrowAgainstModel(RuleBasedStateMachine):
    """Every operation is done to both, by callers, with signatures and at times that may be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = EscrowBench()
        self.house = self.bench.escrow
        self.model = EscrowModel(self.house.domain)
        self.opened: list[Channel] = []

    @initialize(splits=split_lists(), amount=usual)
    def begin(self, splits: tuple[Split, ...], amount: int) -> None:
        """Everybody has tokens, and one channel is open."""
        for key in KEYS:
            self.house.mint(key.address, 3 * 2**128)
        config = self.bench.config(splits)
        self.do_open(PAYER, config, splits, amount)
        self.opened.append((config, splits))

    def both(self, name: str, key: SigningKey, arguments: tuple[Any, ...], model: Callable[[], Any]) -> Any:
        """Do one operation to both: they refuse with the same words, or neither does."""
        DONE[name] += 1
        try:
            expected = model()
        except Refused as no:
            DONE["refused"] += 1
            words = str(no)
            with pytest.raises(Refused) as refusal:
                self.house.do(key.address, name, *arguments)
            assert str(refusal.value) == words, f"{name}: {refusal.value} and not {words}"
            return None
        return expected, self.house.do(key.address, name, *arguments)

    @property
    def now_s(self) -> int:
        return self.house.chain.now_s

    @rule(
        payer=st.sampled_from([PAYER, PAYER, STRANGER]),
        signers=st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from(ACCOUNTS), st.sampled_from(ACCOUNTS)),
        usually=st.booleans(),
        splits=split_lists(),
        period_s=st.sampled_from([SHORTEST_CHALLENGE_S, 3_600, LONGEST_CHALLENGE_S]),
        amount=usual,
        strange=st.sampled_from(STRANGE),
        amount_is_odd=seldom,
        odd_amount=amounts,
        is_strange=seldom,
        by=st.sampled_from([None] * 9 + [PAYEE]),
        with_permit=st.booleans(),
    )
    def open(  # noqa: PLR0917  (hypothesis draws them all)
        self,
        payer: SigningKey,
        signers: tuple[bytes, ...],
        usually: bool,
        splits: tuple[Split, ...],
        period_s: int,
        amount: int,
        strange: dict[str, Any],
        amount_is_odd: bool,
        odd_amount: int,
        is_strange: bool,
        by: SigningKey | None,
        with_permit: bool,
    ) -> None:
        payer_signer, payee, payee_signer = signers
        if usually:
            payer_signer, payee, payee_signer = PAYER_SIGNER.address, PAYEE.address, PAYEE_SIGNER.address
        config = self.bench.config(
            splits,
            payer=payer.address,
            payer_signer=payer_signer,
            payee=payee,
            payee_signer=payee_signer,
            challenge_period=period_s,
        )
        if is_strange:
            config = replace(config, **strange)
        self.do_open(by or payer, config, splits, odd_amount if amount_is_odd else amount, with_permit=with_permit)
        self.opened.append((config, splits))

    def picked(self, number: int) -> Channel:
        """One of the newest live channels, or seldom any."""
        live = [each for each in self.opened if self.model.state(self.bench.id(each[0])).phase in (OPEN, CLOSING)]
        pool = live[-4:] if live and number < 54 else self.opened
        return pool[number % len(pool)]

    def do_open(
        self,
        key: SigningKey,
        config: ChannelConfig,
        splits: tuple[Split, ...],
        amount: int,
        *,
        with_permit: bool = False,
    ) -> None:
        # Everybody has approved the escrow, so a permit that is worth nothing changes nothing.
        permit = (0, 27, bytes(32), bytes(32)) if with_permit else ()
        self.both(
            "openWithPermit" if with_permit else "open",
            key,
            (config_words(config), split_words(splits), amount, *permit),
            lambda: self.model.open(key.address, config, splits, amount, now_s=self.now_s),
        )

    @precondition(lambda self: len(self.opened) % 3 == 0)
    @rule(pick=picks, amount=usual)
    def open_again(self, pick: int, amount: int) -> None:
        config, splits = self.picked(pick)
        payer = next(key for key in KEYS if key.address == config.payer)
        self.do_open(payer, config, splits, amount)

    @rule(pick=picks, amount=amounts, key=st.sampled_from(KEYS))
    def top_up(self, pick: int, amount: int, key: SigningKey) -> None:
        config, _ = self.picked(pick)
        if amount > self.house.balance(key.address):
            return  # the token would refuse, in words of its own
        self.both(
            "topUp",
            key,
            (config_words(config), amount),
            lambda: self.model.top_up(key.address, config, amount, now_s=self.now_s),
        )

    def voucher(self, config: ChannelConfig, total: int, odd: str, key: SigningKey) -> Signed[Voucher]:
        """A voucher that is good, or signed by somebody, or spelled in another way."""
        signer = next((each for each in KEYS if each.address == config.payer_signer), STRANGER)
        voucher = self.bench.voucher(config, total, key if odd == "somebody's" else signer)
        if odd == "for another":
            return replace(voucher, document=replace(voucher.document, statement=b"\x09" * 32))
        if odd == "a close":
            close = CooperativeClose(channel_id=self.bench.id(config), cumulative=total)
            return replace(voucher, signature=sign(self.house.domain, close, signer).signature)
        spelled = twins(voucher.signature)
        return replace(voucher, signature=spelled.get(odd, voucher.signature))

    odds = st.sampled_from(
        ["", "", "", "", "", "", "somebody's", "for another", "a close", "high s", "flipped v", "v 0", "all zero"]
    )

    def total_near(self, config: ChannelConfig, where: str, by: int) -> int:
        """A total around what matters, or any."""
        state = self.model.state(self.bench.id(config))
        near = {
            "claimed": state.claimed + by,
            "deposit": state.deposit - by,
            "settled": state.settled + by,
            "half": (state.claimed + state.deposit) // 2,
        }
        return min(LARGEST, max(0, near.get(where, by)))

    places = st.sampled_from(["claimed", "claimed", "deposit", "half", "half", "settled", "any"])
    steps = st.one_of(st.integers(-1, 3), st.integers(0, 40), st.sampled_from([0, LARGEST]))

    @rule(pick=picks, where=places, by=steps, odd=odds, key=st.sampled_from(KEYS))
    def claim(self, pick: int, where: str, by: int, odd: str, key: SigningKey) -> None:
        config, _ = self.picked(pick)
        total = self.total_near(config, where, by)
        voucher = self.voucher(config, total, odd, key)

        def single() -> ClaimResult:
            (result,) = self.model.claim([Claim(config=config, voucher=voucher)], now_s=self.now_s)
            if result.fault:
                raise Refused(result.fault)
            return result

        self.both("claim", key, (config_words(config), total, voucher.document.statement, voucher.signature), single)

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), count=st.integers(0, 6), key=st.sampled_from(KEYS))
    def claim_batch(self, data: st.DataObject, count: int, key: SigningKey) -> None:
        claims = []
        for _ in range(count):
            config, _ = self.picked(data.draw(picks))
            total = self.total_near(config, data.draw(self.places), data.draw(self.steps))
            claims.append(Claim(config=config, voucher=self.voucher(config, total, data.draw(self.odds), key)))
        results, outcome = self.both(
            "claimBatch",
            key,
            ([claim_words(claim) for claim in claims],),
            lambda: self.model.claim(claims, now_s=self.now_s),
        )
        DONE["vouchers in batches"] += count
        faults = list(self.house.escrow.answer("claimBatch", outcome.returned))
        assert faults == [CLAIM_FAULTS.index(result.fault) for result in results]

    @rule(pick=picks, key=st.sampled_from(KEYS), wrong=seldom)
    def settle(self, pick: int, key: SigningKey, wrong: bool) -> None:
        config, splits = self.maybe_wrong(self.picked(pick), wrong)
        self.both(
            "settle",
            key,
            (config_words(config), split_words(splits)),
            lambda: self.model.settle(config, splits, now_s=self.now_s),
        )

    def maybe_wrong(self, channel: Channel, wrong: bool) -> Channel:
        """The channel, or it with splits that are not its own."""
        other = (Split(account=b"\x01" * 20, bps=10_000),)
        is_other = splits_hash(other) != channel[0].splits_hash
        return (channel[0], other) if wrong and is_other else channel

    @rule(pick=picks, key=st.sampled_from((PAYER, PAYER_SIGNER, *KEYS)))
    def request_close(self, pick: int, key: SigningKey) -> None:
        config, _ = self.picked(pick)
        self.both(
            "requestClose",
            key,
            (config_words(config),),
            lambda: self.model.request_close(key.address, config, now_s=self.now_s),
        )

    @rule(pick=picks, key=st.sampled_from(KEYS), to=st.sampled_from([-1, 0, 1, None]), wrong=seldom)
    def finalize(self, pick: int, key: SigningKey, to: int | None, wrong: bool) -> None:
        config, splits = self.maybe_wrong(self.picked(pick), wrong)
        closable_at_s = self.model.state(self.bench.id(config)).closable_at_s
        if to is not None and closable_at_s + to > self.now_s:
            self.house.chain.pass_time(closable_at_s + to - self.now_s)
        self.both(
            "finalize",
            key,
            (config_words(config), split_words(splits)),
            lambda: self.model.finalize(key.address, config, splits, now_s=self.now_s),
        )

    @rule(
        pick=picks,
        key=st.sampled_from((PAYEE, PAYEE_SIGNER, *KEYS)),
        has_voucher=st.booleans(),
        where=places,
        by=steps,
        odd=odds,
        wrong=seldom,
    )
    def payee_close(  # noqa: PLR0917
        self, pick: int, key: SigningKey, has_voucher: bool, where: str, by: int, odd: str, wrong: bool
    ) -> None:
        config, splits = self.maybe_wrong(self.picked(pick), wrong)
        voucher = self.voucher(config, self.total_near(config, where, by), odd, key) if has_voucher else None
        last: tuple[Any, ...] = (0, bytes(32), b"")
        if voucher is not None:
            last = (voucher.document.cumulative, voucher.document.statement, voucher.signature)
        self.both(
            "payeeClose",
            key,
            (config_words(config), split_words(splits), *last),
            lambda: self.model.payee_close(key.address, config, splits, voucher, now_s=self.now_s),
        )

    @rule(
        pick=picks,
        key=st.sampled_from(KEYS),
        where=places,
        by=steps,
        odd=st.sampled_from(["", "", "", "swapped", "lower", "high s", "flipped v", "all zero", "payee's v 0"]),
        wrong=seldom,
    )
    def cooperative_close(  # noqa: PLR0917
        self, pick: int, key: SigningKey, where: str, by: int, odd: str, wrong: bool
    ) -> None:
        config, splits = self.maybe_wrong(self.picked(pick), wrong)
        total = self.total_near(config, where, by)
        signed_total = max(0, total - 1) if odd == "lower" else total
        close = CooperativeClose(channel_id=self.bench.id(config), cumulative=signed_total)
        payers, payees = (
            sign(self.house.domain, close, next((each for each in KEYS if each.address == signer), STRANGER)).signature
            for signer in (config.payer_signer, config.payee_signer)
        )
        if odd == "swapped":
            payers, payees = payees, payers
        payers = twins(payers).get(odd, payers)
        if odd == "payee's v 0":
            payees = twins(payees)["v 0"]
        self.both(
            "cooperativeClose",
            key,
            (config_words(config), split_words(splits), total, payers, payees),
            lambda: self.model.cooperative_close(
                key.address, config, splits, total, payer_signature=payers, payee_signature=payees, now_s=self.now_s
            ),
        )

    @precondition(lambda self: any(self.credits()))
    @rule(number=st.integers(0, 3), key=st.sampled_from(KEYS))
    def withdraw(self, number: int, key: SigningKey) -> None:
        order = sorted(EVERYBODY, key=lambda each: -self.model.credit(self.house.token, each))
        account = order[number]
        before = self.house.balance(account)
        done = self.both(
            "withdraw",
            key,
            (self.house.token, account),
            lambda: self.model.withdraw(self.house.token, account, now_s=self.now_s),
        )
        if done is not None:
            assert self.house.balance(account) == before + done[0]

    def credits(self) -> list[int]:
        """What everybody could withdraw."""
        return [self.model.credit(self.house.token, account) for account in EVERYBODY]

    @rule(seconds=st.sampled_from([1, 450, 899, 3_600, LONGEST_CHALLENGE_S]))
    def pass_time(self, seconds: int) -> None:
        self.house.chain.pass_time(seconds)

    @invariant()
    def they_are_the_same(self) -> None:
        for config, _ in self.opened:
            id_ = self.bench.id(config)
            assert self.house.state(id_) == self.model.state(id_)
        for account in EVERYBODY:
            assert self.bench.credit(account) == self.model.credit(self.house.token, account)
        assert self.house.history() == self.model.history

    @invariant()
    def no_unit_is_missing_or_there_twice(self) -> None:
        """On the chain alone: what the escrow has is what accounts may withdraw and what channels still hold."""
        self.model.assert_conserved()
        held = self.house.balance(self.house.at)
        assert held == self.model.held(self.house.token)
        credited = sum(self.bench.credit(account) for account in EVERYBODY)
        waiting = 0
        told = [event for event, _ in self.house.logs]
        for config, _ in self.opened:
            id_ = self.bench.id(config)
            state = self.house.state(id_)
            if state.phase in (OPEN, CLOSING):
                paid = sum(
                    each.values["amount"]
                    for each in told
                    if each.name == "Credited" and each.values["channelId"] == id_
                )
                assert paid <= state.settled <= state.claimed <= state.deposit
                waiting += state.deposit - paid
            elif state.phase == CLOSED:
                assert state.claimed == state.settled == state.deposit
        assert held == credited + waiting


EXAMPLES = int(os.environ.get("HANSA_FUZZ_EXAMPLES", "40"))
BUDGET = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    derandomize="HANSA_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


def test_the_contract_does_what_the_model_does() -> None:
    run_state_machine_as_test(EscrowAgainstModel, settings=BUDGET)


@pytest.fixture(scope="module", autouse=True)
def count_of_operations() -> Any:
    yield
    compared = sum(count for name, count in DONE.items() if name not in {"refused", "vouchers in batches"})
    print(f"\ncompared {compared:,} operations: {dict(DONE)}")
