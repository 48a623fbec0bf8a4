"""The compiled contracts that come with Hansa: the escrow, and the token for local chains and tests.

An escrow at some address is ours only if its code is: ``escrow_code`` says what must stand there. The artefacts are
made from ``contracts/`` by ``make contracts``; a test compiles the sources again and compares every byte.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hansa.proto.documents import escrow_domain

ESCROW = "HansaEscrow"
TEST_TOKEN = "TestToken"  # noqa: S105  (a coin, no password)
_FOLDER = Path(__file__).resolve().parent / "artefacts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A compiled contract.

    Attributes:
        name: the contract's.
        abi: its interface, as the compiler describes it.
        creation_code: what a transaction that deploys it carries, before the constructor's arguments.
        runtime_code: what then stands at its address, before its immutables.
        compiler: which compiler, in which version.
        source_sha256: the hash of the source text, as hex.
    """

    name: str
    abi: tuple[dict[str, Any], ...]
    creation_code: bytes
    runtime_code: bytes
    compiler: str
    source_sha256: str


def read_artefact(path: Path) -> Artefact:
    """Read an artefact as ``contracts/compile.py`` writes it."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Artefact(
        name=raw["contract"],
        abi=tuple(raw["abi"]),
        creation_code=bytes.fromhex(raw["bytecode"].removeprefix("0x")),
        runtime_code=bytes.fromhex(raw["runtime"].removeprefix("0x")),
        compiler=raw["compiler"],
        source_sha256=raw["source_sha256"],
    )


@cache
def artefact(name: str) -> Artefact:
    """The compiled contract of that name: ``ESCROW`` or ``TEST_TOKEN``."""
    return read_artefact(_FOLDER / f"{name}.json")


def escrow_code(chain_id: int, escrow: bytes) -> bytes:
    """What must stand at an address for it to be our escrow: the code, then its immutables (chain id and domain)."""
    separator = escrow_domain(chain_id, escrow).separator
    return artefact(ESCROW).runtime_code + chain_id.to_bytes(32, "big") + separator
