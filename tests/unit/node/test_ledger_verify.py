"""``hansa ledger verify``: what is not as it was signed is found, and the first place that is wrong is named."""

import json
import shutil
import sqlite3
from dataclasses import replace

import pytest
from click.testing import CliRunner
from kit.filed_ledger import head_signer, ledger_file, records, tamper, traded
from kit.trading import BUYER, BUYER_KEY, OTHER_KEY, PROVIDER, PROVIDER_KEY

from hansa.market.ledger import Entry, Leg
from hansa.market.ledger_records import FiledChannel, FiledClose, FiledPayment, FiledReceipt, FiledVoucher
from hansa.market.receipts import receipt_digest
from hansa.node.commands.cli import cli
from hansa.node.ledger.head_store import HeadStore
from hansa.node.ledger.ledger_store import LedgerStore
from hansa.proto.codec import encode
from hansa.proto.currency import unit_of
from hansa.proto.documents import Payment
from hansa.proto.keccak import keccak256
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, sign

MARKET = traded()
RECORDS = {key.address: records(MARKET, key) for key in (BUYER_KEY, PROVIDER_KEY)}
KEYS = {key.address: key for key in (BUYER_KEY, PROVIDER_KEY)}


@pytest.fixture(params=[BUYER, PROVIDER], ids=["buyer", "provider"])
def owner(request):
    return request.param


@pytest.fixture
def path(tmp_path, owner):
    return ledger_file(tmp_path / "ledger.sqlite", KEYS[owner], RECORDS[owner])


def verify(path, *more):
    """The command's exit code and its report."""
    result = CliRunner().invoke(cli, ["ledger", "verify", str(path), "--json", *map(str, more)])
    return result.exit_code, json.loads(result.stdout) if result.stdout else {}


def faults(report):
    return {found["name"]: found["record"] for found in report["findings"] if not found["holds"]}


def written(tmp_path, owner, of, **options):
    """A whole ledger of other records, made by its owner with its own key: chain, tree and heads are all in order."""
    path = tmp_path / "forged.sqlite"
    path.unlink(missing_ok=True)
    return ledger_file(path, KEYS[owner], of, **options)


def place(owner, kind):
    return next(at for at, record in enumerate(RECORDS[owner]) if isinstance(record, kind))


def test_an_honest_ledger_holds_in_every_respect(path, owner):
    code, report = verify(path)
    assert (code, report["holds"], report["first_fault"]) == (0, True, None)
    assert report["owner"] == "0x" + owner.hex()
    assert report["documents"] + len([r for r in RECORDS[owner] if isinstance(r, Entry)]) >= report["records"]
    assert report["signatures"] > 10


def test_it_is_said_in_plain_words_and_that_nobody_guarantees_payment(path):
    result = CliRunner().invoke(cli, ["ledger", "verify", str(path)])
    assert result.exit_code == 0
    assert "Everything holds" in result.stdout
    assert "an IOU" in result.stdout
    assert "Nobody guarantees" in result.stdout


def test_a_copied_file_is_checked_where_no_daemon_is(path, tmp_path):
    copy = tmp_path / "elsewhere" / "copy.db"
    copy.parent.mkdir()
    shutil.copyfile(path, copy)
    before = copy.read_bytes()
    assert verify(copy)[0] == 0
    assert copy.read_bytes() == before
    assert list(copy.parent.iterdir()) == [copy]


@pytest.mark.parametrize("position", [1, 4, 9])
def test_ledger_file_edited(path, position):
    body = (
        LedgerStore(path, read_only=True)
        ._database.execute("SELECT body FROM entry WHERE position = ?", (position,))
        .fetchone()[0]
    )
    tamper(path, ("UPDATE entry SET body = ? WHERE position = ?", (body[:-1] + bytes([body[-1] ^ 1]), position)))
    code, report = verify(path)
    assert (code, report["first_fault"]) == (1, position)
    assert faults(report)["chain"] == position


def test_ledger_file_edited_and_the_chain_mended_the_tree_and_the_heads_still_tell(path):
    store = LedgerStore(path, read_only=True)
    rows = list(store.rows())
    store.close()
    chain, statements = bytes(32), []
    for position, _, body, _ in rows:
        changed = body.replace(b"voucher", b"Voucher") if position == 4 else body
        chain = keccak256(chain + changed)
        statements.append(("UPDATE entry SET body = ?, chain = ? WHERE position = ?", (changed, chain, position)))
    tamper(path, *statements)
    found = faults(verify(path)[1])
    assert "tree" in found
    assert "heads" in found


def test_ledger_file_truncated(path):
    for cut in ("entry", "entry and node"):
        tamper(path, ("DELETE FROM entry WHERE position > 7", ()))
        if cut != "entry":
            tamper(path, ("DELETE FROM node WHERE number > 11", ()))
        code, report = verify(path)
        assert code == 1
        assert report["first_fault"] == 8
        assert faults(report)["heads"] == 8
        assert "are gone" in next(f["words"] for f in report["findings"] if f["name"] == "heads")


def test_a_record_that_stands_under_another_number_is_named_though_the_chain_is_whole(path):
    last = verify(path)[1]["records"]
    tamper(path, ("UPDATE entry SET position = position + 1 WHERE position = ?", (last,)))
    code, report = verify(path)
    assert (code, faults(report)["chain"]) == (1, last)
    assert "missing" in next(f["words"] for f in report["findings"] if f["name"] == "chain")


def test_ledger_file_truncated_in_its_bytes(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    code, report = verify(path)
    assert code == 1
    assert "damaged" in report["findings"][0]["words"] or "malformed" in report["findings"][0]["words"]


def test_ledger_file_rolled_back_is_found_by_the_nodes_own_last_head_and_by_those_of_peers(tmp_path, owner):
    entries = [at for at, record in enumerate(RECORDS[owner]) if isinstance(record, Entry)]
    old = written(tmp_path, owner, RECORDS[owner][: entries[1] + 1])
    assert verify(old)[0] == 0, "in itself it is an honest ledger"
    whole = ledger_file(tmp_path / "ledger.sqlite", KEYS[owner], RECORDS[owner])
    store = LedgerStore(whole, read_only=True)
    kept = HeadStore(tmp_path / "heads.sqlite")
    kept.keep_own(store.newest_head())
    kept.close()
    store.close()
    code, report = verify(old, "--heads", tmp_path / "heads.sqlite")
    assert code == 1
    assert faults(report) == {"elsewhere": report["records"] + 1}
    assert "rolled back" in next(f["words"] for f in report["findings"] if not f["holds"])
    # The same beside the ledger, as the daemon keeps it.
    shutil.copyfile(old, whole)
    result = CliRunner().invoke(cli, ["ledger", "verify", "--data", str(tmp_path), "--json"])
    assert result.exit_code == 1
    assert set(faults(json.loads(result.stdout))) == {"elsewhere"}


def test_another_history_of_the_same_size_is_found_by_an_old_head(tmp_path, owner):
    whole = ledger_file(tmp_path / "ledger.sqlite", KEYS[owner], RECORDS[owner])
    store = LedgerStore(whole, read_only=True)
    kept = HeadStore(tmp_path / "heads.sqlite")
    kept.keep_own(store.newest_head())
    kept.close()
    store.close()
    other = [*RECORDS[owner][:-1], replace(RECORDS[owner][-1], memo="another")]
    code, report = verify(written(tmp_path, owner, other), "--heads", tmp_path / "heads.sqlite")
    assert (code, set(faults(report))) == (1, {"elsewhere"})


def test_a_voucher_with_a_signature_of_somebody_else_is_named(tmp_path, owner):
    at = place(owner, FiledVoucher)
    said = RECORDS[owner][at].voucher.document
    forged = replace(RECORDS[owner][at], voucher=sign(DOMAIN, said, OTHER_KEY))
    code, report = verify(written(tmp_path, owner, [*RECORDS[owner][:at], forged, *RECORDS[owner][at + 1 :]]))
    assert code == 1
    assert "signatures" in faults(report)


def test_a_debt_that_the_debtor_did_not_sign_cannot_be_invented(tmp_path):
    """The provider, with its own key and a sound chain, tree and heads, writes itself a larger claim."""
    at = next(at for at, record in enumerate(RECORDS[PROVIDER]) if isinstance(record, Entry))
    entry = RECORDS[PROVIDER][at]
    legs = tuple(Leg(account=leg.account, amount=leg.amount * 1_000) for leg in entry.legs)
    inflated = [*RECORDS[PROVIDER][:at], replace(entry, legs=legs), *RECORDS[PROVIDER][at + 1 :]]
    code, report = verify(written(tmp_path, PROVIDER, inflated, group=1))
    assert code == 1
    assert set(faults(report)) == {"books"}
    assert report["first_fault"] == faults(report)["books"] > 0
    invented = Entry(
        id=keccak256(b"invented"),
        at_ms=1,
        memo="voucher 99",
        legs=(Leg(account=f"due:{BUYER.hex()}", amount=5), Leg(account="earned:" + "00" * 32, amount=-5)),
    )
    code, report = verify(written(tmp_path, PROVIDER, [*RECORDS[PROVIDER], invented]))
    assert (code, set(faults(report))) == (1, {"books"})
    assert report["first_fault"] == report["records"]


def test_a_debt_that_was_signed_cannot_be_left_out_of_the_books(tmp_path):
    at = next(at for at, record in enumerate(RECORDS[BUYER]) if isinstance(record, Entry))
    code, report = verify(written(tmp_path, BUYER, [*RECORDS[BUYER][:at], *RECORDS[BUYER][at + 1 :]]))
    assert (code, set(faults(report))) == (1, {"books"})


def test_a_forked_receipt_chain_is_named(tmp_path, owner):
    """A second receipt of one number, signed by the provider, stands where the next one should."""
    at = [number for number, record in enumerate(RECORDS[owner]) if isinstance(record, FiledReceipt)][1]
    receipt = RECORDS[owner][at].receipt.document
    again = sign(DOMAIN, replace(receipt, prev=bytes(32)), PROVIDER_KEY)
    forked = [*RECORDS[owner][:at], replace(RECORDS[owner][at], receipt=again), *RECORDS[owner][at + 1 :]]
    code, report = verify(written(tmp_path, owner, forked))
    assert code == 1
    assert "totals" in faults(report)


def test_a_receipt_that_does_not_follow_is_named_even_if_it_was_vouched_for(tmp_path):
    """Both sides signed: the payee a receipt without a past, the payer a voucher for it."""
    receipts = [at for at, record in enumerate(RECORDS[BUYER]) if isinstance(record, FiledReceipt)]
    upto = next(at for at in range(receipts[1], len(RECORDS[BUYER])) if isinstance(RECORDS[BUYER][at], Entry))
    forked = list(RECORDS[BUYER][: upto + 1])
    at = receipts[1]
    receipt = replace(forked[at].receipt.document, prev=bytes(32))
    forked[at] = replace(forked[at], receipt=sign(DOMAIN, receipt, PROVIDER_KEY))
    at = next(number for number in range(at, len(forked)) if isinstance(forked[number], FiledVoucher))
    voucher = replace(forked[at].voucher.document, statement=receipt_digest(receipt))
    forked[at] = replace(forked[at], voucher=sign(DOMAIN, voucher, BUYER_KEY))
    code, report = verify(written(tmp_path, BUYER, forked))
    assert (code, set(faults(report))) == (1, {"totals"})


@pytest.mark.parametrize("wrong", ["lines", "evidence", "total"])
def test_a_receipt_that_commits_to_other_lines_or_to_another_sum_is_named(tmp_path, wrong):
    at = place(PROVIDER, FiledReceipt)
    filed = RECORDS[PROVIDER][at]
    document = filed.receipt.document
    if wrong == "total":
        document = replace(document, amount_total=document.amount_total + 1)
    elif wrong == "lines":
        line = filed.lines[0]
        filed = replace(filed, lines=(replace(line, device_ms=line.device_ms + 1),))
    else:
        filed = replace(filed, evidence=(replace(filed.evidence[0], steps=999),))
    filed = replace(filed, receipt=sign(DOMAIN, document, PROVIDER_KEY))
    code, report = verify(written(tmp_path, PROVIDER, [*RECORDS[PROVIDER][:at], filed]))
    assert (code, faults(report)["totals"]) == (1, at + 1)


@pytest.mark.parametrize(("nonce", "total", "holds"), [(2, 7, True), (3, 7, True), (1, 7, False), (2, 5, False)])
def test_a_payment_whose_number_or_total_does_not_rise_is_named(tmp_path, nonce, total, holds):
    def paid(number, upto):
        said = Payment(
            creditor=PROVIDER, debtor=BUYER, unit=unit_of("USD"), total=upto, how=str(number), nonce=number, paid_ms=1
        )
        return FiledPayment(payment=sign(DOMAIN, said, PROVIDER_KEY))

    of = [paid(1, 5), paid(nonce, total)]
    if nonce == 1:
        # The ledger keeps one record of each number, so a second one is put there by its owner's own hand.
        of = [paid(2, 5), paid(1, total)]
    found = faults(verify(written(tmp_path, BUYER, of))[1])
    assert found.get("totals", 0) == (0 if holds else 2)


def test_a_total_that_falls_is_named(tmp_path):
    vouchers = [at for at, record in enumerate(RECORDS[PROVIDER]) if isinstance(record, FiledVoucher)]
    said = RECORDS[PROVIDER][vouchers[-1]].voucher.document
    first = RECORDS[PROVIDER][vouchers[0]].voucher.document
    low = FiledVoucher(currency="USD", voucher=sign(DOMAIN, replace(said, cumulative=first.cumulative), BUYER_KEY))
    code, report = verify(written(tmp_path, PROVIDER, [*RECORDS[PROVIDER], low]))
    assert code == 1
    assert faults(report)["totals"] == report["records"]


def test_a_close_at_another_sum_than_was_vouched_for_is_named(tmp_path, owner):
    at = place(owner, FiledClose)
    said = replace(RECORDS[owner][at].by_payer.document, cumulative=1)
    lower = replace(
        RECORDS[owner][at], by_payer=sign(DOMAIN, said, BUYER_KEY), by_payee=sign(DOMAIN, said, PROVIDER_KEY)
    )
    code, report = verify(written(tmp_path, owner, [*RECORDS[owner][:at], lower, *RECORDS[owner][at + 1 :]]))
    assert code == 1
    assert "totals" in faults(report)
    one_sided = replace(RECORDS[owner][at], by_payee=Signed(document=said, signature=bytes(65)))
    code, report = verify(written(tmp_path, owner, [*RECORDS[owner][:at], one_sided, *RECORDS[owner][at + 1 :]]))
    assert code == 1
    assert "signatures" in faults(report)


@pytest.mark.parametrize(
    ("kind", "what"), [(FiledReceipt, "a receipt"), (FiledVoucher, "a voucher"), (FiledClose, "a close")]
)
def test_a_document_of_a_channel_that_is_not_filed_is_named(tmp_path, owner, kind, what):
    """Whoever seals a ledger anew can leave out the channel, and no document of it can be checked."""
    kinds = (FiledReceipt, FiledVoucher, FiledClose)
    kept = next(record for record in RECORDS[owner] if isinstance(record, kind))
    left = [each for each in RECORDS[owner] if each is kept or not isinstance(each, (FiledChannel, *kinds))]
    code, report = verify(written(tmp_path, owner, left))
    assert code == 1
    said = [found["words"] for found in report["findings"] if found["name"] == "signatures"]
    assert len(said) == 1
    assert f"{what} is of a channel that is not filed" in said[0]


def test_a_channel_in_another_currency_than_its_config_names_is_named(tmp_path, owner):
    """No signature holds the name of a currency; the config's token stands for it, and is in what both signed."""
    at, channel = next(found for found in enumerate(RECORDS[owner]) if isinstance(found[1], FiledChannel))
    renamed = replace(channel, currency="EUR")
    code, report = verify(written(tmp_path, owner, [*RECORDS[owner][:at], renamed, *RECORDS[owner][at + 1 :]]))
    assert code == 1
    (said,) = [found["words"] for found in report["findings"] if found["name"] == "signatures"]
    assert "a channel in another currency than its config names" in said


def test_a_head_signed_by_another_key_is_not_this_ledgers(path, owner):
    store = LedgerStore(path, read_only=True)
    said = store.newest_head().document
    store.close()
    head = head_signer(OTHER_KEY)(said.size, said.root)
    tamper(path, ("UPDATE head SET body = ? WHERE size = ?", (encode(head), said.size)))
    code, report = verify(path)
    assert code == 1
    assert set(faults(report)) == {"heads"}


def test_what_is_no_ledger_is_exit_code_2(tmp_path):
    nothing = tmp_path / "nothing.sqlite"
    assert verify(nothing)[0] == 2
    nothing.write_bytes(b"no database" * 99)
    assert verify(nothing)[0] == 2


def test_a_copy_without_the_log_of_a_running_node_is_refused_with_what_to_do(tmp_path):
    store = LedgerStore(tmp_path / "ledger.sqlite")
    copy = tmp_path / "copy.sqlite"
    shutil.copy(tmp_path / "ledger.sqlite", copy)
    store.close()
    result = CliRunner().invoke(cli, ["ledger", "verify", str(copy)])
    assert result.exit_code == 2
    assert "is no ledger" in result.output
    assert "made while the node was stopped" in result.output


def bent(path, statement):
    """A byte of a row's header was bent, and what it leads to is of another type than its table holds."""
    strict = "UPDATE sqlite_schema SET sql = {} WHERE name IN ('entry', 'node', 'head')"
    for sql, then in (("replace(sql, ' STRICT', '')", statement), ("sql || ' STRICT'", "SELECT 1")):
        database = sqlite3.connect(path, isolation_level=None)
        for table in ("entry", "node", "head"):
            for verb in ("update", "delete"):
                database.execute(f"DROP TRIGGER IF EXISTS {table}_no_{verb}")
        database.execute("PRAGMA writable_schema=ON")
        database.execute(strict.format(sql))
        database.close()
        database = sqlite3.connect(path, isolation_level=None)
        database.execute(then)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.close()


@pytest.mark.parametrize(
    ("statement", "name", "record"),
    [
        ("UPDATE entry SET body = 'text' WHERE position = 3", "chain", 3),
        ("UPDATE entry SET body = 7 WHERE position = 3", "chain", 3),
        ("UPDATE entry SET id = 'text' WHERE position = 3", "chain", 3),
        ("UPDATE entry SET chain = 1.5 WHERE position = 3", "chain", 3),
        ("UPDATE entry SET chain = 'text' WHERE position = (SELECT max(position) FROM entry)", "chain", None),
        ("UPDATE node SET hash = 'text' WHERE number = 3", "tree", None),
        ("UPDATE node SET hash = 'text'", "tree", None),
        ("UPDATE head SET body = 'text' WHERE size = (SELECT max(size) FROM head)", "heads", None),
        ("UPDATE head SET body = 7", "heads", None),
    ],
)
def test_what_is_of_another_type_than_it_should_be_is_named(path, statement, name, record):
    bent(path, statement)
    code, report = verify(path)
    assert code == 1
    assert name in faults(report)
    assert record is None or faults(report)[name] == record
