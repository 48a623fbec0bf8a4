"""``hansa chain dev``: a local chain in one command, kept across restarts; and how to get it where it is missing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit.chain_on_anvil import anvil_program

from hansa.node.chain import chain_dev
from hansa.node.chain.chain_dev import find_anvil, free_port, running_anvil
from hansa.node.commands.first_setup import Wishes, set_up
from hansa.node.faults import OperatorError
from hansa.node.settings.config import load_config
from hansa.proto.currency import currency_of
from hansa.proto.signing import checksum_address


def chain_dev_once(room: Path, *more: str) -> Any:
    """What the command says when all is set up; it stops then."""
    program = anvil_program()
    command = [sys.executable, "-m", "hansa", "chain", "dev", "--once", "--json", "--state", str(room)]
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(room.parent)}
    port = str(free_port())
    done = subprocess.run(
        [*command, "--port", port, *more], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_chain_is_made_kept_and_written_into_a_nodes_config(tmp_path: Path) -> None:
    made = set_up(tmp_path / "node", Wishes())
    said = chain_dev_once(tmp_path / "chain", "--write", str(tmp_path / "node"), "--give", "0x" + "11" * 20)
    assert said["given"] == ["0x" + "11" * 20, checksum_address(made.account)]
    config = load_config(tmp_path / "node")
    assert config.chain is not None
    assert config.chain.rpc == (said["url"],)
    currency = currency_of(config.currency)
    assert (currency.chain_id, checksum_address(currency.escrow)) == (31337, said["escrow"])
    again = chain_dev_once(tmp_path / "chain")
    assert [again[key] for key in ("escrow", "token")] == [said[key] for key in ("escrow", "token")]
    other = chain_dev_once(tmp_path / "other")
    assert other["escrow"] == said["escrow"], "a fresh chain puts the same contracts at the same places"


def test_where_anvil_is_missing_the_hint_is_the_command_that_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chain_dev, "anvil_room", lambda: tmp_path / "nowhere")
    with pytest.raises(OperatorError) as caught:
        find_anvil(tmp_path)
    assert caught.value.hint.startswith(f"npm install --prefix {tmp_path / 'nowhere'} @foundry-rs/anvil")
    program = tmp_path / "nowhere" / "node_modules" / "@foundry-rs" / "anvil-linux-amd64" / "bin" / "anvil"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    with pytest.raises(OperatorError):
        find_anvil()
    program.chmod(0o755)
    assert find_anvil() == program


def test_a_port_that_is_taken_is_said() -> None:
    program, port = anvil_program(), free_port()
    with (
        running_anvil(program, port=port),
        pytest.raises(OperatorError, match="listens on port"),
        running_anvil(program, port=port),
    ):
        pass


def test_what_does_not_start_is_said(tmp_path: Path) -> None:
    program = tmp_path / "anvil"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(OperatorError, match="did not start"), running_anvil(program, port=free_port()):
        pass
