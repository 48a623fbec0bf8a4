"""The account whose money pays may be colder than the one that trades: its key is nowhere on the machine."""

from dataclasses import replace
from pathlib import Path

import pytest
from kit.filed_ledger import ledger_file, records
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, JOB, PROVIDER, PROVIDER_KEY, THIRD, THIRD_KEY, spec

from hansa.market.funding import ChannelSettled, FundingWanted, FundsKnown
from hansa.market.ledger_check import check_ledger
from hansa.market.pricing import ITSELF
from hansa.market.sale_award import objection_to
from hansa.market.sale_events import AwardArrived
from hansa.market.settlement import CHALLENGE_PERIOD_S
from hansa.node.api.statements import known_of, statement_view
from hansa.node.chain.cold_deposits import WantedDeposit, read_deposit, wanted_deposits
from hansa.node.commands.first_setup import Wishes, config_text
from hansa.node.engine.events import Started
from hansa.node.engine.standings import own_dealings
from hansa.node.engine.state import restored, snapshot
from hansa.node.faults import ConfigError
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.node.settings.config import FILE_NAME, parse_config
from hansa.proto.codec import decode, encode
from hansa.proto.currency import currency_of, escrow_currency
from hansa.proto.documents import channel_id
from hansa.proto.errors import Malformed
from hansa.proto.signing import checksum_address
from hansa.proto.splits import Split, splits_hash
from hansa.proto.typed_json import to_plain
from hansa.scheduler import run

CHAIN = escrow_currency(31_337, b"\xee" * 20, b"\x70" * 20)
PLENTY = 600_001


def market(*, payer=THIRD, currency=CHAIN):
    made = SmallMarket()
    made.add(BUYER_KEY, currency=currency, payer=payer)
    made.add(PROVIDER_KEY, devices=1, currency=currency)
    made.submit(BUYER, of=spec(shards=1, currency=currency))
    made.tender(BUYER, (PROVIDER,), shards=(0,), currency=currency)
    return made


def paying_on(made):
    return next(iter(made.engines[BUYER].state.paying.all()))[1]


def worked(made):
    """The lease is funded, runs for three seconds and ends well."""
    key = paying_on(made).channel_id
    for account in (BUYER, PROVIDER):
        made.take(account, FundsKnown(channel_id=key, most=PLENTY, at_ms=made.now_ms))
    (lease,) = made.engines[PROVIDER].state.sale_of
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    made.now_ms += 2_000
    made.take(PROVIDER, run.RunProgressed(run=lease, step=1, metrics=(), at_ms=made.now_ms))
    return lease


def ended(made, lease):
    made.now_ms += 1_000
    made.take(PROVIDER, run.RunFinished(run=lease, at_ms=made.now_ms))
    paid = paying_on(made).cumulative
    for account in (BUYER, PROVIDER):
        made.take(account, ChannelSettled(channel_id=paying_on(made).channel_id, paid=paid, at_ms=made.now_ms))
    return paid


def test_the_named_account_pays_and_the_trading_one_signs(tmp_path):
    made = market()
    (wanted,) = [effect for of, effect in made.effects if of == BUYER and isinstance(effect, FundingWanted)]
    paid = ended(made, worked(made))
    ((_, earning),) = made.engines[PROVIDER].state.earning.all()
    for config in (paying_on(made).config, earning.config, wanted.config):
        assert (config.payer, config.payer_signer, config.payee) == (THIRD, BUYER, PROVIDER)
    assert (paying_on(made).phase, earning.phase) == ("closed", "closed")
    assert paid > 0
    books = made.engines[PROVIDER].state.ledger
    assert books.balance(f"settled:{THIRD.hex()}") == paid
    assert books.balance(f"due:{THIRD.hex()}") == 0
    assert -made.engines[BUYER].state.ledger.balance(f"paid:{PROVIDER.hex()}") == paid
    for key in (BUYER_KEY, PROVIDER_KEY):
        file = ledger_file(tmp_path / f"{key.address.hex()}.sqlite", key, records(made, key))
        store = LedgerStore(file, read_only=True)
        report = check_ledger(store.rows(), heads=store.heads(), nodes=store.nodes())
        store.close()
        assert report.holds, report.first_fault
    assert THIRD_KEY.address not in made.keys


def test_reputation_is_the_trading_accounts_and_statements_have_one_row_for_the_buyer():
    made = market()
    lease = worked(made)
    sold = made.engines[PROVIDER].state
    (dealt,) = own_dealings(sold)
    assert (dealt.buyer, dealt.provider) == (BUYER, PROVIDER)
    # More is metered than was vouched for: the books know one part, the sale the other.
    made.lost = lambda to, _message: to == BUYER
    made.now_ms += 2_000
    made.take(PROVIDER, run.RunProgressed(run=lease, step=2, metrics=(), at_ms=made.now_ms))
    entries = [post.entry for of, post in made.booked if of == PROVIDER and hasattr(post, "entry")]
    (row,) = statement_view(entries, known_of(sold, CHAIN, "earnings"), side="earnings", by="peer")["rows"]
    assert row["peer"] == checksum_address(THIRD)
    assert (row["vouched"], row["unvouched"]) == ("0.002000", "0.002000")


def test_on_the_ledger_nobody_runs_up_anothers_debts():
    """Neither by this node's settings, which are refused before, nor by a stranger's award."""
    made = market(currency="USD")
    assert paying_on(made).config.payer == BUYER
    ((_, sale),) = made.engines[PROVIDER].state.sales.all()
    for currency, why in (("USD", "only one on a chain may be"), (CHAIN, "")):
        named = currency_of(currency)
        config = replace(paying_on(market(currency=currency)).config, payer=THIRD)
        tender = replace(sale.tender, currency=currency)
        award = replace(sale.award, channel_id=channel_id(named.domain, config))
        arrived = AwardArrived(
            award=award, channel=config, workload=sale.workload, channel_closed=False, at_ms=made.now_ms
        )
        assert why in objection_to(replace(sale, tender=tender), arrived)
        assert bool(objection_to(replace(sale, tender=tender), arrived)) == bool(why)


def test_a_channel_of_another_payer_is_not_taken_up_again():
    made = market()
    worked(made)
    before = paying_on(made)
    state = made.engines[BUYER].state
    started = Started(
        account=BUYER, peer_id="p", terms=None, devices=(), at_ms=made.now_ms, currency=CHAIN, payer=ITSELF
    )
    made.take(BUYER, started)
    made.submit(BUYER, job=b"k" * 32, of=spec(shards=1, currency=CHAIN))
    made.tender(BUYER, (PROVIDER,), shards=(0,), currency=CHAIN, job=b"k" * 32)
    (bought,) = [each for _, each in state.purchases.all() if each.tender.job != JOB]
    assert before.phase == "open"
    assert not bought.channels
    assert bought.payer == ITSELF


def test_who_pays_is_remembered_and_what_is_wanted_of_it_is_told_until_it_is_final():
    made = market()
    state = made.engines[BUYER].state
    assert restored(decode(encode(snapshot(state)), type(snapshot(state)), limit_bytes=1 << 24)).payer == THIRD
    (told,) = wanted_deposits(state)
    wanted = read_deposit(told["deposit"], payer=THIRD, signer=BUYER, currency=CHAIN)
    assert (wanted.amount, wanted.config) == (paying_on(made).wanted, paying_on(made).config)
    assert wanted.channel_id == paying_on(made).channel_id == wanted.order.channel_id
    assert told["jobs"] == [state.jobs.live[JOB].spec.name]
    made.take(BUYER, FundsKnown(channel_id=wanted.channel_id, most=wanted.amount - 1, at_ms=made.now_ms))
    assert wanted_deposits(state) == [told]
    made.take(BUYER, FundsKnown(channel_id=wanted.channel_id, most=wanted.amount, at_ms=made.now_ms))
    assert wanted_deposits(state) == []


def test_nothing_is_asked_of_anybody_where_the_node_pays_itself():
    assert wanted_deposits(market(payer=ITSELF).engines[BUYER].state) == []
    assert wanted_deposits(market(payer=BUYER).engines[BUYER].state) == []


@pytest.mark.parametrize(
    "lie",
    [{name: checksum_address(PROVIDER)} for name in ("payer", "payerSigner", "token")]
    + [{"splitsHash": f"0x{11:064}"}],
)
def test_a_deposit_for_somebody_elses_channel_is_not_made(lie):
    (told,) = wanted_deposits(market().engines[BUYER].state)
    said = told["deposit"] | {"config": told["deposit"]["config"] | lie}
    with pytest.raises(Malformed):
        read_deposit(said, payer=THIRD, signer=BUYER, currency=CHAIN)
    other = escrow_currency(31_337, b"\xed" * 20, b"\x70" * 20)
    for wrong in ({"currency": other}, {"amount": "0"}, {"splits": [{"account": checksum_address(THIRD), "bps": 1}]}):
        with pytest.raises(Malformed):
            read_deposit(told["deposit"] | wrong, payer=THIRD, signer=BUYER, currency=CHAIN)


@pytest.mark.parametrize("period_s", [0, 900, CHALLENGE_PERIOD_S + 1, 30 * 86_400])
def test_a_deposit_that_would_come_back_late_is_not_made(period_s):
    """How long a lost node's money stays in the escrow is no daemon's to choose."""
    (told,) = wanted_deposits(market().engines[BUYER].state)
    said = told["deposit"] | {"config": told["deposit"]["config"] | {"challengePeriod": period_s}}
    with pytest.raises(Malformed, match="challenge period"):
        read_deposit(said, payer=THIRD, signer=BUYER, currency=CHAIN)


def test_a_deposit_with_splits_is_read_as_it_was_told():
    splits = (Split(account=THIRD, bps=250),)
    config = replace(paying_on(market()).config, splits_hash=splits_hash(splits))
    wanted = WantedDeposit(currency=CHAIN, config=config, splits=splits, amount=5)
    assert read_deposit(to_plain(wanted), payer=THIRD, signer=BUYER, currency=CHAIN) == wanted
    too_much = (Split(account=THIRD, bps=10_001),)
    never_opens = replace(wanted, splits=too_much, config=replace(config, splits_hash=splits_hash(too_much)))
    with pytest.raises(Malformed):
        read_deposit(to_plain(never_opens), payer=THIRD, signer=BUYER, currency=CHAIN)


def config(line: str, backend: str = "evm"):
    text = (
        config_text(Wishes())
        .replace('\npayer = ""', f"\n{line}")
        .replace('backend = "ledger"', f'backend = "{backend}"')
    )
    if backend == "evm":
        place = checksum_address(b"\x70" * 20)
        for key, value in (("rpc", '["http://127.0.0.1:8545"]'), ("escrow", f'"{place}"'), ("token", f'"{place}"')):
            start = text.index(f"\n{key} = ", text.index("[chain]"))
            text = f"{text[:start]}\n{key} = {value}{text[text.index(chr(10), start + 1) :]}"
    return parse_config(text, Path("/nowhere") / FILE_NAME)


def test_a_payer_is_an_address_with_a_right_checksum_and_only_on_a_chain():
    assert config('payer = ""').buyer.payer is None
    assert config('payer = ""', "ledger").buyer.payer is None
    named = f'payer = "{checksum_address(THIRD)}"'
    assert config(named).buyer.payer == THIRD
    wrong = checksum_address(THIRD).swapcase().replace("0X", "0x")
    for line in ('payer = "me"', f'payer = "{wrong}"', f'payer = "0x{"00" * 20}"', "payer = 7"):
        with pytest.raises(ConfigError) as caught:
            config(line)
        assert "payer" in caught.value.what
    with pytest.raises(ConfigError) as caught:
        config(named, "ledger")
    assert "ledger" in caught.value.what
    assert "on a chain" in caught.value.hint
