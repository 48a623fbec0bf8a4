"""The config is checked to the last key, and hansa init writes one that passes."""

import itertools
import stat
from pathlib import Path

import pytest

from hansa.node.commands.first_setup import Wishes, config_text, set_up
from hansa.node.faults import ConfigError
from hansa.node.settings.config import default_data_dir, load_config
from hansa.proto.units import parse_amount, price_per_hour_to_e18
from hansa.scheduler.owner_rules import OwnerRules, parse_window


def written(directory: Path, text: str) -> Path:
    (directory / "config.toml").write_text(text)
    return directory


def refused(directory: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(written(directory, text))
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


LEAST = '[node]\nregion = ""\n'
"""A config that sets one key, to what it would be without it."""


@pytest.mark.parametrize("text", ["", "\n", "# mine\n", "[node]\n", "[provider]\n[provider.pricing]\n", "node = {}"])
def test_a_config_that_sets_nothing_is_refused_since_a_full_disk_leaves_such_a_file(tmp_path: Path, text: str) -> None:
    fault = refused(tmp_path, text)
    assert "config.toml: is empty" in fault.what
    assert f"hansa init --data {tmp_path}" in fault.hint


def test_a_node_whose_config_was_lost_is_made_again_around_its_keys(tmp_path: Path) -> None:
    made = set_up(tmp_path / "node", Wishes())
    (tmp_path / "node" / "config.toml").write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        set_up(tmp_path / "node", Wishes())
    (tmp_path / "node" / "config.toml").unlink()
    again = set_up(tmp_path / "node", Wishes())
    assert (again.account, again.peer_id) == (made.account, made.peer_id)


def test_what_a_config_does_not_say_is_safe(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, LEAST))
    assert not config.provider.enabled
    assert config.provider.cpu_slots == 0
    assert config.provider.tier == "sandbox"
    assert config.sandbox.require
    assert config.settlement.credit_limit == parse_amount("10")
    assert config.metrics.port == 9477
    assert config.api_socket == tmp_path / "api.sock"


def test_the_template_states_the_defaults(tmp_path: Path) -> None:
    from_template = load_config(written(tmp_path, config_text(Wishes())))
    assert from_template == load_config(written(tmp_path, LEAST))


def test_every_key_of_the_template_is_explained() -> None:
    lines = config_text(Wishes()).splitlines()
    for above, line in itertools.pairwise(lines):
        if " = " in line and not line.startswith("#"):
            assert above.startswith("#") or " = " in above, f"nothing explains {line}"


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("[node]\nregoin = 'x'\n", "config.toml:2: node.regoin: unknown key", "region"),
        ("[provder]\n", "provder: unknown key", "provider"),
        ("[node]\ncurrency = 'usd'\n", "config.toml:2: node.currency", "USD"),
        ("[provider]\nprice_per_hour = '-0.4'\n", "provider.price_per_hour: must not be negative", "0.40"),
        ("[provider]\nprice_per_hour = 0.4\n", "provider.price_per_hour: must be text in quotes", "0.40"),
        ("[provider]\nenabled = 'yes'\n", "provider.enabled: must be true or false", "true"),
        ("[provider]\ncpu_slots = 'many'\n", "provider.cpu_slots", "0"),
        ("[provider]\ncpu_slots = -1\n", "provider.cpu_slots: is -1", "0"),
        ("[provider]\ngpus = 'some'\n", "provider.gpus", "[]"),
        ("[provider]\naccept_buyers = []\n", "provider.accept_buyers: names nobody", "enabled"),
        ("[provider]\naccept_buyers = ['0x12']\n", "provider.accept_buyers", "any"),
        (
            "[provider]\naccept_buyers = ['0x52908400098527886E0F7030069857D2E4169Ee7']\n",
            "checksum",
            "accept_buyers",
        ),
        ("[provider]\ntier = 'sandbx'\n", "provider.tier", 'did you mean "sandbox"'),
        ("[provider]\nmemory_per_slot = 4\n", "provider.memory_per_slot: must be text", "MiB"),
        ("[network]\nlisten = '/ip4/0.0.0.0/tcp/1'\n", "network.listen: must be a list", "["),
        ("[network]\nlisten = []\n", "network.listen: must name at least one", "4001"),
        ("[network]\nlisten = ['0.0.0.0:4001']\n", "network.listen: holds something that is no multiaddr", "tcp"),
        ("[network]\nbootstrap = ['/ip4/1.2.3.4/tcp/4001']\n", "network.bootstrap: holds an address without", "p2p"),
        ("[network]\nlisten = ['/ip4/300.1.1.1/tcp/1']\n", "config.toml:2: network.listen: ", "4001"),
        ("[network]\nlisten = ['/ip4/127.0.0.1/tcp/99999']\n", "part that is none: /tcp/99999", "4001"),
        ("[network]\nlisten = ['/dns4/a.example/tcp/1']\n", "is not an IP address and a TCP port", "4001"),
        ("[network]\nannounce = ['/ip6/::zz/tcp/1']\n", "part that is none: /ip6/::zz", "4001"),
        ("[network]\nannounce = ['/ip4/1.2.3.4/udp/1/tcp/1']\n", "not known here: udp", "4001"),
        ("[network]\nbootstrap = ['/ip4/1.2.3.4/tcp/1/p2p/nobody']\n", "part that is none: /p2p/nobody", "p2p"),
        ("[metrics]\nport = 70000\n", "metrics.port: is 70000", "65535"),
        ("[settlement]\nbackend = 'escrows'\n", "settlement.backend", "ledger"),
        ("[sandbox]\nrequire = false\n", "sandbox.require: may not be false while anybody", "accept_buyers"),
        ("[provider]\ntier = 'none'\n", "sandbox.require: cannot hold", "sandbox"),
        ("[egress]\nallow = ['10.0.0.1:80']\n", "egress.allow: holds something that is no host: private", "pypi.org"),
        ("[egress]\nallow = ['https://pypi.org']\n", "egress.allow: holds something that is no host", "pypi.org"),
        ("[egress]\ndeny = ['pypi.org']\n", "egress.deny: holds something that is no network", "/16"),
        ("[egress]\nrate = '1 KiB'\n", "egress.rate: is too small", "MiB"),
        ("[rules]\nhours = '22-7'\n", "rules.hours: holds something that is no hours", "22:00-07:00"),
        ("[rules]\nhours = ['1:00-2:00', 'xyz 1:00-2:00']\n", "rules.hours: holds something", "mon"),
        ("[rules]\nhours = 7\n", "rules.hours: must be a list", "hours"),
        ("[rules]\ntime_zone = 'Mars/North'\n", "rules.time_zone: is none that", "Europe/Berlin"),
        ("[rules]\ntime_zone = '../../etc/passwd'\n", "rules.time_zone: is none that", "Europe/Berlin"),
        ("[rules]\nmax_temperature_c = 500\n", "rules.max_temperature_c: is 500", "120"),
        ("[rules]\nused_within = '1 ms'\n", "rules.used_within: is too", "s"),
        ("[rules]\nmax_price = '1'\n", "rules.max_price: unknown key", "hours"),
        ("[buyer]\nmax_job_budget = '1.0000001'\n", "buyer.max_job_budget: an amount has at most 6", "1.25"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_a_way_out(tmp_path: Path, text: str, place: str, hint: str) -> None:
    fault = refused(tmp_path, text)
    assert place in fault.what
    assert hint in fault.hint


def test_addresses_of_every_form_are_taken(tmp_path: Path) -> None:
    name = set_up(tmp_path / "another", Wishes()).peer_id
    bootstrap = (
        f"/dns4/tcp/tcp/4001/p2p/{name}",
        f"/ip6/2001:db8::7/tcp/4001/p2p/{name}/p2p-circuit/p2p/{name}",
    )
    text = f"[network]\nlisten = ['/ip4/0.0.0.0/tcp/0', '/ip6/::/tcp/4001']\nbootstrap = {list(bootstrap)}\n"
    assert load_config(written(tmp_path, text)).network.bootstrap == bootstrap


def test_a_mark_at_the_beginning_that_some_editors_write_is_no_mistake(tmp_path: Path) -> None:
    file = written(tmp_path, "") / "config.toml"
    file.write_bytes(b"\xef\xbb\xbf[node]\r\nregion = 'Bergen'\r\n")
    assert load_config(tmp_path).region == "Bergen"


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        (bytes(512), "holds zero bytes, as a power cut leaves them", "copy"),
        (b"a = " + b"[" * 20_000, "lists within lists without end", "plainer"),
    ],
)
def test_a_file_that_nobody_wrote_so_is_refused_in_words(tmp_path: Path, content: bytes, what: str, hint: str) -> None:
    (written(tmp_path, "") / "config.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert what in caught.value.what
    assert str(tmp_path) in caught.value.what
    assert hint in caught.value.hint


def test_the_owner_may_run_his_own_jobs_without_a_sandbox(tmp_path: Path) -> None:
    text = (
        "[sandbox]\nrequire = false\n[provider]\ntier = 'none'\n"
        "accept_buyers = ['0x52908400098527886E0F7030069857D2E4169EE7']\n"
    )
    config = load_config(written(tmp_path, text))
    assert config.provider.accept_buyers == {bytes.fromhex("52908400098527886e0f7030069857d2e4169ee7")}


def test_hosts_are_read_in_their_one_form_and_none_are_allowed_unasked(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, LEAST)).egress.allow == ()
    allow = "allow = ['*.HuggingFace.co', 'pypi.org:443', 'pypi.org']"
    deny = "deny = ['11.22.0.0/16', '2606:4700::/32']"
    egress = load_config(written(tmp_path, f"[egress]\n{allow}\n{deny}\n")).egress
    assert egress.allow == ("*.huggingface.co:443", "pypi.org:443")
    assert [str(network) for network in egress.deny] == ["11.22.0.0/16", "2606:4700::/32"]


def test_the_owners_hours_are_those_of_his_own_clock(tmp_path: Path) -> None:
    text = '[rules]\nhours = "mon-fri 22:00-07:00"\ntime_zone = "Europe/Berlin"\n'
    text += "max_temperature_c = 80\npower_limit_w = 250\n"
    rules = load_config(written(tmp_path, text)).rules
    assert rules.owner.windows == (parse_window("mon-fri 22:00-07:00"),)
    winter_ms, summer_ms = 1_767_225_600_000, 1_782_864_000_000
    assert (rules.utc_offset_s(winter_ms), rules.utc_offset_s(summer_ms)) == (3600, 7200)
    assert (rules.health.max_temperature_c, rules.power_limit_w) == (80, 250)
    plain = load_config(written(tmp_path, LEAST)).rules
    assert (plain.owner, plain.health.max_temperature_c, plain.power_limit_w) == (OwnerRules(), None, None)


def test_a_directory_without_a_node_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert "hansa init" in caught.value.hint


def test_a_path_too_long_for_a_socket_is_refused_at_once(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    assert "too long" in refused(deep, "").what


def test_hansa_data_wins_over_the_home_directory() -> None:
    assert default_data_dir({"HANSA_DATA": "/srv/hansa"}) == Path("/srv/hansa")
    assert default_data_dir({}).name == ".hansa"


def test_set_up_makes_a_private_directory_with_keys_and_a_config_that_reads(tmp_path: Path) -> None:
    wishes = Wishes(provides=True, price_per_hour="0.45", cpu_slots=1, region='Köln "Süd"', metrics_port=0)
    made = set_up(tmp_path / "node", wishes)
    config = load_config(tmp_path / "node")
    assert config == made.config
    assert config.provider.enabled
    assert config.provider.price_e18_per_device_ms == price_per_hour_to_e18("0.45")
    assert (config.provider.cpu_slots, config.region, config.metrics.port) == (1, 'Köln "Süd"', 0)
    assert stat.S_IMODE((tmp_path / "node").stat().st_mode) == 0o700
    for path in (tmp_path / "node").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert made.peer_id.startswith("16Uiu2")


def test_set_up_never_overwrites(tmp_path: Path) -> None:
    set_up(tmp_path / "node", Wishes())
    before = {path: path.read_bytes() for path in (tmp_path / "node").iterdir()}
    with pytest.raises(ConfigError, match="lives in"):
        set_up(tmp_path / "node", Wishes())
    assert {path: path.read_bytes() for path in (tmp_path / "node").iterdir()} == before


def test_an_interrupted_set_up_is_finished_by_the_next_with_the_same_keys(tmp_path: Path) -> None:
    first = set_up(tmp_path / "node", Wishes())
    (tmp_path / "node" / "config.toml").unlink()
    second = set_up(tmp_path / "node", Wishes())
    assert (second.account, second.peer_id) == (first.account, first.peer_id)


def test_a_lost_node_key_is_made_anew_and_nothing_else_is_touched(tmp_path: Path) -> None:
    data = tmp_path / "node"
    first = set_up(data, Wishes(price_per_hour="0.45"))
    before = {path: path.read_bytes() for path in data.iterdir() if path.name != "node.key"}
    (data / "node.key").unlink()
    second = set_up(data, Wishes(price_per_hour="0.50"))
    assert second.renamed
    assert not first.renamed
    assert (second.account, second.config) == (first.account, first.config)
    assert second.peer_id != first.peer_id
    assert {path: path.read_bytes() for path in data.iterdir() if path.name != "node.key"} == before


def test_a_lost_account_is_never_made_anew_beside_its_config(tmp_path: Path) -> None:
    data = tmp_path / "node"
    set_up(data, Wishes())
    for name in ("node.key", "account.json"):
        (data / name).unlink()
    with pytest.raises(ConfigError, match="lives in"):
        set_up(data, Wishes())
    assert not (data / "node.key").exists()


def test_a_wish_out_of_range_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="price_per_hour"):
        set_up(tmp_path / "node", Wishes(price_per_hour="-1"))
    assert not (tmp_path / "node").exists()
