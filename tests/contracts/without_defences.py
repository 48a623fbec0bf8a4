"""Take each defence of the escrow out, and see the test of the attack that it stands against fail.

    make break-contract

``docs/attacks.md`` names, for each attack, the tests that go red without the defence. For those about the contract this
script says what "the defence" is: the lines of the source that are taken out or turned into what a careless author
would have written. Each such escrow is compiled and deployed in place of the real one; nothing in the tree changes. It
fails if a test stays green, or if the page names a test of the contract that has no defence here.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mutate import COMPILER, ROOT, SOURCE, import_once, passes_the_suite

PAGE = ROOT / "docs" / "attacks.md"
# Where the first escrow of a chain in this process stands, which deployment decides.
FIRST_ESCROW = "0xe3a207e4225D459095491Ea75D30B31968dfF887"


@dataclass(frozen=True)
class Defence:
    """What stands against an attack, the test that must fail without it, and the changes that take it out."""

    what: str
    test: str
    changes: tuple[tuple[str, str], ...]


def without(line: str) -> tuple[str, str]:
    """The change that takes a statement out."""
    return line, "pass"


NOT_SIGNED = "if not self._signed_by(config.payerSigner, digest, signature):"
COUNT_ITEM = "self._count(id, held, item.cumulative, item.statement)"
IN_BATCH = "held: uint256 = self.money[id]\n        fault"
WHILE_OPEN = "held: uint256 = self.money[id] if self._phase_of(self.standings[id]) == OPEN else 0\n        fault"
EARLIER = "before * split.bps // WHOLE_BPS"
NOT_ABOVE = 'assert total > held >> 128, "not above what was claimed"'
CLOSE_DIGEST = "self._digest_of(keccak256(abi_encode(CLOSE_TYPE_HASH, id, total)))"
PLAIN_RECOVER = "ecrecover(digest, v, r, s)"
CREDIT = "self.credits[token][account] += amount"
PULLED = "extcall Token(token).transfer(account, amount, default_return_value=True)"
NO_ANSWER = ", default_return_value=True"
PAID_LATER = "self._credit(id, config.token, split.account, part - before * split.bps // WHOLE_BPS)"

DEFENCES = (
    Defence(
        what="the chain's id is in the domain",
        test="test_replay_on_another_chain_and_on_another_escrow_pays_nothing",
        changes=(("keccak256(VERSION), chain.id, self))", "keccak256(VERSION), convert(31337, uint256), self))"),),
    ),
    Defence(
        what="the escrow's address is in the domain",
        test="test_replay_on_another_chain_and_on_another_escrow_pays_nothing",
        changes=(("keccak256(VERSION), chain.id, self))", f"keccak256(VERSION), chain.id, {FIRST_ESCROW}))"),),
    ),
    Defence(
        what="the domain is worked out anew after a fork",
        test="test_replay_after_the_chain_forked_pays_nothing_and_the_forks_own_vouchers_do",
        changes=(("if chain.id != DEPLOYED_ON:", "if False:"),),
    ),
    Defence(
        what="a voucher is for the channel that it names",
        test="test_replay_of_a_voucher_on_another_channel_pays_nothing",
        changes=((NOT_SIGNED, "if False:"),),
    ),
    Defence(
        what="a total that was claimed is spent, in a batch",
        test="test_the_same_voucher_twice_and_a_lower_one_pay_nothing",
        changes=(("elif item.cumulative <= held >> 128:", "elif False:"),),
    ),
    Defence(
        what="a total that was claimed is spent, in a single claim",
        test="test_the_same_voucher_twice_and_a_changed_one_are_refused_by_the_single_claim",
        changes=(without(NOT_ABOVE),),
    ),
    Defence(
        what="vouchers count while a channel is closing",
        test="test_a_stale_voucher_at_the_close_is_answered_by_the_best_one_inside_the_window",
        changes=((IN_BATCH, WHILE_OPEN),),
    ),
    Defence(
        what="nobody ends a closing channel before its period is over",
        test="test_a_stale_voucher_at_the_close_is_answered_by_the_best_one_inside_the_window",
        changes=(without('assert block.timestamp >= standing >> 136, "the challenge period is not over"'),),
    ),
    Defence(
        what="an id is opened once",
        test="test_double_open_and_a_reopened_id_are_refused",
        changes=(without('assert self.standings[id] == 0, "the channel was opened before"'),),
    ),
    Defence(
        what="a closed channel leaves a tombstone",
        test="test_a_closed_channel_never_opens_again",
        changes=(("self.standings[id] = (CLOSED << 128) | total", "self.standings[id] = 0"),),
    ),
    Defence(
        what="s is at most half the order",
        test="test_the_high_s_twin_and_other_spellings_of_v_are_refused_by_the_single_claim",
        changes=(("if s > HALF_CURVE_ORDER:", "if False:"),),
    ),
    Defence(
        what="v is 27 or 28, and no other number stands for one of them",
        test="test_the_high_s_twin_and_other_spellings_of_v_are_refused_by_the_single_claim",
        changes=(("if v != 27 and v != 28:", "if False:"), (PLAIN_RECOVER, "ecrecover(digest, 28 - v % 2, r, s)")),
    ),
    Defence(
        what="the signer is who is recovered with the v that was given",
        test="test_the_high_s_twin_and_other_spellings_of_v_are_refused_by_the_single_claim",
        changes=(("recovered == signer", "(recovered == signer or ecrecover(digest, 55 - v, r, s) == signer)"),),
    ),
    Defence(
        what="the payer's signer is not the zero address",
        test="test_the_zero_address_signs_for_nobody",
        changes=(without('assert config.payerSigner != empty(address), "no signer of the payer"'),),
    ),
    Defence(
        what="the payee's signer is not the zero address",
        test="test_the_zero_address_signs_for_nobody",
        changes=(without('assert config.payeeSigner != empty(address), "no signer of the payee"'),),
    ),
    Defence(
        what="the type's hash is in a close's digest",
        test="test_no_document_passes_for_another_type",
        changes=((CLOSE_DIGEST, f"self._voucher_digest(id, total, 0x05{'00' * 31})"),),
    ),
    Defence(
        what="splits are the whole at most",
        test="test_splits_over_the_whole_or_with_an_unknown_preimage_do_not_open",
        changes=(without('assert whole <= WHOLE_BPS, "the splits are more than the whole"'),),
    ),
    Defence(
        what="a channel's splits are shown when it opens",
        test="test_splits_over_the_whole_or_with_an_unknown_preimage_do_not_open",
        changes=(without('assert self._splits_hash(splits) == expected, "not the channel\'s splits"'),),
    ),
    Defence(
        what="a deposit must arrive in full",
        test="test_a_fee_on_transfer_token_is_refused",
        changes=(
            without(
                'assert staticcall Token(token).balanceOf(self) == before + amount, "the token did not arrive in full"'
            ),
        ),
    ),
    Defence(
        what="each token has a purse of its own",
        test="test_a_rebasing_token_hurts_nobody_who_has_another",
        changes=(("self.credits[token][account]", "self.credits[empty(address)][account]"),),
    ),
    Defence(
        what="a token need not answer",
        test="test_a_no_return_token_works",
        changes=((NO_ANSWER, ""),),
    ),
    Defence(
        what="a withdrawal's answer is looked at",
        test="test_a_false_returning_token_leaves_the_credit_where_it_is",
        changes=((f'assert {PULLED}, "the token did not transfer"', f"moved: bool = {PULLED}"),),
    ),
    Defence(
        what="what moves nothing is no deposit",
        test="test_a_false_returning_token_and_one_that_moves_nothing_are_refused",
        changes=(
            without(
                'assert staticcall Token(token).balanceOf(self) == before + amount, "the token did not arrive in full"'
            ),
        ),
    ),
    Defence(
        what="the lock",
        test="test_a_reentrant_token_gets_in_nowhere",
        changes=(("# pragma nonreentrancy on", "# pragma nonreentrancy off"),),
    ),
    Defence(
        what="closing credits, and calls no token",
        test="test_a_blacklisted_royalty_owner_blocks_nobody_else",
        changes=((CREDIT, f"assert {PULLED}"),),
    ),
    Defence(
        what="an item of a batch that cannot be counted is skipped",
        test="test_front_running_one_voucher_reverts_neither_the_batch_nor_the_payees_close",
        changes=(("fault = NOT_ABOVE_CLAIMED", 'raise "not above what was claimed"'),),
    ),
    Defence(
        what="the payee's close passes over a voucher that was claimed meanwhile",
        test="test_front_running_one_voucher_reverts_neither_the_batch_nor_the_payees_close",
        changes=(
            ("if total > claimed:", 'if total > 0:\n        assert total > claimed, "not above what was claimed"'),
        ),
    ),
    Defence(
        what="a permit that somebody used first stops nothing",
        test="test_a_front_run_permit_does_not_stop_the_opening",
        changes=(("revert_on_failure=False,\n    )", "revert_on_failure=False,\n    )\n    assert permitted"),),
    ),
    Defence(
        what="a voucher is paid in full or not at all",
        test="test_a_voucher_above_the_deposit_is_not_partly_paid_and_so_not_burnt",
        changes=(
            ("if item.cumulative > held & LOW_HALF:", "if held == 0:"),
            (COUNT_ITEM, "self._count(id, held, min(item.cumulative, held & LOW_HALF), item.statement)"),
        ),
    ),
    Defence(
        what="one batch answers many closes",
        test="test_a_close_storm_is_answered_in_one_batch",
        changes=((IN_BATCH, WHILE_OPEN),),
    ),
    Defence(
        what="a closing channel takes no top-up",
        test="test_dust_top_ups_delay_no_close_and_cost_only_who_makes_them",
        changes=(without('assert self._phase_of(self.standings[id]) == OPEN, "the channel is not open"'),),
    ),
    Defence(
        what="asking twice for a close is asking once",
        test="test_asking_again_for_a_close_neither_hastens_nor_delays_it",
        changes=(without('assert standing >> 128 == OPEN, "the channel is not open"'),),
    ),
    Defence(
        what="shares are floors of running totals",
        test="test_how_a_total_is_cut_changes_nobodys_part",
        changes=(
            (PAID_LATER, "self._credit(id, config.token, split.account, (total - before) * split.bps // WHOLE_BPS)"),
        ),
    ),
    Defence(
        what="a deposit fits 128 bits",
        test="test_a_top_up_needs_money_and_an_amount",
        changes=(without('assert deposit <= LOW_HALF, "the deposit would be too large"'),),
    ),
    Defence(
        what="only the caller acts, not whose transaction it is",
        test="test_a_contract_that_somebody_calls_cannot_act_in_its_name",
        changes=(("msg.sender", "tx.origin"),),
    ),
)


def broken(source: str, defence: Defence) -> str:
    """The source without a defence."""
    for old, new in defence.changes:
        assert old in source, f"{defence.what}: the source has no {old!r}"
        source = source.replace(old, new)
    return source.replace("# pragma optimize gas", "# pragma optimize none")


def named_on_the_page() -> set[str]:
    """The contract's tests that the page names."""
    text = PAGE.read_text(encoding="utf-8")
    return set(re.findall(r"`tests/(?:contracts/test_escrow_attacks|conformance/test_backends)\.py::(\w+)`", text))


def main() -> int:
    """Take one defence out after the other; 1 if a test stays green or has no defence."""
    source = SOURCE.read_text(encoding="utf-8")
    import_once()
    green = []
    with tempfile.TemporaryDirectory() as folder:
        for number, defence in enumerate(DEFENCES):
            Path(folder, f"{number:04}.vy").write_text(broken(source, defence), encoding="utf-8")
        subprocess.run(
            [str(COMPILER), str(ROOT / "tests" / "contracts" / "mutate.py"), "--compile", folder], check=True
        )
        for number, defence in enumerate(DEFENCES):
            refused = Path(folder, f"{number:04}.no")
            assert not refused.exists(), f"{defence.what}: {refused.read_text()}"
            by = passes_the_suite(Path(folder, f"{number:04}.json"), only=defence.test)
            green += [] if by == defence.test else [defence]
            print(f"{'red' if by == defence.test else 'STILL GREEN':<12} {defence.what}    {defence.test}", flush=True)
    bare = sorted(named_on_the_page() - {defence.test for defence in DEFENCES})
    for name in bare:
        print(f"docs/attacks.md names a test whose defence nobody takes out: {name}")
    print(f"{len(DEFENCES)} defences taken out, {len(DEFENCES) - len(green)} tests red")
    return 1 if green or bare else 0


if __name__ == "__main__":
    sys.exit(main())
