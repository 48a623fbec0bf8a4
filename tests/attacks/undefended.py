"""Take defences against the attacks of ``docs/attacks.md`` out, one after the other, and see their tests fail.

    make break-defences                 all of them, a few minutes
    python tests/attacks/undefended.py --only claim_policy

It works on a copy of the tree: each change is made there, the test that the page names is run, the file is put back. A
test that stays green is a failure; so is a change whose line is no longer there. Those of the page's tests that no
change here belongs to are listed, so that nobody takes them for tried. What the contract defends itself with is in
``tests/contracts/without_defences.py``.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "attacks.md"
CONTRACTS = ("tests/contracts/test_escrow_attacks.py", "tests/conformance/test_backends.py")
LIMIT_S = 600
LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", "node_modules", ".*_cache", ".hypothesis")


@dataclass(frozen=True)
class Defence:
    """Lines that stand against an attack, what a careless author has there, and the test that fails.

    Attributes:
        file: where they are.
        test: the test.
        changes: what stands there, and what is put in its place.
        beside: the same in other files, where one defence stands behind another.
    """

    file: str
    test: str
    changes: tuple[tuple[str, str], ...]
    beside: tuple[tuple[str, str, str], ...] = ()


def at(file: str, test: str, *changes: tuple[str, str], beside: tuple[tuple[str, str, str], ...] = ()) -> Defence:
    return Defence(file=file, test=f"tests/{test}", changes=changes, beside=beside)


SIGNATURES = "attacks/test_attacks_on_signatures.py"
DOCUMENTS = "attacks/test_attacks_on_documents.py"
RECEIPTS = "attacks/test_attacks_on_receipts.py"
SETTLING = "integration/test_chain_settling.py"
BACKEND = "integration/test_evm_backend.py"
SENDING = "integration/test_evm_transactions.py"
PREPAYING = "unit/market/test_prepaying.py"
CREDIT = "unit/node/test_mutual_credit.py"
VERIFYING = "unit/node/test_ledger_verify.py"
HEADS = "unit/node/test_head_exchange.py"
POLICY = "unit/node/test_claim_policy.py"
EXPOSURE = "unit/market/test_sale_exposure.py"
OUTSIDE = "unit/node/test_outside_account.py"
COLD_PAYER = "unit/node/test_cold_payer.py"
COLD_WALLET = "integration/test_cold_wallet.py"

ON_CHAIN_DOMAIN = "domain = escrow_domain(chain_id, escrow)"
CLOSING_AND_GOOD = "if state.phase == CLOSING and good:"
OFFLINE = f"{SETTLING}::test_close_while_the_provider_is_offline_the_watchtower_claims_without_its_keys"
TOO_MANY_DIGITS = '_DECIMAL_TEXT = re.compile(r"0|[1-9][0-9]{0,77}", re.ASCII)'
COVERED = "if state.deposit is not None and voucher.cumulative > state.deposit:"
AHEAD = "sum(min(terms.prepay, max(0, terms.most - self.vouched(lease)))"

CHANGED = f"{OUTSIDE}::test_a_transaction_that_was_changed_anywhere_is_not_sent"
NOT_ITS_OWN = f"{OUTSIDE}::test_what_is_not_the_accounts_signature_under_it_is_not_sent"
ANOTHERS_CHANNEL = f"{COLD_PAYER}::test_a_deposit_for_somebody_elses_channel_is_not_made"
NEVER_ITS_OWN = f"{COLD_WALLET}::test_a_node_never_pays_another_accounts_channel_from_its_own"
KILLED = f"{COLD_WALLET}::test_killed_at_any_step_each_deposit_is_made_once"

DEFENCES = (
    at(
        "node/outside_account.py",
        CHANGED,
        ("if not isinstance(found, list) or found[:-3] != wanted or raw", "if not isinstance(found, list) or raw"),
        ("keccak256(unsigned)", "keccak256(DYNAMIC_FEE + rlp.encode(found[:-3]))"),
    ),
    at(
        "node/outside_account.py",
        NOT_ITS_OWN,
        (" + v) != account:", " + v) == bytes(20):"),
    ),
    at("node/cold_deposits.py", ANOTHERS_CHANNEL, ("if parties != (payer, signer, currency) or", "if")),
    at(
        "node/cold_deposits.py",
        ANOTHERS_CHANNEL,
        ("if splits_hash(wanted.splits) != wanted.config.splits_hash:", "if False:"),
    ),
    at(
        "node/chain_settling.py",
        NEVER_ITS_OWN,
        (
            "if isinstance(effect, FundingWanted) and is_paid_by_another(effect.config, self.backend.account):",
            "if False:",
        ),
        beside=(("node/chain_funding.py", "if wanted.config.payer != backend.account:", "if False:"),),
    ),
    at(
        "node/chain_settling.py",
        f"{COLD_WALLET}::test_a_deposit_that_comes_after_its_job_is_over_is_asked_back",
        ('if channel.phase == "closed" and is_paid_by_another(channel.config, self.backend.account):', "if False:"),
    ),
    at(
        "node/chain_funding.py",
        KILLED,
        ("missing = wanted.amount - before", "missing = wanted.amount"),
    ),
    at(
        "node/evm_transactions.py",
        KILLED,
        (
            "        written = self.store.intend(intention, attempt)\n        await self._send(written, attempt)\n",
            "        await self._send(intention, attempt)\n        written = self.store.intend(intention, attempt)\n",
        ),
    ),
    at(
        "market/sale_award.py",
        f"{COLD_PAYER}::test_on_the_ledger_nobody_runs_up_anothers_debts",
        ("if channel.payer != award.signer and not currency.is_on_chain:", "if False:"),
    ),
    at(
        "proto/currency.py",
        f"{SIGNATURES}::test_replay_on_another_chain_or_escrow",
        (ON_CHAIN_DOMAIN, "domain = escrow_domain(1, escrow)"),
    ),
    at(
        "proto/currency.py",
        f"{SIGNATURES}::test_replay_on_another_chain_or_escrow",
        (ON_CHAIN_DOMAIN, "domain = escrow_domain(chain_id, bytes(20))"),
    ),
    at(
        "proto/documents.py",
        f"{SIGNATURES}::test_replay_on_another_channel",
        ("return digest(domain, config)", "return config.payee.rjust(32, b'0')"),
    ),
    at(
        "market/earning_channel.py",
        "unit/market/test_earning_channel.py::test_the_same_voucher_twice_counts_once",
        ("if not state.cumulative < cumulative <= _most", "if not state.cumulative <= cumulative <= _most"),
    ),
    at("proto/signing.py", f"{SIGNATURES}::test_the_high_s_twin", ("<= HALF_CURVE_ORDER", "< CURVE_ORDER")),
    at(
        "proto/signing.py",
        f"{SIGNATURES}::test_v_of_0_1_36_and_others",
        ("if v not in (27, 28):", "if False:"),
        ("bytes((v - V_OFFSET,))", "bytes(((v + 1) % 2,))"),
    ),
    at(
        "proto/signing.py",
        f"{SIGNATURES}::test_a_flipped_v",
        ("if signer_of(domain, signed) != signer:", "if signer_of(domain, signed) == ZERO_ADDRESS:"),
    ),
    at(
        "proto/signing.py",
        f"{SIGNATURES}::test_ecrecover_zero_and_a_zero_signer",
        ("if signer == ZERO_ADDRESS:", "if False:"),
    ),
    at(
        "proto/typed_data.py",
        f"{SIGNATURES}::test_a_voucher_signed_as_a_cooperative_close_and_every_other_pair",
        ("words = [type_hash(cls)]", "words = [bytes(32)]"),
    ),
    at(
        "proto/typed_json.py",
        f"{DOCUMENTS}::test_extra_fields",
        ("if len(raw) != len(names):", "if False:"),
    ),
    at(
        "proto/typed_json.py",
        f"{DOCUMENTS}::test_missing_fields",
        ("    for name in names:\n        if name not in raw:", "    for name in ():\n        if name not in raw:"),
        ("if len(raw) != len(names):", "if len(raw) > len(names):"),
    ),
    at(
        "proto/typed_json.py",
        f"{DOCUMENTS}::test_renamed_fields",
        ("    for name in names:\n        if name not in raw:", "    for name in ():\n        if name not in raw:"),
    ),
    at(
        "proto/units.py",
        f"{DOCUMENTS}::test_text_as_bytes32",
        ("if len(value) != self.size_bytes:", "if len(value) > self.size_bytes:"),
    ),
    at(
        "proto/currency.py",
        f"{SIGNATURES}::test_a_domain_spoofed_by_the_peer",
        ("_ON_CHAIN.fullmatch(name)", "_ON_CHAIN.match(name)"),
    ),
    at(
        "node/evm_currency.py",
        f"{BACKEND}::test_domain_spoofed_by_a_peer_a_fake_escrow_is_not_taken_for_ours",
        ("if await nodes.code(escrow, block) != escrow_code(chain_id, escrow):", "if False:"),
    ),
    at(
        "proto/typed_json.py",
        f"{DOCUMENTS}::test_json_big_ints",
        (
            "value = read_decimal(raw, where)",
            "value = raw if type(raw) is int else read_decimal(raw, where)",
        ),
    ),
    at("proto/typed_json.py", f"{DOCUMENTS}::test_json_floats", ("parse_float=_refuse_float,", "")),
    at(
        "proto/typed_json.py",
        f"{DOCUMENTS}::test_json_duplicate_keys",
        ("if len(table) != len(pairs):", "if False:"),
    ),
    at(
        "proto/typed_json.py",
        f"{DOCUMENTS}::test_json_unicode_digits",
        (TOO_MANY_DIGITS, r'_DECIMAL_TEXT = re.compile(r"\d{1,78}")'),
    ),
    at(
        "proto/typed_json.py",
        f"{DOCUMENTS}::test_json_of_5000_digits",
        (TOO_MANY_DIGITS, '_DECIMAL_TEXT = re.compile(r"0|[1-9][0-9]*", re.ASCII)'),
    ),
    at(
        "proto/units.py",
        f"{DOCUMENTS}::test_negative_or_above_2_to_the_128",
        ("if not 0 <= value < 1 << self.bits:", "if False:"),
    ),
    at(
        "proto/units.py",
        f"{DOCUMENTS}::test_negative_or_above_2_to_the_128_in_a_value",
        ("if not 0 <= value < 1 << self.bits:", "if False:"),
    ),
    at("proto/units.py", f"{DOCUMENTS}::test_decimals_confusion", ("CURRENCY_DECIMALS = 6", "CURRENCY_DECIMALS = 18")),
    at(
        "node/evm_currency.py",
        f"{BACKEND}::test_decimals_confusion_a_token_with_others_than_six_is_refused",
        ("if decimals != CURRENCY_DECIMALS:", "if False:"),
    ),
    at(
        "proto/units.py",
        "unit/proto/test_units.py::test_slicing_the_time_neither_skims_nor_adds",
        ("device_ms_total * price_e18 // 10**PRICE_DECIMALS", "-(-device_ms_total * price_e18 // 10**PRICE_DECIMALS)"),
    ),
    at(
        "proto/splits.py",
        "unit/proto/test_splits.py::test_splits_that_break_a_rule_are_malformed",
        (" or sum(split.bps for split in splits) > WHOLE_BPS", ""),
    ),
    at(
        "market/earning_channel.py",
        f"{PREPAYING}::test_a_voucher_above_the_deposit_never_takes_the_place_of_one_that_can_be_claimed",
        (COVERED, "if False:"),
    ),
    at(
        "market/sale_award.py",
        "unit/market/test_sale_award.py::test_on_a_chain_the_challenge_period_is_the_one_that_every_channel_has",
        ("if currency.is_on_chain and channel.challenge_period != CHALLENGE_PERIOD_S:", "if False:"),
    ),
    at(
        "node/claim_policy.py",
        f"{POLICY}::test_an_end_below_what_was_settled_is_not_waited_for",
        ("if is_agreed(channel) and newest.settled <= channel.earned:", "if is_agreed(channel):"),
    ),
    at(
        "node/claim_policy.py",
        f"{POLICY}::test_no_more_is_claimed_than_was_earned_until_somebody_closes",
        ("channel.cumulative <= channel.earned else channel.safe", "True else channel.safe"),
    ),
    at(
        "node/chain_settling.py",
        f"{SETTLING}::test_what_was_claimed_is_credited_though_the_buyer_has_vanished",
        ("if ends_alone(channel, standing, since_ms=since_ms, at_ms=at_ms):", "if False:"),
    ),
    at(
        "node/chain_settling.py",
        f"{SETTLING}::test_a_close_is_answered_though_the_nodes_do_not_agree",
        ("            faults.append(fault)\n            return None\n", "            raise\n"),
    ),
    at(
        "node/claim_policy.py",
        f"{POLICY}::test_a_close_that_either_view_shows_is_answered",
        ("CLOSING in (standing.final.phase, standing.newest.phase)", "CLOSING in (standing.newest.phase,)"),
    ),
    at(
        "node/evm_backend.py",
        f"{BACKEND}::test_work_on_an_unconfirmed_deposit_is_seen_for_what_it_is",
        (
            "        if not final:\n            return await self._nodes.newest_call",
            "        if True:\n            return await self._nodes.newest_call",
        ),
    ),
    at(
        "node/evm_events.py",
        f"{BACKEND}::test_a_reorged_deposit_is_taken_back_and_told_again",
        ("for place, happening in told.items() if place not in now]", "for place, happening in told.items() if False]"),
    ),
    at("node/watchtower.py", OFFLINE, (CLOSING_AND_GOOD, "if False:")),
    at("node/watchtower.py", OFFLINE, ("best = max(good", "best = min(good")),
    at(
        "market/paying_channel.py",
        f"{PREPAYING}::test_whenever_a_provider_leaves_it_has_at_most_what_live_leases_pay_ahead_beyond_its_receipts",
        (AHEAD, AHEAD.replace("terms.prepay,", "2 * terms.prepay,")),
    ),
    at(
        "market/paying_channel.py",
        f"{PREPAYING}::test_a_provider_that_ends_the_channel_with_what_was_paid_ahead_has_taken_just_that_and_the_books_say_so",
        ("    if event.paid > state.metered:", "    if False:"),
    ),
    at(
        "market/receipts.py",
        f"{RECEIPTS}::test_two_vouchers_for_one_seq_and_a_forked_receipt_chain",
        ("elif receipt.seq != last.receipt.seq + 1 or receipt.prev != receipt_digest(last.receipt):", "elif False:"),
    ),
    at(
        "market/equivocation.py",
        f"{HEADS}::test_forked_receipt_chain_is_proven_by_two_receipts_of_one_number",
        ("if first.seq != second.seq or receipt_digest(first) == receipt_digest(second):", "if True:"),
    ),
    at(
        "market/receipts.py",
        f"{RECEIPTS}::test_inflated_device_ms",
        ("if line.device_ms > (line.end_ms - line.start_ms) * len(agreed.devices):", "if False:"),
    ),
    at(
        "market/receipts.py",
        f"{RECEIPTS}::test_moved_periods_before_the_lease",
        ("if line.start_ms < agreed.begins_ms - CLOCK_SKEW_MS or", "if"),
    ),
    at(
        "market/receipts.py",
        f"{RECEIPTS}::test_moved_periods_of_a_line_that_was_paid",
        ("if line.start_ms != before.start_ms or line.end_ms < before.end_ms or", "if"),
    ),
    at(
        "market/receipts.py",
        f"{RECEIPTS}::test_clock_skew",
        ("<= receipt.period_end_ms <= now_ms + CLOCK_SKEW_MS:", "<= receipt.period_end_ms:"),
    ),
    at(
        "market/receipts.py",
        "unit/market/test_equivocation.py::test_one_gpu_sold_twice_is_not_paid_for",
        ("return _double_charge(statement.lines, before, terms)", "return None"),
    ),
    at(
        "proto/units.py",
        f"{DOCUMENTS}::test_zero_and_2_to_the_256_prices",
        ("if not 0 <= value < 1 << self.bits:", "if not 0 <= value:"),
    ),
    at(
        "node/mutual_credit.py",
        f"{CREDIT}::test_the_longest_line_there_is_and_a_payment_leave_a_state_that_can_be_written_and_read",
        ("most = min(mutual.LARGEST, most)", "most = most"),
        beside=(
            (
                "node/buying_turns.py",
                "return min(mutual.LARGEST, channel.metered + left)",
                "return channel.metered + left",
            ),
        ),
    ),
    at(
        "node/mutual_credit.py",
        f"{CREDIT}::test_what_is_paid_ahead_makes_no_room_for_more_credit",
        ("channel.earned + left, at_ms)", "channel.cumulative + left, at_ms)"),
    ),
    at(
        "node/courier.py",
        f"{RECEIPTS}::test_a_flood_of_credit_lines_does_not_swell_the_ledger_that_keeps_them_all",
        ("and not self._debts.admits(sender, self._now_ms()):", "and False:"),
    ),
    at(
        "node/courier.py",
        f"{RECEIPTS}::test_signature_floods_are_limited_for_each_peer",
        ("and not self._rate.admits(sender, self._now_ms()):", "and False:"),
    ),
    at(
        "proto/merkle.py",
        f"{DOCUMENTS}::test_merkle_second_preimage",
        ('NODE_PREFIX: Final = b"\\x01"', 'NODE_PREFIX: Final = b"\\x00"'),
    ),
    at(
        "proto/binding.py",
        f"{SIGNATURES}::test_peer_id_account_binding_theft",
        ("if binding.peer_id != peer_id:", "if False:"),
    ),
    at(
        "proto/binding.py",
        f"{SIGNATURES}::test_peer_id_account_binding_theft",
        ("    check(domain, Signed(document=binding, signature=hello.account_signature), binding.account)\n", ""),
    ),
    at(
        "proto/binding.py",
        f"{RECEIPTS}::test_peer_id_account_binding_theft_over_the_network",
        ("if binding.peer_id != peer_id:", "if False:"),
    ),
    at(
        "node/chain_nodes.py",
        f"{BACKEND}::test_a_lying_rpc_node_is_found_out_by_one_that_does_not",
        ("if (said and noes) or any(value != values[0] for value in values):", "if False:"),
    ),
    at(
        "node/evm_transactions.py",
        f"{SENDING}::test_stuck_gas_is_outbid_with_the_same_nonce",
        ("if self._now_ms() - waits_since_ms >= self._stuck_ms:", "if False:"),
    ),
    at(
        "node/evm_transactions.py",
        f"{SENDING}::test_nonce_races_between_two_programs_are_noticed_and_survived",
        ("            self.store.forget(intention.number)\n", ""),
    ),
    at(
        "node/external_signer.py",
        "integration/test_external_signer.py::test_what_is_not_the_accounts_signature_over_this_is_not_taken",
        ("if recover(to_sign.digest, signature) != account:", "if False:"),
    ),
    at(
        "node/courier.py",
        f"{RECEIPTS}::test_signature_floods_about_nothing_are_answered_before_any_recover",
        ("if not self._matters(sender, message):", "if False:"),
    ),
    at(
        "node/directory.py",
        f"{RECEIPTS}::test_signature_floods_of_hellos_are_limited",
        ("if not self._rate.admits(context.peer_id.encode(), self._now_ms()):", "if False:"),
    ),
    at(
        "market/sale_metering.py",
        f"{RECEIPTS}::test_a_buyer_that_never_vouches",
        ("and state.unpaid > state.bid.max_unpaid:", "and False:"),
    ),
    at(
        "market/ledger_check.py",
        f"{VERIFYING}::test_ledger_file_edited",
        ("elif chain != self._chain:", "elif False:"),
    ),
    at(
        "market/ledger_check.py",
        f"{VERIFYING}::test_ledger_file_truncated",
        (
            "            said = head.document\n            if said.size > size:",
            "            said = head.document\n            if False:",
        ),
    ),
    at(
        "market/ledger_check.py",
        f"{VERIFYING}::test_ledger_file_rolled_back_is_found_by_the_nodes_own_last_head_and_by_those_of_peers",
        (
            "            counted += 1\n            if said.size > size:",
            "            counted += 1\n            if False:",
        ),
    ),
    at(
        "node/head_exchange.py",
        f"{HEADS}::test_split_view_of_the_log_is_proven_when_those_who_were_shown_it_meet",
        ("        if not own:\n            self._hear_head(head)", "        if not own:\n            pass"),
    ),
    at(
        "node/head_exchange.py",
        f"{HEADS}::test_sizes_that_no_ledger_reaches_are_dropped_and_counted",
        ("        if size > LARGEST_KEPT_SIZE:", "        if False:"),
    ),
    at(
        "node/evm_store.py",
        f"{SENDING}::test_two_processes_cannot_have_one_file",
        ('"locking_mode=EXCLUSIVE"', '"locking_mode=NORMAL"'),
    ),
    at(
        "market/paying_channel.py",
        f"{CREDIT}::test_two_vouchers_for_one_seq_are_never_signed_and_the_second_is_not_taken",
        ("    if fault is not None:\n        receipt =", "    if False:\n        receipt ="),
    ),
    at(
        "market/earning_channel.py",
        f"{CREDIT}::test_two_vouchers_for_one_seq_are_never_signed_and_the_second_is_not_taken",
        (
            "if not state.cumulative < cumulative <= _most(state, state.earned):",
            "if not state.cumulative < cumulative:",
        ),
    ),
    at(
        "node/selling.py",
        "unit/node/test_money_routing.py::test_a_channel_that_was_closed_at_nothing_never_opens_again",
        ('return channel.phase == "closed"', "return False"),
    ),
    at(
        "market/earning_channel.py",
        f"{PREPAYING}::test_vouchers_that_pay_ahead_by_a_little_more_each_time_are_taken_a_few_times_and_what_is_due_at_once",
        ("return state.advances >= SPARE_ADVANCES + 2 * len(state.terms)", "return False"),
    ),
    at(
        "market/earning_channel.py",
        f"{PREPAYING}::test_vouchers_that_no_deposit_covers_are_kept_a_few_times",
        ("return state.advances >= SPARE_ADVANCES + 2 * len(state.terms)", "return False"),
    ),
    at(
        "market/earning_channel.py",
        f"{CREDIT}::test_inflated_last_cumulative_at_resync_moves_nothing",
        (
            "if not state.cumulative < cumulative <= _most(state, state.earned):",
            "if not state.cumulative < cumulative:",
        ),
    ),
    at(
        "market/ledger_documents.py",
        f"{VERIFYING}::test_a_receipt_that_does_not_follow_is_named_even_if_it_was_vouched_for",
        ("if (receipt.seq, receipt.prev) != follows[:2] or", "if"),
    ),
    at(
        "market/receipt_proof.py",
        "unit/node/test_receipt_files.py::test_no_single_change_of_a_bundle_goes_unseen",
        (
            "    if not _signed_by(currency_of(bundle.currency).domain, signed, bundle.config.payer_signer):",
            "    if False:",
        ),
    ),
    at(
        "node/chain_nodes.py",
        "unit/node/test_transaction_pace.py::test_one_node_of_three_cannot_name_the_next_nonce",
        ("        return min(said)\n", "        return max(said)\n"),
    ),
    at(
        "node/head_exchange.py",
        f"{HEADS}::test_ever_new_heads_of_a_silent_peer_leave_one_question_waiting",
        ('replaces="consistency")', 'replaces=f"consistency {second}")'),
    ),
    at(
        "market/sale_metering.py",
        f"{EXPOSURE}::test_an_old_step_between_two_new_ones_makes_no_time_free",
        ("if is_new or state.redoing else state.seen_ms", "if True else state.seen_ms"),
    ),
    at(
        "market/sale_state.py",
        f"{EXPOSURE}::test_what_no_step_proved_before_a_lost_sandbox_counts_after_it",
        ("self.bid.max_unpaid - self.unpaid - self.unproved)", "self.bid.max_unpaid - self.unpaid)"),
    ),
    at(
        "market/sale_funding.py",
        f"{EXPOSURE}::test_pauses_for_want_of_money_give_nothing_away_to_a_run_that_proves_nothing",
        ("    unproved = state.unproved_at(at_ms)\n", "    unproved = 0\n"),
    ),
    at(
        "market/sale_state.py",
        f"{EXPOSURE}::test_a_run_that_never_reports_a_step_is_stopped_before_it_costs_more_than_may_be_unpaid",
        (
            "        left = max(0, self.bid.max_unpaid - self.unpaid",
            "        left = max(0, self.bid.max_total - self.unpaid",
        ),
    ),
)


def take_out(defence: Defence, tree: Path) -> dict[Path, str]:
    """Take a defence out of a tree; what its files held before."""
    changes = [(defence.file, old, new) for old, new in defence.changes] + list(defence.beside)
    before = {tree / file: (tree / file).read_text(encoding="utf-8") for file, _, _ in changes}
    after = dict(before)
    for file, old, new in changes:
        assert old in after[tree / file], f"{file} has no {old!r}"
        after[tree / file] = after[tree / file].replace(old, new)
    for path, text in after.items():
        path.write_text(text, encoding="utf-8")
    return before


def untried() -> list[str]:
    """The page's tests that nothing here makes fail."""
    named = {f"{path}::{name}" for path, name in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE.read_text())}
    tried = {defence.test for defence in DEFENCES}
    return sorted(name for name in named - tried if not name.startswith(CONTRACTS))


def run(tree: Path, *tests: str) -> "subprocess.CompletedProcess[str]":
    """Run tests in a tree, with the tree's own code."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    order = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    return subprocess.run(
        order, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def red_for(defence: Defence, tree: Path) -> str:
    """What the test says against the code without the defence; nothing where it stays green.

    The tree is as it was afterwards.
    """
    before = take_out(defence, tree)
    try:
        done = run(tree, defence.test)
    finally:
        for path, text in before.items():
            path.write_text(text, encoding="utf-8")
    if done.returncode != 1:
        return ""
    # In a test with tasks the error stands behind the lines of a tree.
    said = re.search(r"^[ |]*E +(?:[ |+-]*)(\S.*)$", done.stdout, re.MULTILINE)
    return said[1][:100] if said else "it fails"


def main() -> int:
    """Try all of them; 1 if a test stays green."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only defences whose file or test holds this")
    only = parser.parse_args().only
    chosen = [each for each in DEFENCES if only in each.file or only in each.test]
    green = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, symlinks=True, ignore=LEFT_BEHIND)
        (tree / "build").symlink_to(ROOT / "build")  # the local chain and the compiler, where they are
        sound = run(tree, *sorted({defence.test for defence in chosen}))
        assert sound.returncode == 0, f"with all defences in place these tests must pass:\n{sound.stdout[-2000:]}"
        for defence in chosen:
            words = red_for(defence, tree)
            green += [] if words else [defence]
            print(f"{'red' if words else 'STILL GREEN':<12} {defence.file}    {defence.test}    {words}", flush=True)
    print(f"{len(chosen)} defences taken out, {len(chosen) - len(green)} tests red")
    if not only:
        print("not tried here:")
        for name in untried():
            print(f"  {name}")
    return 1 if green else 0


if __name__ == "__main__":
    sys.exit(main())
