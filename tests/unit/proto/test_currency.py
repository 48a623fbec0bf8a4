import pytest

from hansa.proto.currency import currency_id, currency_of, escrow_currency
from hansa.proto.documents import escrow_domain
from hansa.proto.errors import Malformed
from hansa.proto.network import DOMAIN

ESCROW, TOKEN = b"\xab" * 20, b"\xcd" * 20
ON_CHAIN = escrow_currency(8453, ESCROW, TOKEN)


def test_a_plain_name_is_a_unit_of_account_of_the_ledger():
    usd = currency_of("USD")
    assert (usd.domain, usd.token, usd.chain_id, usd.is_on_chain) == (DOMAIN, currency_id("USD"), 0, False)
    assert usd.token != currency_of("EUR").token


def test_a_token_on_a_chain_says_which_contract_holds_the_money():
    found = currency_of(ON_CHAIN)
    assert (found.chain_id, found.escrow, found.token, found.is_on_chain) == (8453, ESCROW, TOKEN, True)
    assert found.domain == escrow_domain(8453, ESCROW)


@pytest.mark.parametrize(
    "name",
    [
        ON_CHAIN.upper(),
        ON_CHAIN.replace("8453", "0"),
        ON_CHAIN.replace("8453", "08453"),
        ON_CHAIN.replace("8453", "8_453"),
        ON_CHAIN.replace("8453", "\u0668"),
        ON_CHAIN.replace("8453", "9" * 30),
        ON_CHAIN.replace("ab", "AB"),
        ON_CHAIN + "\n",
        ON_CHAIN[:-1],
        "eip155:1",
    ],
)
def test_one_token_has_one_name(name):
    if not name.startswith("eip155:"):
        assert not currency_of(name).is_on_chain
        return
    with pytest.raises(Malformed):
        currency_of(name)
