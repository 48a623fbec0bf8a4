"""A receipt's bundle is checked from signatures alone: what is sound holds, and nothing in it can be changed unseen."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.filed_ledger import ledger_file, records, traded
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, OTHER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.market.receipt_proof import ReceiptProof, findings, not_proved
from hansa.node.api.statements import LEDGER_NAME
from hansa.node.commands.cli import cli
from hansa.node.faults import OperatorError
from hansa.node.ledger.receipt_files import bundle_json, find_receipt, read_bundle
from hansa.proto.documents import Voucher
from hansa.proto.errors import ProtocolError
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, sign
from hansa.scheduler.run import RunProgressed, RunStarted


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The provider's data directory after one job."""
    directory = tmp_path_factory.mktemp("node")
    ledger_file(directory / LEDGER_NAME, PROVIDER_KEY, records(traded(), PROVIDER_KEY))
    return directory


@pytest.fixture(scope="module")
def bundle(data) -> ReceiptProof:
    return find_receipt(data / LEDGER_NAME, the_job())


def the_job() -> str:
    return market_job(traded())


def market_job(market: SmallMarket) -> str:
    ((job, _),) = market.engines[BUYER_KEY.address].state.jobs.all()
    return job.hex()[:10]


def holds(bundle: ReceiptProof) -> bool:
    return all(finding.holds for finding in findings(bundle))


def run(*arguments, stdin=None):
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli, [str(argument) for argument in arguments], input=stdin)


def test_a_settled_receipt_comes_with_its_whole_proof(bundle):
    assert holds(bundle)
    assert len(findings(bundle)) == 7, [finding.words for finding in findings(bundle)]
    assert bundle.voucher[0].document.cumulative == bundle.receipt.document.amount_total > 0
    assert bundle.close[0].by_payee.document.cumulative == bundle.receipt.document.amount_total
    assert bundle.logged[0].owner == PROVIDER


def test_both_sides_ledgers_give_the_same_receipt_voucher_and_close(tmp_path, bundle):
    bought = ledger_file(tmp_path / LEDGER_NAME, BUYER_KEY, records(traded(), BUYER_KEY))
    theirs = find_receipt(bought, the_job())
    assert holds(theirs)
    assert replace(theirs, logged=()) == replace(bundle, logged=())


def test_a_channel_a_lease_and_a_job_mean_the_same(data, bundle):
    channel, lease = bundle.receipt.document.channel_id.hex(), bundle.leaves[0].line.lease.hex()
    for wanted in (channel, "0x" + channel[:8], lease[:9].upper(), the_job()):
        assert find_receipt(data / LEDGER_NAME, wanted) == bundle


def test_of_two_channels_each_id_means_its_own_and_the_jobs_means_neither(tmp_path):
    market = SmallMarket()
    market.add(BUYER_KEY)
    for key in (PROVIDER_KEY, OTHER_KEY):
        market.add(key, devices=1)
    market.submit(BUYER, of=spec(shards=2))
    market.tender(BUYER, (PROVIDER, OTHER_KEY.address), shards=(0, 1))
    market.pass_time(2_000, BUYER)
    leases = {key.address: next(iter(market.engines[key.address].state.sale_of)) for key in (PROVIDER_KEY, OTHER_KEY)}
    for step, at in ((0, 0), (1, 2_000), (2, 2_000)):
        market.now_ms += at
        for provider, lease in leases.items():
            told = RunProgressed(run=lease, step=step, metrics=(), at_ms=market.now_ms)
            market.take(provider, told if step else RunStarted(run=lease, at_ms=market.now_ms))
    ledger = ledger_file(tmp_path / LEDGER_NAME, BUYER_KEY, records(market, BUYER_KEY))
    channels = {}
    for provider, lease in leases.items():
        found = find_receipt(ledger, lease.hex())
        assert found.config.payee == provider
        assert [leaf.line.lease for leaf in found.leaves] == [lease]
        assert holds(found)
        channel = found.receipt.document.channel_id.hex()
        assert find_receipt(ledger, channel[:12]) == found
        channels[channel] = found
    assert len(channels) == 2
    with pytest.raises(OperatorError, match=r"^2 channels are meant") as caught:
        find_receipt(ledger, market_job(market))
    assert all(channel[:12] in caught.value.hint for channel in channels)


@pytest.mark.parametrize("wanted", ["", "abc", "zzzz", "00000000", "\u0664" * 8])
def test_what_means_nothing_is_said(data, wanted):
    with pytest.raises(OperatorError) as caught:
        find_receipt(data / LEDGER_NAME, wanted)
    assert caught.value.hint


def test_a_bundle_is_read_back_as_it_was_written(bundle):
    assert read_bundle(json.dumps(bundle_json(bundle)).encode()) == bundle


def test_on_another_machine_the_bundle_is_checked_without_a_node(data, tmp_path):
    printed = run("receipt", the_job(), "--data", data, "--json")
    assert printed.exit_code == 0, printed.stderr
    file = tmp_path / "bundle.json"
    file.write_text(printed.stdout)
    checked = run("receipt", "--verify", file, "--data", tmp_path / "nothing here")
    assert checked.exit_code == 0, checked.stderr
    assert "BAD" not in checked.stdout
    assert "money moved" in checked.stdout
    view = json.loads(run("receipt", "--verify", "-", "--json", stdin=printed.stdout).stdout)
    assert view["holds"] is True
    assert any("IOU" in words for words in view["not_proved"])


def test_a_printed_receipt_says_that_the_end_of_a_run_is_among_its_steps(data):
    printed = run("receipt", the_job(), "--data", data)
    assert printed.exit_code == 0, printed.stderr
    (footnote,) = (line for line in printed.stdout.splitlines() if line.startswith("steps: "))
    assert "one more for a run that ended well" in footnote


def test_a_bundle_with_a_changed_sum_is_found_out_in_words(data, tmp_path):
    printed = json.loads(run("receipt", the_job(), "--data", data, "--json").stdout)
    printed["receipt"]["document"]["amountTotal"] = str(int(printed["receipt"]["document"]["amountTotal"]) + 1)
    file = tmp_path / "bundle.json"
    file.write_text(json.dumps(printed))
    checked = run("receipt", "--verify", file)
    assert checked.exit_code == 1
    assert "BAD the receipt is not signed by" in checked.stdout


def places(value, path=()):
    """Every leaf of a JSON value, by its path."""
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*path, index))
    else:
        yield path


def changed(value, draw):
    """Another value of the same kind."""
    if value is None or isinstance(value, bool):
        return "0x"
    if isinstance(value, int):
        return draw(st.integers(0, 1 << 64).filter(lambda other: other != value))
    if value.startswith("0x"):
        index = draw(st.integers(2, len(value) - 1)) if len(value) > 2 else 2
        digit = draw(
            st.sampled_from("0123456789abcdef").filter(lambda other: other != value[index : index + 1].lower())
        )
        return (value[:index] + digit + value[index + 1 :]).lower()
    if value.isdigit():
        return str(draw(st.integers(0, (1 << 128) - 1).filter(lambda other: other != int(value))))
    return draw(st.text(max_size=20).filter(lambda other: other != value))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_single_change_of_a_bundle_goes_unseen(data):
    table = bundle_json(_bundle_once())
    path = data.draw(st.sampled_from(list(places(table))))
    here = table
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = changed(here[path[-1]], data.draw)
    try:
        read = read_bundle(json.dumps(table).encode())
    except ProtocolError:
        return
    # A ledger's record of another version cannot be checked, and that is said.
    assert not holds(read) or (path == ("log", "version") and any("version" in words for words in not_proved(read)))


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
)
def test_any_bytes_are_a_bundle_or_a_protocol_error(content):
    with pytest.raises(ProtocolError):
        read_bundle(content)


_made: list[ReceiptProof] = []


def _bundle_once() -> ReceiptProof:
    import tempfile
    from pathlib import Path

    if not _made:
        with tempfile.TemporaryDirectory() as directory:
            ledger = ledger_file(Path(directory) / LEDGER_NAME, PROVIDER_KEY, records(traded(), PROVIDER_KEY))
            _made.append(find_receipt(ledger, the_job()))
    return _made[0]


def test_a_line_of_another_receipt_is_not_let_in(bundle):
    (leaf,) = bundle.leaves
    more = replace(leaf, line=replace(leaf.line, amount=leaf.line.amount + 1), line_path=())
    assert not holds(replace(bundle, leaves=(more,)))
    assert not holds(replace(bundle, leaves=()))
    assert not holds(replace(bundle, leaves=(leaf, leaf)))


def test_a_voucher_by_somebody_else_or_for_another_sum_is_no_promise(bundle):
    (voucher,) = bundle.voucher
    for signed in (
        sign(DOMAIN, voucher.document, OTHER_KEY),
        sign(DOMAIN, replace(voucher.document, cumulative=voucher.document.cumulative - 1), BUYER_KEY),
        sign(DOMAIN, replace(voucher.document, statement=bytes(32)), BUYER_KEY),
        sign(DOMAIN, replace(voucher.document, channel_id=bytes(32)), BUYER_KEY),
        Signed(document=voucher.document, signature=bytes(65)),
    ):
        assert isinstance(signed.document, Voucher)
        assert not holds(replace(bundle, voucher=(signed,)))


def test_without_a_voucher_it_is_said_that_nobody_promised(bundle):
    alone = replace(bundle, voucher=(), close=())
    assert holds(alone)
    assert "buyer agreed" in not_proved(alone)[0]
    assert "buyer agreed" not in not_proved(bundle)[0]


def test_a_receipt_that_waits_for_its_voucher_gives_way_to_the_last_that_has_one(tmp_path):
    market = traded()
    of = records(market, PROVIDER_KEY)
    kept = [record for record in of if type(record).__name__ != "FiledClose"]
    vouchers = [record for record in kept if type(record).__name__ == "FiledVoucher"]
    assert len(vouchers) > 1
    kept.remove(vouchers[-1])
    found = find_receipt(ledger_file(tmp_path / LEDGER_NAME, PROVIDER_KEY, kept), the_job())
    assert found.voucher[0] == vouchers[-2].voucher
    assert holds(found)


def test_without_paths_the_roots_themselves_are_worked_out_again(bundle):
    (leaf,) = bundle.leaves
    bare = replace(leaf, line_path=(), evidence_path=())
    assert holds(replace(bundle, leaves=(bare,)))
    for other in (
        replace(bare, evidence=replace(leaf.evidence, steps=leaf.evidence.steps + 1)),
        replace(bare, line=replace(leaf.line, device_ms=leaf.line.device_ms + 1)),
    ):
        words = [finding.words for finding in findings(replace(bundle, leaves=(other,))) if not finding.holds]
        assert any("root that was signed" in each for each in words), words


def test_a_voucher_may_pay_ahead_of_its_receipt_and_that_is_said(bundle):
    (voucher,) = bundle.voucher
    ahead = sign(DOMAIN, replace(voucher.document, cumulative=voucher.document.cumulative + 5), BUYER_KEY)
    found = findings(replace(bundle, voucher=(ahead,)))
    assert all(finding.holds for finding in found)
    assert any("0.000005 ahead" in finding.words for finding in found)
