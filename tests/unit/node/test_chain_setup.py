"""Putting a node on a chain changes the keys that it is about, and nothing else of what the owner wrote."""

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hansa.node.chain.chain_setup import put_on_chain, with_values
from hansa.node.commands.first_setup import Wishes, config_text
from hansa.node.faults import ConfigError
from hansa.node.settings.config import load_config

VALUES: dict[str, dict[str, Any]] = {
    "settlement": {"backend": "evm"},
    "chain": {"rpc": ["http://127.0.0.1:8545"], "chain_id": 31337, "poll": "1 s"},
}
FILE = Path("/srv/hansa/config.toml")
TABLES = ("settlement", "chain", "node", "chain.deep", "other")
KEYS = ("rpc", "backend", "region", '"poll"', "'chain_id'", "inner.rpc")
VALUE_TEXTS = (
    "1",
    '"evm"',
    '"[chain]"',
    "'# no comment'",
    "[]",
    '[\n  "http://a", # first\n  "http://b",\n]',
    '"""\n[chain]\nrpc = 1\n"""',
    "'''\nchain_id = 7\n[settlement]\n'''",
    '{ rpc = ["x"], chain_id = 4 }',
    "2026-01-01T00:00:00Z",
)


def merged(text: str) -> dict[str, Any]:
    """What a text says, with the values in it."""
    whole = tomllib.loads(text)
    for table, keys in VALUES.items():
        whole.setdefault(table, {}).update(keys)
    return whole


@st.composite
def owners_files(draw: st.DrawFn) -> str:
    """Whatever an owner may have made of the file: tables in any form and order, comments and blank lines anywhere."""
    room = st.sampled_from(("", " ", "\t"))
    note = st.sampled_from(("", "", " # note", "#note", " # [chain]"))
    value = st.sampled_from(VALUE_TEXTS)
    names = draw(st.lists(st.sampled_from(TABLES), unique=True, max_size=5))
    lines: list[str] = []
    for name in [each for each in ("settlement", "chain") if each not in names]:
        form = draw(st.sampled_from(("absent", "inline", "dotted", "quoted")))
        if form == "inline":
            lines.append(f"{name} = {{ {draw(st.sampled_from(('', 'rpc = []', 'x = 1, rpc = [ 1 ]')))} }}{draw(note)}")
        if form == "dotted":
            lines += [f"{name}.rpc = {draw(value)}{draw(note)}", f"{name}.backend={draw(value)}"]
        if form == "quoted":
            lines.append(f'"{name}" . {draw(st.sampled_from(("rpc", "backend")))} = 3{draw(note)}')
    for name in names:
        header = draw(st.sampled_from(("[{}]", "[{}]", " [ {} ]", "[ {}]\t", "[[{}]]"))).format(name)
        lines.append(header + draw(note))
        for key in draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=4)):
            lines += draw(st.sampled_from(((), (), ("",), ("# alone",))))
            lines.append(f"{draw(room)}{key}{draw(room)}={draw(room)}{draw(value)}{draw(note)}")
    return draw(st.sampled_from(("\n", "\r\n"))).join(lines) + draw(st.sampled_from(("", "\n")))


def unreadable(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return True
    return False


@settings(max_examples=100, deadline=None)
@given(owners_files())
def test_whatever_the_owner_wrote_says_the_same_but_for_the_values_or_is_left_alone(text: str) -> None:
    assume(not unreadable(text))
    try:
        changed = with_values(text, VALUES, FILE)
    except ConfigError:
        assert not all(isinstance(tomllib.loads(text).get(table, {}), dict) for table in VALUES)
        return
    assert tomllib.loads(changed) == merged(text)
    assert changed.count("# alone") == text.count("# alone")
    assert changed.count("note") >= text.count("note")
    assert with_values(changed, VALUES, FILE) == changed, "what is there already is not touched"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[chain] # mine\n rpc = [] # where\n",
        "[ chain ]\n\tchain_id=1\n",
        '["chain"]\n"rpc" = []\n',
        "chain = { rpc = [] } # mine\n",
        "chain.rpc = []\nsettlement.backend = 'ledger'\n",
        "[node]\nregion = '''\n[chain]\nrpc = 1\n'''\n[chain]\n",
        '[chain]\nrpc = [ # several\n  "http://a",\n  "http://b", # the other\n]\npoll = "9 s"\n',
        '[chain]\r\nrpc = []\r\n\r\n[node]\r\nregion = ""\r\n',
        "[chain]\nrpc = []\n[node]\nregion = ''\n[settlement]\nbackend = 'ledger' # for now",
        "[settlement]\n[[other]]\n# at the end",
        "[settlement]\nx.y.z = 1",
    ],
)
def test_a_table_is_found_in_every_form_that_toml_has(text: str) -> None:
    changed = with_values(text, VALUES, FILE)
    assert tomllib.loads(changed) == merged(text)
    for note in ("# mine", "# where", "# for now", "# at the end"):
        assert changed.count(note) == text.count(note)
    if "\r\n" in text:
        assert changed.count("\n") == changed.count("\r\n"), "lines end as they ended before"


def test_what_says_so_already_keeps_its_lines() -> None:
    rpc = 'rpc = [ # mine\n  "http://127.0.0.1:8545", # for now\n]'
    assert rpc in with_values(f"[chain]\n{rpc}\n", VALUES, FILE)


def test_every_line_of_the_template_stays_but_for_those_that_change() -> None:
    text = config_text(Wishes(region="here"))
    before, after = text.splitlines(), with_values(text, VALUES, FILE).splitlines()
    gone, come = [line for line in before if line not in after], [line for line in after if line not in before]
    assert len(gone) == len(come) == 4
    assert [line.partition(" =")[0] for line in gone] == [line.partition(" =")[0] for line in come]


@pytest.mark.parametrize(
    "text", ["chain = 5\n", "[[chain]]\nrpc = []\n", "[chain]\n[chain]\n", "[chain", "chain = {}\n[chain]\n"]
)
def test_what_is_no_toml_or_no_table_is_said_and_left_alone(text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml"):
        with_values(text, VALUES, FILE)


def test_the_files_rights_stay_and_so_does_a_link(tmp_path: Path) -> None:
    kept, data = tmp_path / "kept.toml", tmp_path / "node"
    data.mkdir(mode=0o700)
    chain = VALUES["chain"] | {"escrow": "0x" + "e5" * 20, "token": "0x" + "70" * 20}
    kept.write_text(config_text(Wishes()))
    kept.chmod(0o640)
    if has_attributes := _has_attributes(tmp_path):
        os.setxattr(kept, "user.hansa", b"kept")
    (data / "config.toml").symlink_to(kept)
    put_on_chain(data, VALUES | {"chain": chain})
    assert (data / "config.toml").is_symlink()
    assert load_config(data).settlement.backend == "evm"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640
    if has_attributes:
        assert os.getxattr(kept, "user.hansa") == b"kept"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept.toml", "node"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_stays_that_users(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(config_text(Wishes()))
    os.chown(file, 65001, 65002)
    chain = VALUES["chain"] | {"escrow": "0x" + "e5" * 20, "token": "0x" + "70" * 20}
    put_on_chain(tmp_path, VALUES | {"chain": chain})
    assert (file.stat().st_uid, file.stat().st_gid) == (65001, 65002)


def _has_attributes(directory: Path) -> bool:
    probe = directory / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.hansa", b"")
    except OSError:
        return False
    finally:
        probe.unlink()
    return True
