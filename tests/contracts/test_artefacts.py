"""The artefacts are what the contracts' sources compile to, and the escrow's documents are ours."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from hansa.node.chain.escrow_artefact import ESCROW, TEST_TOKEN, artefact, escrow_code
from hansa.proto.documents import ChannelConfig, CooperativeClose, Voucher
from hansa.proto.typed_data import DOMAIN_TYPE, encode_type

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "contracts" / "HansaEscrow.vy"


def compiler_python() -> str | None:
    """A Python that has Vyper: the one of ``make contracts-venv``, or one on the path."""
    ours = ROOT / "build" / "contracts-venv" / "bin" / "python"
    if (ours.parent / "vyper").is_file():
        return str(ours)
    found = shutil.which("vyper")
    return None if found is None else str(Path(found).resolve().parent / "python")


@pytest.mark.slow
def test_every_artefact_is_byte_for_byte_what_its_source_compiles_to() -> None:
    python = compiler_python()
    if python is None or not Path(python).is_file():
        pytest.skip("no Vyper here: make contracts-venv")
    check = [python, str(ROOT / "contracts" / "compile.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "source"), [(ESCROW, SOURCE), (TEST_TOKEN, SOURCE.parent / "test" / "TestToken.vy")])
def test_an_artefact_names_the_source_that_lies_here(name: str, source: Path) -> None:
    assert artefact(name).source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert artefact(name).compiler.startswith("vyper 0.4.3")


@pytest.mark.parametrize("document", [ChannelConfig, Voucher, CooperativeClose])
def test_the_escrow_hashes_the_very_types_that_we_sign(document: type) -> None:
    source = SOURCE.read_text(encoding="utf-8")
    assert f'"{encode_type(document)}"' in source
    assert f'"{DOMAIN_TYPE}"' in source


def test_the_escrow_fits_a_chain_and_says_that_nobody_has_audited_it() -> None:
    assert len(escrow_code(1, b"\x01" * 20)) <= 24_576
    assert "EXPERIMENTAL AND UNAUDITED" in SOURCE.read_text(encoding="utf-8")
