"""Take defences against the attacks of ``docs/attacks.md`` out, one after the other, and see their tests fail.

    make break-defences                 all of them: one run of pytest each
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
SOUND_LIMIT_S = 1_800
"""All of these tests together, with every defence in place."""
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
DISPUTED = "unit/node/test_disputed_time.py"
SETTLING = "integration/test_chain_settling.py"
BACKEND = "integration/test_evm_backend.py"
SENDING = "integration/test_evm_transactions.py"
PREPAYING = "unit/market/test_prepaying.py"
CREDIT = "unit/node/test_mutual_credit.py"
VERIFYING = "unit/node/test_ledger_verify.py"
HEADS = "unit/node/test_head_exchange.py"
CLOSING = "unit/market/test_closing.py"
PURCHASE = "unit/market/test_purchase.py"
SCORING = "unit/market/test_scoring.py"
MIRRORS = "unit/node/test_mirror_tasks.py"
BLOBS = "integration/test_blob_exchange.py"
STAGING = "unit/node/test_staging.py"
SECRETS = "integration/test_planted_secret.py"
PROOFS = "unit/node/test_proof_exchange.py"
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
        "node/chain/outside_account.py",
        CHANGED,
        ("if found[:-3] != wanted:", "if False:"),
        ("keccak256(unsigned)", "keccak256(DYNAMIC_FEE + rlp.encode(found[:-3]))"),
    ),
    at(
        "node/chain/outside_account.py",
        NOT_ITS_OWN,
        (" + v) != account:", " + v) == bytes(20):"),
    ),
    at("node/chain/cold_deposits.py", ANOTHERS_CHANNEL, ("if parties != (payer, signer, currency) or", "if")),
    at(
        "node/chain/cold_deposits.py",
        ANOTHERS_CHANNEL,
        ("if splits_hash(wanted.splits) != wanted.config.splits_hash:", "if False:"),
    ),
    at(
        "node/chain/chain_settling.py",
        NEVER_ITS_OWN,
        (
            "if isinstance(effect, FundingWanted) and is_paid_by_another(effect.config, self.backend.account):",
            "if False:",
        ),
        beside=(("node/chain/chain_funding.py", "if wanted.config.payer != backend.account:", "if False:"),),
    ),
    at(
        "node/chain/chain_settling.py",
        f"{COLD_WALLET}::test_a_deposit_that_comes_after_its_job_is_over_is_asked_back",
        ('if channel.phase == "closed" and is_paid_by_another(channel.config, self.backend.account):', "if False:"),
    ),
    at(
        "node/chain/chain_funding.py",
        KILLED,
        ("missing = wanted.amount - before", "missing = wanted.amount"),
    ),
    at(
        "node/chain/evm_transactions.py",
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
        "node/chain/evm_currency.py",
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
        "node/chain/evm_currency.py",
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
        "node/chain/claim_policy.py",
        f"{POLICY}::test_an_end_below_what_was_settled_is_not_waited_for",
        ("if is_agreed(channel) and newest.settled <= channel.earned:", "if is_agreed(channel):"),
    ),
    at(
        "node/chain/claim_policy.py",
        f"{POLICY}::test_no_more_is_claimed_than_was_earned_until_somebody_closes",
        ("channel.cumulative <= channel.earned else channel.safe", "True else channel.safe"),
    ),
    at(
        "node/chain/chain_settling.py",
        f"{SETTLING}::test_what_was_claimed_is_credited_though_the_buyer_has_vanished",
        ("if ends_alone(channel, standing, since_ms=since_ms, at_ms=at_ms):", "if False:"),
    ),
    at(
        "node/chain/chain_settling.py",
        f"{SETTLING}::test_a_close_is_answered_though_the_nodes_do_not_agree",
        ("            faults.append(fault)\n            return None\n", "            raise\n"),
    ),
    at(
        "node/chain/claim_policy.py",
        f"{POLICY}::test_a_close_that_either_view_shows_is_answered",
        ("CLOSING in (standing.final.phase, standing.newest.phase)", "CLOSING in (standing.newest.phase,)"),
    ),
    at(
        "node/chain/evm_backend.py",
        f"{BACKEND}::test_work_on_an_unconfirmed_deposit_is_seen_for_what_it_is",
        (
            "        if not final:\n            return await self._nodes.newest_call",
            "        if True:\n            return await self._nodes.newest_call",
        ),
    ),
    at(
        "node/chain/evm_events.py",
        f"{BACKEND}::test_a_reorged_deposit_is_taken_back_and_told_again",
        ("for place, happening in told.items() if place not in now]", "for place, happening in told.items() if False]"),
    ),
    at("node/chain/watchtower.py", OFFLINE, (CLOSING_AND_GOOD, "if False:")),
    at("node/chain/watchtower.py", OFFLINE, ("best = max(good", "best = min(good")),
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
        ("elif receipt.seq != seq or receipt.prev != receipt_digest(last.receipt):", "elif False:"),
    ),
    at(
        "market/receipt_disputes.py",
        f"{DISPUTED}::test_a_provider_signs_no_line_that_is_more_than_its_own_or_less_than_was_vouched_for",
        ("        if not (same and fits and priced and falls):", "        if False:"),
        ("        if back:", "        if False:"),
    ),
    at(
        "market/receipts.py",
        f"{DISPUTED}::test_a_receipt_that_was_passed_over_is_never_paid_however_much_time_passes",
        ("seq = max(passed_over, 0 if last is None else last.receipt.seq) + 1", "seq = receipt.seq"),
    ),
    at(
        "market/equivocation.py",
        f"{HEADS}::test_forked_receipt_chain_is_proven_by_two_receipts_of_one_number",
        ("if first.seq != second.seq or receipt_digest(first) == receipt_digest(second):", "if True:"),
    ),
    at(
        "market/receipts.py",
        f"{RECEIPTS}::test_inflated_device_ms",
        ("if line.device_ms > device_ms(line.end_ms - line.start_ms, agreed.width_milli):", "if False:"),
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
        f"{RECEIPTS}::test_clock_skew_that_is_charged_for",
        ("return AHEAD_OF_TIME if early else fault", "return fault"),
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
        "node/engine/mutual_credit.py",
        f"{CREDIT}::test_the_longest_line_there_is_and_a_payment_leave_a_state_that_can_be_written_and_read",
        ("most = min(mutual.LARGEST, most)", "most = most"),
        beside=(
            (
                "node/engine/buying_turns.py",
                "return min(mutual.LARGEST, channel.metered + left)",
                "return channel.metered + left",
            ),
        ),
    ),
    at(
        "node/engine/mutual_credit.py",
        f"{CREDIT}::test_what_is_paid_ahead_makes_no_room_for_more_credit",
        ("channel.earned + left, at_ms)", "channel.cumulative + left, at_ms)"),
    ),
    at(
        "node/messaging/courier.py",
        f"{RECEIPTS}::test_a_flood_of_credit_lines_does_not_swell_the_ledger_that_keeps_them_all",
        ("and not self._debts.admits(sender, self._now_ms()):", "and False:"),
    ),
    at(
        "node/messaging/courier.py",
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
        "node/chain/chain_nodes.py",
        f"{BACKEND}::test_a_lying_rpc_node_is_found_out_by_one_that_does_not",
        ("if (said and noes) or any(value != values[0] for value in values):", "if False:"),
    ),
    at(
        "node/chain/evm_transactions.py",
        f"{SENDING}::test_stuck_gas_is_outbid_with_the_same_nonce",
        ("if self._now_ms() - waits_since_ms >= self._stuck_ms:", "if False:"),
    ),
    at(
        "node/chain/evm_transactions.py",
        f"{SENDING}::test_nonce_races_between_two_programs_are_noticed_and_survived",
        ("            self.store.forget(intention.number)\n", ""),
    ),
    at(
        "node/chain/external_signer.py",
        "integration/test_external_signer.py::test_what_is_not_the_accounts_signature_over_this_is_not_taken",
        ("if recover(to_sign.digest, signature) != account:", "if False:"),
    ),
    at(
        "node/messaging/courier.py",
        f"{RECEIPTS}::test_signature_floods_about_nothing_are_answered_before_any_recover",
        ("if not self._matters(sender, message):", "if False:"),
    ),
    at(
        "node/messaging/directory.py",
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
        "node/ledger/head_exchange.py",
        f"{HEADS}::test_split_view_of_the_log_is_proven_when_those_who_were_shown_it_meet",
        ("        if not own:\n            self._hear_head(head)", "        if not own:\n            pass"),
    ),
    at(
        "node/ledger/head_exchange.py",
        f"{HEADS}::test_sizes_that_no_ledger_reaches_are_dropped_and_counted",
        ("        if size > LARGEST_KEPT_SIZE:", "        if False:"),
    ),
    at(
        "node/chain/evm_store.py",
        f"{SENDING}::test_two_processes_cannot_have_one_file",
        ('"locking_mode=EXCLUSIVE"', '"locking_mode=NORMAL"'),
    ),
    at(
        "market/paying_channel.py",
        f"{CREDIT}::test_two_vouchers_for_one_seq_are_never_signed_and_the_second_is_not_taken",
        ("    if fault is not None:\n        return _refuse", "    if False:\n        return _refuse"),
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
        "node/engine/selling.py",
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
        ("if receipt.seq <= (last.seq if last else 0) or receipt.prev != prev or", "if"),
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
        "node/chain/chain_nodes.py",
        "unit/node/test_transaction_pace.py::test_one_node_of_three_cannot_name_the_next_nonce",
        ("        return min(said)\n", "        return max(said)\n"),
    ),
    at(
        "node/ledger/head_exchange.py",
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
    at(
        "market/closing.py",
        f"{CLOSING}::test_bids_that_are_alike_are_not_waited_upon_for_long",
        (
            "max(sum(dearest - ends[gap] for gap in range(shards)), shards * dearest // LEAST_APART)",
            "sum(dearest - ends[gap] for gap in range(shards))",
        ),
    ),
    at(
        "market/closing.py",
        f"{CLOSING}::test_half_of_those_invited_are_heard_first",
        (" or 2 * answered < invited:", ":"),
    ),
    at(
        "market/affordable.py",
        f"{CLOSING}::test_one_device_that_is_offered_twice_is_one_bid",
        ("return all(sold[device] + milli <= WHOLE_MILLI for device, milli in parts.items())", "return True"),
    ),
    at(
        "market/affordable.py",
        f"{PURCHASE}::test_one_device_is_not_bought_twice",
        ("return all(sold[device] + milli <= WHOLE_MILLI for device, milli in parts.items())", "return True"),
    ),
    at(
        "market/purchase.py",
        f"{PURCHASE}::test_a_winner_that_does_not_confirm_is_replaced_and_told_so",
        (
            "    step = fill(state, at_ms)\n    return Step(state=step.state, effects=(*cancels",
            "    step = Step(state=state)\n    return Step(state=step.state, effects=(*cancels",
        ),
    ),
    at(
        "node/engine/buying_turns.py",
        "unit/node/test_routing.py::test_who_wins_and_does_not_come_is_remembered_for_it_once",
        (
            "    for provider in sorted(after.deserters - bought.deserters if after is not None else ()):",
            "    for provider in ():",
        ),
    ),
    at(
        "market/track_record.py",
        f"{SCORING}::test_a_model_that_is_only_said_to_be_fast_is_believed_until_it_was_measured",
        ("    if own:\n", "    if False:\n"),
    ),
    at(
        "market/scoring.py",
        f"{SCORING}::test_a_stated_benchmark_counts_within_bounds_and_silence_is_never_better",
        ("max(min(figure, most[key]) * PPM // usual, PPM // MOST_BELIEVED)", "figure * PPM // usual"),
    ),
    at(
        "market/scoring.py",
        f"{SCORING}::test_a_stated_benchmark_counts_within_bounds_and_silence_is_never_better",
        ("    slowest = max(min(speed for speed, _ in found.values()), PPM // MOST_BELIEVED)", "    slowest = 2 * PPM"),
    ),
    at(
        "market/track_record.py",
        "unit/market/test_track_record.py::test_no_single_provider_of_three_moves_what_is_known_of_a_model",
        ("lower_median(list(by_provider.values()))", "max(by_provider.values())"),
    ),
    at(
        "market/want_of_credit.py",
        "unit/market/test_want_of_credit.py"
        "::test_a_newer_line_is_no_fault_only_if_it_was_signed_after_the_lease_could_have_ended",
        ("if line is not None and said.nonce < line.nonce and", "if False and"),
    ),
    at(
        "market/want_of_credit.py",
        f"{CREDIT}::test_a_lower_line_that_came_before_the_end_is_no_better_excuse",
        ("relied_on(known, said, since_ms=awarded_ms)", "relied_on(Mutual(), said, since_ms=awarded_ms)"),
    ),
    at(
        "node/engine/buying.py",
        "unit/node/test_money_routing.py::test_a_provider_that_says_unfunded_of_a_channel_that_can_pay_has_lost_the_shard",
        ('return "refused" if why else end.kind', "return end.kind"),
    ),
    at(
        "market/earning_channel.py",
        "unit/node/test_money_routing.py"
        "::test_awards_that_are_called_off_leave_no_channel_behind_and_the_end_is_told_when_asked",
        ("    if state.live or moved:\n", "    if True:\n"),
    ),
    at(
        "node/engine/journal.py",
        "unit/node/test_journal.py::test_a_state_that_could_not_be_read_back_is_not_written",
        (
            'decode(body, Snapshot, limit_bytes=MAX_SNAPSHOT_BYTES) == value, "a state',
            'body, "a state',
        ),
    ),
    at(
        "market/holding.py",
        "unit/node/test_held_time.py::test_who_never_awards_cannot_hold_the_devices_without_end",
        ("own_ms = _until(had, BUYER_BURST_MS * owned + paid_ms, owned, BUYER_SHARE)", "own_ms = 0"),
        ("return own_ms, _until(pool, STRANGERS_BURST_MS * owned, owned, STRANGERS_SHARE)", "return own_ms, 0"),
    ),
    at(
        "market/holding.py",
        "unit/node/test_held_time.py::test_ever_new_accounts_together_leave_a_share_of_the_time",
        ("return own_ms, _until(pool, STRANGERS_BURST_MS * owned, owned, STRANGERS_SHARE)", "return own_ms, 0"),
    ),
    at(
        "node/daemon/checkpoint_check.py",
        "unit/node/test_checkpoint_check.py::test_an_array_where_a_number_belongs_is_refused_and_ends_nothing",
        ("any(type(number) is not int for number in said) or said", "said"),
        ("    except Exception as fault:", "    except KeyError as fault:"),
    ),
    at(
        "node/daemon/reduce.py",
        "unit/node/test_reduce.py::test_a_state_that_cannot_be_written_again_is_a_rejection_and_no_fault",
        ("    except ProtocolError as error:\n        # Names", "    except KeyError as error:\n        # Names"),
    ),
    at(
        "node/storage/blob_shelf.py",
        "unit/node/test_blobs.py::test_what_was_broken_off_makes_room_for_others_the_oldest_first_unless_it_is_pinned",
        ("        idle = self._idle_parts()\n", "        idle = []\n"),
    ),
    at(
        "node/daemon/mirror_tasks.py",
        f"{MIRRORS}::test_a_checkpoint_that_its_provider_replaced_gives_its_room_back",
        ("await trio.to_thread.run_sync(daemon.store.discard_part, blob)", "await trio.lowlevel.checkpoint()"),
    ),
    at(
        "node/daemon/mirror_tasks.py",
        f"{MIRRORS}::test_a_copy_that_is_replaced_gives_its_room_back_and_one_is_fetched_at_a_time",
        ("    if turn is not None:\n", "    if False:\n"),
    ),
    at(
        "node/daemon/mirror_tasks.py",
        f"{MIRRORS}::test_bytes_that_another_fetch_brings_are_no_proof_that_this_buyer_had_them",
        ("if shown and sources == buyer:", "if sources == buyer:"),
    ),
    at(
        "node/daemon/mirror_tasks.py",
        f"{MIRRORS}::test_a_copy_comes_from_who_made_it_and_its_buyer_shows_a_part_of_it",
        ("if shown and sources == buyer:", "if shown:"),
    ),
    at(
        "node/daemon/mirror_tasks.py",
        f"{MIRRORS}::test_another_buyer_here_is_not_asked_for_a_copy",
        ("() if is_buyer_here(daemon.state, order.holder) else (order.holder,)", "(order.holder,)"),
    ),
    at(
        "node/daemon/bringing.py",
        f"{STAGING}::test_of_what_another_buyer_named_here_the_buyer_alone_is_asked",
        ("blob in fetching.foreign", "blob in ()"),
    ),
    at(
        "node/daemon/bringing.py",
        f"{STAGING}::test_the_chunk_that_a_buyer_must_show_is_drawn_once",
        ('int.from_bytes(drawn, "big") % count', "secrets.randbelow(count)"),
    ),
    at(
        "node/engine/mirroring.py",
        "unit/node/test_mirroring.py::test_a_copy_without_bytes_is_no_copy_and_names_no_sources",
        ("if not 0 < weight <=", "if not 0 <= weight <="),
    ),
    at(
        "node/storage/blob_exchange.py",
        f"{BLOBS}::test_a_full_disk_is_a_fetch_that_failed_for_everybody_who_waits",
        (
            "        except OSError as fault:\n            raise DiskFailed",
            "        except KeyError as fault:\n            raise DiskFailed",
        ),
    ),
    at(
        "node/storage/blob_exchange.py",
        f"{BLOBS}::test_the_name_of_an_empty_blob_that_is_none_harms_no_innocent_source",
        ("        if not wanted:\n            # There is nothing", "        if False:\n            # There is nothing"),
    ),
    at(
        "node/chain/secrecy.py",
        f"{SECRETS}::test_secrets_in_logs_argv_crash_dumps_of_a_daemon",
        ("    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n", ""),
    ),
    at(
        "proto/signing.py",
        f"{SECRETS}::test_a_crash_with_an_open_key_leaves_no_dump_and_shows_no_secret",
        (
            'raise ValueError("a digest is exactly 32 bytes")',
            'raise ValueError(f"not to be signed with {self.secret()!r}")',
        ),
    ),
    at(
        "node/chain/keystore.py",
        f"{SECRETS}::test_secrets_in_logs_argv_crash_dumps_of_a_wallet",
        ("kdf=kdf, iterations=iterations))", 'kdf=kdf, iterations=iterations) | {"key": secret.hex()})'),
    ),
    at(
        "market/sale.py",
        "unit/node/test_firm_lease_ends.py::test_a_penalty_that_is_lifted_after_a_refusal_is_written_off_and_stops_nobody",
        (
            '("settling", "settled", "stopped", "unpaid")),\n        ("delivering"',
            '("settling", "settled", "stopped")),\n        ("delivering"',
        ),
    ),
    at(
        "market/sale.py",
        "simulation/test_strategies.py::test_whoever_plays_nothing_is_sold_twice_no_one_overpays_and_everything_ends",
        ("            return state.bid.expires_ms\n", "            return None\n"),
        ("            return state.award.start_by_ms\n", "            return None\n"),
    ),
    at(
        "node/engine/journal.py",
        "unit/node/test_journal.py::test_a_second_daemon_on_the_same_file_is_refused",
        ("PRAGMA locking_mode=EXCLUSIVE", "PRAGMA locking_mode=NORMAL"),
    ),
    at(
        "node/chain/watchtower.py",
        "e2e/test_demo_on_chain.py::test_close_while_the_provider_is_offline_a_watchtower_claims_what_it_was_given",
        (CLOSING_AND_GOOD, "if False:"),
    ),
    at(
        "node/ledger/proof_exchange.py",
        f"{PROOFS}::test_what_proves_nothing_is_its_bringers_fault_and_is_neither_kept_nor_handed_on",
        (
            "        liar = accused(proof)\n        if liar ==",
            "        liar = proof.first.document.log_id[12:]\n        if liar ==",
        ),
    ),
    at(
        "node/ledger/proof_exchange.py",
        f"{PROOFS}::test_one_bringer_is_heard_so_often_and_another_all_the_same",
        ("if not self._heard.admits(sender, self._now_ms()):", "if False:"),
    ),
    at(
        "node/ledger/proof_exchange.py",
        f"{PROOFS}::test_of_ever_new_liars_few_go_on_and_what_is_found_here_goes_on_all_the_same",
        ('        if not rate.admits(b"", self._now_ms()):', "        if False:"),
    ),
    at(
        "node/ledger/proof_exchange.py",
        f"{PROOFS}::test_liars_of_whom_nobody_here_ever_heard_take_no_room_from_others",
        ("kept < (MOST_KEPT if known else MOST_OF_STRANGERS)", "kept < MOST_KEPT"),
    ),
    at(
        "node/ledger/head_exchange.py",
        "e2e/test_hostile_provider.py::test_one_that_signs_two_receipts_is_refused_by_nodes_that_it_never_dealt_with",
        ("            self._hand_on(proof)\n", ""),
        beside=(
            (
                "node/ledger/proof_exchange.py",
                "for liar, proof in self._heads.newest_proofs(MOST_SHOWN, MOST_BYTES, hidden=hidden, first=first):",
                "for liar, proof in ():",
            ),
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


def run(tree: Path, *tests: str, limit_s: int = LIMIT_S) -> "subprocess.CompletedProcess[str]":
    """Run tests in a tree, with the tree's own code."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    order = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    return subprocess.run(
        order, cwd=tree, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
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
        sound = run(tree, *sorted({defence.test for defence in chosen}), limit_s=SOUND_LIMIT_S)
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
