"""The owner's word on debts, over the local API of a real daemon, and what becomes of it at the other side's."""

from dataclasses import replace

import httpx
import pytest
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.waiting import until

from hansa.market.ledger import owed_to
from hansa.node.api.desk import NodeDesk
from hansa.node.api.http_api import build_api
from hansa.node.api.http_ledger import LedgerDesk, ledger_routes
from hansa.node.api.views import ON_CHAIN_PROMISE, PROMISE
from hansa.node.engine.events import CreditDecided
from hansa.node.ledger.ledger_verify import verify_file
from hansa.proto.currency import escrow_currency
from hansa.proto.documents import log_id_of
from hansa.proto.signing import checksum_address

pytestmark = pytest.mark.trio


def client_of(daemon):
    app = build_api(NodeDesk(daemon), max_job_budget=1, more=ledger_routes(LedgerDesk(daemon)))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://local")


async def test_a_payment_reaches_the_debtors_books_with_a_signed_head_and_both_ledgers_hold(tmp_path):
    hub = MemoryHub()
    async with a_daemon(tmp_path, hub, 1) as debtor, a_daemon(tmp_path, hub, 2, lends=True) as creditor:
        # A debtor hears of those with whom it has something; here its owner has named the creditor.
        known = CreditDecided(debtor=creditor.account.address, limit=None, at_ms=debtor.now_ms())
        await debtor.take(known)
        debtor.net.learn(creditor.net.peer_id, creditor.net.addrs())
        await debtor.net.connect(creditor.net.peer_id)
        await until(lambda: creditor.directory.account_of(debtor.net.peer_id) is not None)
        account = checksum_address(debtor.account.address)
        async with client_of(creditor) as api:
            body = {"account": account, "amount": "1.50", "how": "by hand", "ahead": True}
            answer = await api.post("/v1/debts/paid", json=body)
            assert answer.status_code == 201, answer.text
            assert (answer.json()["paid_to_us"], answer.json()["owes_us"]) == ("1.500000", "-1.500000")
            answer = (await api.get("/v1/debts")).json()
            assert [view["account"] for view in answer["debts"]] == [account]
            assert answer["promise"] == PROMISE
            limit = await api.post("/v1/debts/credit", json={"account": account, "limit": "7"})
            assert limit.json()["may_owe_us"] == "7.000000"
        ours = creditor.account.address
        await until(lambda: owed_to(debtor.state.ledger, ours) == -1_500_000)
        await until(lambda: debtor.ledger_keeper.heads.newest_proved(log_id_of(ours)) is not None)
        assert (
            debtor.ledger_keeper.heads.newest_proved(log_id_of(ours)).head == creditor.ledger_keeper.store.newest_head()
        )
    for number in (1, 2):
        report = verify_file(tmp_path / f"node-{number}" / "ledger.sqlite")
        assert report.holds, report.first_fault


async def test_on_a_chain_nothing_is_said_of_credit_and_what_stands_behind_it_is_said(tmp_path, monkeypatch):
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon, client_of(daemon) as api:
        chain = escrow_currency(31_337, b"e" * 20, b"t" * 20)
        monkeypatch.setattr(daemon, "config", replace(daemon.config, currency=chain))
        answer = (await api.get("/v1/debts")).json()
        assert answer == {"currency": chain, "debts": [], "promise": ON_CHAIN_PROMISE}


WRONG = [
    {"amount": "0"},
    {"amount": "-1"},
    {"amount": "1e9"},
    {"amount": 5},
    {"how": ""},
    {"how": "x" * 300},
    {"how": None},
    {"account": "0x12"},
    {"ahead": False},
    {"more": 1},
]


async def test_what_makes_no_sense_is_refused_and_nothing_is_signed(tmp_path):
    async with a_daemon(tmp_path, MemoryHub(), 2, lends=True) as creditor, client_of(creditor) as api:
        for wrong in WRONG:
            body = {"account": "0x" + "11" * 20, "amount": "1.50", "how": "by hand", "ahead": True} | wrong
            answer = await api.post("/v1/debts/paid", json=body)
            assert 400 <= answer.status_code < 500, wrong
        assert not creditor.state.mutual
        assert creditor.ledger_keeper.store.size == 0
