"""What a node makes of others' dealings: whom it invites, bids for, blocks; and what it shows of its own."""

import json
from dataclasses import replace

import pytest
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, JOB, OTHER, OTHER_KEY, PROVIDER, PROVIDER_KEY, THIRD, THIRD_KEY, spec

from hansa.market.reputation import BUYER as AS_BUYER
from hansa.market.reputation import PRIOR, Heard, newest, read_dealing
from hansa.market.reputation import PROVIDER as AS_PROVIDER
from hansa.market.track_record import Record
from hansa.node.api.http_reputation import standing_view
from hansa.node.commands.reputation_check import check_file
from hansa.node.daemon.buyer_tasks import unwelcome
from hansa.node.engine import events
from hansa.node.engine.standings import MOST_HEARD, known_dealings, own_dealings, percent, records_for, standing_of
from hansa.node.engine.state import restored, snapshot
from hansa.node.faults import OperatorError
from hansa.node.messaging.histories import checked, shown_about, shown_dealing
from hansa.proto import messages
from hansa.proto.codec import decode, encode
from hansa.proto.history import HistorySent
from hansa.scheduler import run
from hansa.scheduler.job_events import TenderWanted

ONE = spec(shards=1)


def traded(*, vouchers: bool = True, of_provider: bytes = PROVIDER, **rules):
    """A buyer and two providers; the buyer ran one job at one of them for 2,100 units, or 1,000 that it never paid."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=2, **rules)
    made.add(OTHER_KEY, devices=2)
    deal(made, BUYER, of_provider, vouchers=vouchers)
    return made


def deal(made, buyer, provider, *, job=JOB, vouchers=True):
    known = set(made.engines[provider].state.sale_of)
    made.submit(buyer, of=ONE, job=job)
    made.tender(buyer, (provider,), shards=(0,), job=job, nonce=job)
    (lease,) = set(made.engines[provider].state.sale_of) - known
    made.take(provider, run.RunStarted(run=lease, at_ms=made.now_ms))
    if not vouchers:
        made.lost = lambda _to, message: isinstance(message, messages.VoucherSent | messages.ReceiptRefused)
    for number in (1, 2):
        made.now_ms += 1_000
        made.take(provider, run.RunProgressed(run=lease, step=number, metrics=(), at_ms=made.now_ms))
    made.now_ms += 100
    made.take(provider, run.RunFinished(run=lease, at_ms=made.now_ms))


def state_of(made, account):
    return made.engines[account].state


def figure(made, viewer, subject, role, **changes):
    return standing_of(state_of(made, viewer), subject, role, currency="USD", at_ms=made.now_ms, **changes)


def test_both_sides_know_from_their_own_channels_what_they_had():
    made = traded()
    assert figure(made, BUYER, PROVIDER, AS_PROVIDER).good == 2_100
    assert figure(made, PROVIDER, BUYER, AS_BUYER).good == 2_100
    assert figure(made, BUYER, OTHER, AS_PROVIDER).good == 0


@pytest.mark.parametrize("vouchers", [True, False])
def test_what_a_node_shows_says_to_a_stranger_exactly_what_it_knows_itself(vouchers):
    made = traded(vouchers=vouchers)
    for account, key in ((BUYER, BUYER_KEY), (PROVIDER, PROVIDER_KEY)):
        shown = shown_about(state_of(made, account), account, key)
        assert newest(read_dealing(each) for each in shown) == newest(own_dealings(state_of(made, account)))
        assert all(decode(encode(each), type(each), limit_bytes=1 << 16) == each for each in shown)


def test_only_dealings_with_the_account_in_question_are_shown():
    made = traded()
    deal(made, BUYER, OTHER, job=b"k" * 32)
    buyer = state_of(made, BUYER)
    assert len(shown_about(buyer, BUYER, BUYER_KEY)) == 2
    (shown,) = shown_about(buyer, OTHER, BUYER_KEY)
    assert shown.config.payee == OTHER
    assert checked([shown], PROVIDER) == ()


def heard_by(made, listener, teller, teller_key, about):
    """A teller shows what it had with somebody, as bytes that were checked."""
    heard = checked(shown_about(state_of(made, teller), about, teller_key), about)
    made.take(listener, events.DealingsHeard(heard=heard, at_ms=made.now_ms))


def test_what_somebody_tells_whom_this_node_dealt_with_counts_by_half():
    made = traded()
    deal(made, BUYER, OTHER, job=b"k" * 32)
    heard_by(made, PROVIDER, BUYER, BUYER_KEY, OTHER)
    # Values fade from the first moment on.
    assert 1_045 <= figure(made, PROVIDER, OTHER, AS_PROVIDER).good <= 1_050


def test_what_strangers_tell_is_not_even_kept():
    made = traded(of_provider=OTHER)
    heard_by(made, PROVIDER, BUYER, BUYER_KEY, OTHER)
    assert state_of(made, PROVIDER).heard == {}


def test_an_older_word_on_a_channel_does_not_replace_a_newer_one():
    made = traded()
    deal(made, BUYER, OTHER, job=b"k" * 32)
    heard_by(made, PROVIDER, BUYER, BUYER_KEY, OTHER)
    ((key, newer),) = state_of(made, PROVIDER).heard.items()
    older = replace(newer, dealt=replace(newer.dealt, value=1))
    made.take(PROVIDER, events.DealingsHeard(heard=(older,), at_ms=made.now_ms))
    assert state_of(made, PROVIDER).heard == {key: newer}


def test_who_is_proven_to_have_contradicted_itself_is_worth_nothing_and_blocked():
    made = traded()
    proven = events.EquivocationProven(account=PROVIDER, words="two receipts of one number", at_ms=made.now_ms)
    made.take(BUYER, proven)
    found = figure(made, BUYER, PROVIDER, AS_PROVIDER)
    assert (found.ppm, found.proven_false) == (0, True)
    assert PROVIDER in state_of(made, BUYER).blocked


def test_who_is_blocked_is_not_invited():
    made = traded()
    made.take(BUYER, events.AccountBlocked(account=PROVIDER, reason="", at_ms=made.now_ms))
    wanted = TenderWanted(job=JOB, shards=(0,), attempt=1, at_ms=made.now_ms)
    assert unwelcome(state_of(made, BUYER), wanted) == {PROVIDER}


def test_what_was_heard_outlives_the_daemon_and_is_bounded():
    made = traded()
    deal(made, BUYER, OTHER, job=b"k" * 32)
    heard_by(made, PROVIDER, BUYER, BUYER_KEY, OTHER)
    state = state_of(made, PROVIDER)
    assert state.heard
    assert restored(snapshot(state)).heard == state.heard
    assert made.restart(PROVIDER, devices=2).state.heard == state.heard
    (one,) = state.heard.values()
    many = tuple(
        Heard(
            dealing=one.dealing,
            dealt=replace(one.dealt, channel_id=number.to_bytes(32, "big"), value=number),
        )
        for number in range(1, MOST_HEARD + 6)
    )
    made.take(PROVIDER, events.DealingsHeard(heard=many, at_ms=made.now_ms))
    kept = made.engines[PROVIDER].state.heard
    assert len(kept) == MOST_HEARD
    assert min(each.dealt.value for each in kept.values()) == 7


def test_who_dealt_here_for_a_little_cannot_push_out_what_others_told():
    made = traded()
    made.add(THIRD_KEY)
    deal(made, BUYER, OTHER, job=b"k" * 32)
    heard_by(made, PROVIDER, BUYER, BUYER_KEY, OTHER)
    ((honest, one),) = state_of(made, PROVIDER).heard.items()
    crumb = replace(next(iter(own_dealings(state_of(made, PROVIDER)))), channel_id=b"c" * 32, buyer=THIRD, value=1)
    shown = [Heard(dealing=one.dealing, dealt=crumb)]
    for number in range(MOST_HEARD + 5):
        dealt = replace(one.dealt, channel_id=number.to_bytes(32, "big"), buyer=THIRD, provider=b"x" * 20)
        shown.append(Heard(dealing=one.dealing, dealt=replace(dealt, value=PRIOR * 1_000)))
    # The accomplice really dealt here, for one unit.
    channel = next(iter(state_of(made, PROVIDER).earning.ended.values()))
    cheap = replace(channel, channel_id=b"e" * 32, config=replace(channel.config, payer_signer=THIRD))
    receipt = replace(channel.vouched.receipt, amount_total=1)
    cheap = replace(cheap, vouched=replace(channel.vouched, receipt=receipt))
    state_of(made, PROVIDER).earning[b"e" * 32] = cheap
    made.take(PROVIDER, events.DealingsHeard(heard=tuple(shown), at_ms=made.now_ms))
    assert len(state_of(made, PROVIDER).heard) == MOST_HEARD
    assert honest in state_of(made, PROVIDER).heard


def test_a_good_word_makes_a_newcomer_likelier_to_win_and_our_own_experience_weighs_more():
    assert Record(told_ppm=1_000_000).reliability_ppm > Record().reliability_ppm
    assert Record(told_ppm=1_000_000).reliability_ppm == Record(good=4).reliability_ppm
    assert Record(told_ppm=1_000_000, bad=6).reliability_ppm < Record().reliability_ppm
    made = traded()
    found = records_for(state_of(made, BUYER), (PROVIDER, OTHER), currency="USD", at_ms=made.now_ms)
    assert found == {PROVIDER: Record(good=1, told_ppm=1_000_000 * 2_100 // (2_100 + PRIOR))}


def declines(made):
    return [message.decline.document for message in made.heard(messages.DeclineSent)]


def test_a_blocked_buyer_is_declined_at_once_and_is_not_told_why():
    made = traded()
    made.take(PROVIDER, events.AccountBlocked(account=BUYER, reason="never again", at_ms=made.now_ms))
    made.submit(BUYER, of=ONE, job=b"k" * 32)
    made.tender(BUYER, (PROVIDER,), shards=(0,), job=b"k" * 32, nonce=b"k" * 32)
    (decline,) = declines(made)
    assert decline.reason == "this provider does not deal with you"
    assert made.restart(PROVIDER, devices=2).state.blocked == {BUYER: "never again"}
    made.take(PROVIDER, events.AccountUnblocked(account=BUYER, at_ms=made.now_ms))
    made.submit(BUYER, of=ONE, job=b"l" * 32)
    made.tender(BUYER, (PROVIDER,), shards=(0,), job=b"l" * 32, nonce=b"l" * 32)
    assert len(declines(made)) == 1


def test_a_provider_may_want_buyers_to_be_known():
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=2, min_buyer_ppm=1_000)
    made.submit(BUYER, of=ONE)
    made.tender(BUYER, (PROVIDER,), shards=(0,))
    (decline,) = declines(made)
    assert decline.reason == (
        "buyers need a reputation of 0.1 % here, and yours is 0.0 % as far as this provider knows"
    )
    # Somebody with whom this provider deals has dealt with the buyer.
    made.add(OTHER_KEY, devices=2)
    made.add(THIRD_KEY)
    deal(made, BUYER, OTHER, job=b"k" * 32)
    made.engines[PROVIDER].state.terms = replace(made.engines[PROVIDER].state.terms, min_buyer_ppm=0)
    made.engines[PROVIDER].state.at_ms = made.now_ms
    deal(made, OTHER, PROVIDER, job=b"l" * 32)
    made.engines[PROVIDER].state.terms = replace(made.engines[PROVIDER].state.terms, min_buyer_ppm=1_000)
    heard_by(made, PROVIDER, OTHER, OTHER_KEY, BUYER)
    assert figure(made, PROVIDER, BUYER, AS_BUYER).ppm >= 1_000
    made.submit(BUYER, of=ONE, job=b"m" * 32)
    made.tender(BUYER, (PROVIDER,), shards=(0,), job=b"m" * 32, nonce=b"m" * 32)
    assert len(declines(made)) == 1


def test_what_is_known_is_worked_out_once_for_many_questions():
    made = traded()
    known = known_dealings(state_of(made, BUYER))
    assert figure(made, BUYER, PROVIDER, AS_PROVIDER, dealings=known) == figure(made, BUYER, PROVIDER, AS_PROVIDER)
    assert figure(made, BUYER, THIRD, AS_PROVIDER, dealings=known).ppm == 0


def test_percent_never_looks_better_than_it_is():
    assert [percent(ppm) for ppm in (0, 999, 1_000, 555_999, 1_000_000)] == [
        "0.0 %",
        "0.0 %",
        "0.1 %",
        "55.5 %",
        "100.0 %",
    ]


# The figure as a file, which anybody works out again.


def written(made, tmp_path, viewer, viewer_key, subject, **changes):
    state = state_of(made, viewer)
    documents = {
        each_id: encode(HistorySent(dealings=(dealing,))).hex()
        for each_id in known_dealings(state)
        if (dealing := shown_dealing(state, each_id, viewer_key) or state.heard[each_id].dealing)
    }
    found = figure(made, viewer, subject, AS_PROVIDER)
    view = standing_view(found, viewer=viewer, currency="USD", at_ms=made.now_ms, documents=documents)
    file = tmp_path / "figure.json"
    file.write_text(json.dumps({"figures": [view | changes], "blocked": None}))
    return file


def test_a_figure_is_worked_out_again_from_its_signatures_alone(tmp_path):
    made = traded()
    deal(made, BUYER, OTHER, job=b"k" * 32)
    heard_by(made, PROVIDER, BUYER, BUYER_KEY, OTHER)
    ((role, holds, what),) = check_file(written(made, tmp_path, PROVIDER, PROVIDER_KEY, OTHER))
    assert (role, holds) == ("provider", True)
    assert "from 2 channels" in what


@pytest.mark.parametrize("changes", [{"ppm": 999_999}, {"good": "9.000000"}, {"proven_false": True}, {"documents": []}])
def test_a_figure_that_does_not_follow_from_its_documents_is_false(tmp_path, changes):
    made = traded()
    ((_, holds, _),) = check_file(written(made, tmp_path, BUYER, BUYER_KEY, PROVIDER, **changes))
    assert not holds


def test_a_document_that_was_changed_is_named(tmp_path):
    made = traded()
    file = written(made, tmp_path, BUYER, BUYER_KEY, PROVIDER)
    view = json.loads(file.read_text())
    (text,) = view["figures"][0]["documents"]
    amount = (2_100).to_bytes(2, "big").hex()
    assert text.count(amount) >= 2
    view["figures"][0]["documents"] = [text.replace(amount, (9_999).to_bytes(2, "big").hex())]
    file.write_text(json.dumps(view))
    ((_, holds, what),) = check_file(file)
    assert not holds
    assert "not what was signed" in what


@pytest.mark.parametrize("content", ["", "[]", '{"figures": 3}', '{"figures": [{}]}', "\x00", '{"figures": [[1]]}'])
def test_a_file_without_figures_is_told_as_that(tmp_path, content):
    file = tmp_path / "figure.json"
    file.write_text(content)
    with pytest.raises(OperatorError):
        check_file(file)
    with pytest.raises(OperatorError):
        check_file(tmp_path / "none")
