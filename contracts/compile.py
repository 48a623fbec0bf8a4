"""Compile the contracts into artefacts: JSON with ABI, bytecode, and what they were compiled from and with.

Runs where Vyper is. ``make contracts`` makes such an environment, apart from ours: Vyper pins other versions of what we
use::

    python contracts/compile.py           writes every artefact anew
    python contracts/compile.py --check   compares byte for byte, and fails where one differs

The escrow's and the test token's go into the wheel; contracts that only tests deploy stay with the tests.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import vyper
from vyper.compiler import compile_code
from vyper.compiler.input_bundle import FilesystemInputBundle

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "contracts/HansaEscrow.vy": "node/chain/artefacts",
    "contracts/test/TestToken.vy": "node/chain/artefacts",
    "contracts/test/HostileToken.vy": "tests/contracts/artefacts",
    "contracts/test/ContractSigner.vy": "tests/contracts/artefacts",
}
EVM_VERSION = "cancun"


def artefact_of(source_path: Path) -> dict[str, object]:
    """Compile one contract.

    ``runtime`` is the deployed code without its immutables, which the constructor appends to it.
    """
    source = source_path.read_text(encoding="utf-8")
    done = compile_code(
        source,
        contract_path=source_path.name,
        output_formats=["abi", "bytecode", "bytecode_runtime"],
        input_bundle=FilesystemInputBundle([source_path.parent]),
    )
    return {
        "contract": source_path.stem,
        "experimental": "unaudited: use it with money that you can lose",
        "compiler": f"vyper {vyper.__long_version__}",
        "evm": EVM_VERSION,
        "source": source_path.relative_to(ROOT).as_posix(),
        "source_sha256": hashlib.sha256(source.encode()).hexdigest(),
        "abi": done["abi"],
        "bytecode": done["bytecode"],
        "runtime": done["bytecode_runtime"],
    }


def main() -> int:
    """Write or compare all artefacts; 1 when one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()
    differing = []
    for source, folder in SOURCES.items():
        source_path = ROOT / source
        target = ROOT / folder / f"{source_path.stem}.json"
        text = json.dumps(artefact_of(source_path), indent=1) + "\n"
        if not arguments.check:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            print(f"wrote {target.relative_to(ROOT)}")
        elif not target.is_file() or target.read_text(encoding="utf-8") != text:
            differing.append(target.relative_to(ROOT).as_posix())
    for name in differing:
        print(f"{name} is not what its source compiles to: run make contracts", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
