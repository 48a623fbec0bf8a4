"""What people see of a chain: the token's symbol in place of the currency's name, and everything that is wrong."""

import pytest

from hansa.node.api.desk import name_currency
from hansa.node.commands.cli_tables import print_chain
from hansa.proto.currency import escrow_currency

NAME = escrow_currency(31337, b"\xe5" * 20, b"\x70" * 20)


def test_a_currency_goes_by_its_symbol_wherever_it_stands() -> None:
    view = {"currency": NAME, "rows": [{"currency": NAME}, 7], "deep": {"currency": "USD", "name": NAME}}
    assert name_currency(view, NAME, "TEST") == {
        "currency": "TEST",
        "rows": [{"currency": "TEST"}, 7],
        "deep": {"currency": "USD", "name": NAME},
    }
    assert name_currency(view, "USD", "USD") is view


def test_the_status_says_where_a_node_settles_and_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    print_chain(
        {
            "chain_id": 31337,
            "escrow": "0xe5",
            "symbol": "TE\x1b[2JST",
            "sound": False,
            "warning": "the escrow contract is experimental and unaudited",
            "final_block": 7,
            "tokens": "1.000000",
            "coins": "0.500000",
            "credit": "0.000000",
            "payer": {"account": "0xC0\x1b[2J1D", "tokens": "7.000000", "credit": "2.000000", "deposits_wanted": 3},
            "waiting": ["open 1f3c"],
            "troubles": ["https://a.example: cannot be reached"],
        }
    )
    said = capsys.readouterr().out
    assert "NOT CHECKED YET; the escrow contract is experimental and unaudited" in said
    assert "TROUBLE    https://a.example: cannot be reached" in said
    assert "payer      0xC0" in said
    assert "7.000000 " in said
    assert "WANTED     3 deposits: hansa wallet deposit" in said
    assert "\x1b" not in said
    assert "on its way open 1f3c" in said
    assert "\x1b" not in said
