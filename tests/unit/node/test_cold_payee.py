"""The account that is paid may be colder than the one that trades: its key is nowhere on the machine."""

from pathlib import Path

import pytest
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, PROVIDER, PROVIDER_KEY, THIRD, THIRD_KEY, spec

from hansa.node.commands.first_setup import Wishes, config_text
from hansa.node.faults import ConfigError
from hansa.node.settings.config import FILE_NAME, parse_config
from hansa.proto.signing import checksum_address
from hansa.scheduler import run


def settled(**rules):
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1, **rules)
    made.submit(BUYER, of=spec(shards=1))
    made.tender(BUYER, (PROVIDER,))
    (lease,) = made.engines[PROVIDER].state.sale_of
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    made.now_ms += 2_000
    made.take(PROVIDER, run.RunProgressed(run=lease, step=1, metrics=(), at_ms=made.now_ms))
    made.now_ms += 1_000
    made.take(PROVIDER, run.RunFinished(run=lease, at_ms=made.now_ms))
    return made


@pytest.mark.parametrize(("rules", "payee"), [({}, PROVIDER), ({"payee": THIRD}, THIRD)])
def test_the_named_account_is_owed_and_the_trading_one_signs(rules, payee):
    made = settled(**rules)
    ((_, paying),) = made.engines[BUYER].state.paying.all()
    ((_, earning),) = made.engines[PROVIDER].state.earning.all()
    for channel in (paying, earning):
        assert (channel.config.payee, channel.config.payee_signer) == (payee, PROVIDER)
        assert channel.phase == "closed"
        assert channel.cumulative > 0
    books = made.engines[BUYER].state.ledger
    assert books.balance(f"paid:{payee.hex()}") == -paying.cumulative
    assert THIRD_KEY.address not in made.keys


def config(line: str):
    text = config_text(Wishes()).replace('payee = ""', line)
    return parse_config(text, Path("/nowhere") / FILE_NAME)


def test_a_payee_is_an_address_with_a_right_checksum():
    assert config('payee = ""').provider.payee is None
    assert config(f'payee = "{checksum_address(THIRD)}"').provider.payee == THIRD
    wrong = checksum_address(THIRD).swapcase().replace("0X", "0x")
    for line in ('payee = "me"', f'payee = "{wrong}"', f'payee = "0x{"00" * 20}"', "payee = 7"):
        with pytest.raises(ConfigError) as caught:
            config(line)
        assert "payee" in caught.value.what
