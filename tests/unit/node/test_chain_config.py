"""What the owner writes about a chain is checked to the last key, and secrets in it are never shown."""

import re
from pathlib import Path

import pytest

from hansa.node.chain.chain_dev import Deployed
from hansa.node.chain.chain_setup import as_toml, chain_values, put_on_chain, with_values
from hansa.node.commands.first_setup import Wishes, config_text
from hansa.node.faults import ConfigError
from hansa.node.settings.chain_config import format_coins
from hansa.node.settings.config import Config, load_config, parse_config
from hansa.proto.currency import escrow_currency

ESCROW, TOKEN = b"\xe5" * 20, b"\x70" * 20
DEPLOYED = Deployed(chain_id=31337, escrow=ESCROW, token=TOKEN)
VALUES = chain_values("http://127.0.0.1:8545", DEPLOYED)
TEXT = with_values(config_text(Wishes()), VALUES, Path("config.toml"))
FILE = Path("/srv/hansa/config.toml")


def changed(**values: str) -> Config:
    text = TEXT
    for key, value in values.items():
        text, times = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
        assert times == 1, key
    return parse_config(text, FILE)


def test_a_node_is_on_no_chain_unless_it_is_told_to_be() -> None:
    config = parse_config(config_text(Wishes()), FILE)
    assert (config.chain, config.currency, config.settlement.backend) == (None, "USD", "ledger")


def test_a_nodes_currency_is_then_the_token_in_the_escrow() -> None:
    config = parse_config(TEXT, FILE)
    assert config.currency == escrow_currency(31337, ESCROW, TOKEN)
    assert config.chain is not None
    assert config.chain.limits.most_per_day == 2 * 10**16
    assert config.chain.limits.most_per_gas == 100 * 10**9


def test_a_config_without_the_tables_reads_as_before() -> None:
    text = config_text(Wishes())
    before = text[: text.index("[chain]")]
    assert parse_config(before, FILE).chain is None
    assert parse_config(with_values(before, VALUES, FILE), FILE).chain is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rpc", "[]"),
        ("rpc", '"http://127.0.0.1:8545"'),
        ("rpc", '["ftp://127.0.0.1"]'),
        ("rpc", '["127.0.0.1:8545"]'),
        ("rpc", '["http://"]'),
        ("rpc", '["http://a:99999"]'),
        ("chain_id", "0"),
        ("chain_id", '"1"'),
        ("escrow", '""'),
        ("escrow", '"0x1234"'),
        ("escrow", '"0x52908400098527886e0F7030069857D2E4169EE7"'),
        ("token", '"0x0000000000000000000000000000000000000000"'),
        ("confirmations", "-1"),
        ("confirmations", '"finalized"'),
        ("max_fee_per_gas_gwei", "0"),
        ("max_fee_per_day", "0.02"),
        ("max_fee_per_day", '"-1"'),
        ("max_fee_per_day", '"1e3"'),
        ("max_fee_per_day", '"0.0000000000000000001"'),
        ("claim_at_least", '"0"'),
        ("poll", '"0 s"'),
    ],
)
def test_what_is_wrong_is_said_with_its_key(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        changed(**{key: value})


def test_secrets_in_logs_a_wrong_address_of_a_node_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        changed(rpc='["ftp://rpc.example/v3/a-secret-key"]')
    assert "a-secret-key" not in f"{caught.value.what} {caught.value.hint}"


def test_a_mistake_is_said_also_where_the_chain_is_not_used() -> None:
    with pytest.raises(ConfigError, match="chain_id"):
        changed(backend='"ledger"', chain_id="0")


def test_values_come_into_a_file_beside_all_that_is_in_it(tmp_path: Path) -> None:
    data = tmp_path / "node"
    data.mkdir(mode=0o700)
    (data / "config.toml").write_text(config_text(Wishes(region="here")))
    put_on_chain(data, VALUES)
    config = load_config(data)
    assert (config.region, config.settlement.backend) == ("here", "evm")
    before = (data / "config.toml").read_text()
    put_on_chain(data, VALUES)
    assert (data / "config.toml").read_text() == before
    assert before.count("# ") == config_text(Wishes()).count("# ")


def test_a_file_that_would_not_read_well_is_left_alone(tmp_path: Path) -> None:
    text = config_text(Wishes())
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError):
        put_on_chain(tmp_path, {"chain": {"chain_id": 0}})
    assert (tmp_path / "config.toml").read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["config.toml"]
    with pytest.raises(ConfigError, match="cannot write"):
        put_on_chain(tmp_path / "nowhere", VALUES)


def test_the_block_to_paste_is_what_is_written() -> None:
    pasted = as_toml(VALUES)
    assert '[settlement]\nbackend = "evm"\n' in pasted
    assert parse_config(pasted, FILE).currency == escrow_currency(31337, ESCROW, TOKEN)


def test_coins_are_shown_rounded_down() -> None:
    assert format_coins(1_999_999_999_999_999_999) == "1.999999"
    assert format_coins(0) == "0.000000"
