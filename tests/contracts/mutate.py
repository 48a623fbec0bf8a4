"""Break the escrow in every small way that comes to mind, and see whether the tests notice each.

    make mutate-contract

A mutant is the source with one thing changed: a comparison, a constant, an assertion or a write left out, a role or a
variable taken for another. Those that do not compile, or compile to the very same bytes, say nothing and are left out.
Each other one is deployed in place of the escrow by the attacks, the conformance suite and the fuzzer; one that all of
them let pass is a survivor. A survivor must be known to be equivalent, with the reason (``EQUIVALENT``), or the script
fails.
"""

import argparse
import importlib
import inspect
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "contracts" / "HansaEscrow.vy"
COMPILER = ROOT / "build" / "contracts-venv" / "bin" / "python"
SUITE = ("test_escrow_attacks", "test_backends", "test_escrow_fuzz")
LIMIT_S = 180
FUZZED = 10
COMPILERS = 2

# What survives and why that is right. The key is the mutated line as it stands then, with the function that it is in.
NO_SUCH_S = "an s of exactly n / 2 cannot be made to order: the signer's address is part of what is signed"
HALF = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
EQUIVALENT: dict[str, str] = {
    "_is_signer: if s >= HALF_CURVE_ORDER:": NO_SUCH_S,
    f"top: HALF_CURVE_ORDER: constant(uint256) = {HALF + 1}": NO_SUCH_S,
    f"top: HALF_CURVE_ORDER: constant(uint256) = {HALF - 1}": NO_SUCH_S,
    "openWithPermit: tx.origin,": "a payer that is a contract has no permit, and another's permit moves nothing here",
    "_is_signer: if v != 27 and v != 28: always False": "the chain recovers zero for any other v, and zero is refused",
    "_digest_of: if chain.id != DEPLOYED_ON: always True": "the same domain, worked out anew: it only costs more",
}

FLIPS = {
    " <= ": [" < "],
    " < ": [" <= "],
    " >= ": [" > "],
    " > ": [" >= "],
    " == ": [" != "],
    " and ": [" or "],
    " or ": [" and "],
    "msg.sender": ["tx.origin", "self"],
    " != ": [" == "],
    " + ": [" - "],
    " - ": [" + "],
    " += ": [" -= "],
    " -= ": [" += "],
    " * ": [" // "],
    " // ": [" * "],
    " | ": [" & "],
    " & ": [" | "],
    " << ": [" >> "],
    " >> ": [" << "],
    "~LOW_HALF": ["LOW_HALF"],
    "True": ["False"],
    "False": ["True"],
    "not self": ["self"],
}
ARITHMETIC_FROM = 8
ROLES = ("payer", "payerSigner", "payee", "payeeSigner")
SIBLINGS = (
    ("total", "claimed", "settled", "amount", "deposit", "before", "refund", "part", "payee_total"),
    ("OPEN", "CLOSING", "CLOSED", "UNSET"),
    ("COUNTED", "NOT_ABOVE_CLAIMED", "ABOVE_DEPOSIT", "BAD_SIGNATURE"),
    ("CONFIG_TYPE_HASH", "VOUCHER_TYPE_HASH", "CLOSE_TYPE_HASH"),
    ("payerSignature", "payeeSignature"),
)


Test = Callable[..., Any]
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Mutant:
    """One change: where, and the whole source with it."""

    line: int
    name: str
    source: str
    kind: int


def functions_of(lines: list[str]) -> list[str]:
    """The function that each line is in."""
    inside, found = "", []
    for line in lines:
        begun = re.match(r"def (\w+)", line)
        if begun:
            inside = begun[1]
        elif line and not line.startswith((" ", ")")):
            inside = ""
        found.append(inside)
    return found


def code_lines(lines: list[str]) -> list[int]:
    """The lines that do something: no comment, no docstring, no declaration of an event, interface or struct."""
    in_docstring, declaring, found = False, False, []
    for number, line in enumerate(lines):
        if line.strip().startswith('"""'):
            in_docstring = not in_docstring if line.strip().count('"""') == 1 else in_docstring
            continue
        if line and not line.startswith(" "):
            declaring = line.startswith(
                ("event ", "struct ", "interface ", "def ", "@", "#", ")", "money", "standings")
            )
            declaring = declaring or line.startswith("credits")
        if in_docstring or (declaring and not line.startswith("    ")) or not line.strip() or line.strip()[0] == "#":
            continue
        if declaring and not inside_function(lines, number):
            continue
        found.append(number)
    return found


def inside_function(lines: list[str], number: int) -> bool:
    """Whether a line is in the body of a function, and not in its signature."""
    for back in range(number, -1, -1):
        if re.match(r"(event|struct|interface) ", lines[back]):
            return False
        if lines[back].startswith("def "):
            return any(line.rstrip().endswith(":") for line in lines[back:number])
    return False


def changed(lines: list[str], number: int, text: str) -> str:
    return "\n".join([*lines[:number], text, *lines[number + 1 :]]) + "\n"


def replacements(line: str) -> Iterator[tuple[int, str]]:
    """A line with one thing in it taken for another, and how much that is worth trying: 0 the most."""
    words = line.split('"', maxsplit=1)[0] if "assert" in line else line
    for number, (old, news) in enumerate(FLIPS.items()):
        for at in (found.start() for found in re.finditer(re.escape(old), words)):
            for new in news:
                yield int(number >= ARITHMETIC_FROM), line[:at] + new + line[at + len(old) :]
    for found in re.finditer(r"config\.(payerSigner|payeeSigner|payer|payee)\b", words):
        for role in ROLES:
            if role != found[1]:
                yield 0, f"{line[: found.start()]}config.{role}{line[found.end() :]}"
    for family in SIBLINGS:
        for found in re.finditer(rf"(?<![\w.])({'|'.join(family)})\b(?!\s*[:=(][^=]|=)", words):
            for other in family:
                if other != found[1]:
                    yield 2, line[: found.start()] + other + line[found.end() :]
    is_constant = "constant(" in line
    for found in re.finditer(r"(?<![\w.x])\d[\d_]*(?![\w])", words):
        value = int(found[0].replace("_", ""))
        for other in (value + 1, value - 1) if is_constant and value else (value + 1,):
            yield int(not is_constant), line[: found.start()] + str(other) + line[found.end() :]
    for old, new in (
        ("0x1901", "0x1900"),
        ("0x1626ba7e", "0x1626ba7f"),
        ("0x0f", "0x0e"),
        ("uint128 cumulative", "uint256 cumulative"),
    ):
        if old in line:
            yield 0, line.replace(old, new)


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a source, each once."""
    lines = source.rstrip("\n").split("\n")
    functions = functions_of(lines)
    seen = {source}

    def make(number: int, text: str, said: str = "", kind: int = 0) -> Iterator[Mutant]:
        made = changed(lines, number, text)
        if made not in seen:
            seen.add(made)
            yield Mutant(
                line=number + 1, name=f"{functions[number] or 'top'}: {said or text.strip()}", source=made, kind=kind
            )

    yield from make(3, "# pragma nonreentrancy off")
    for number in code_lines(lines):
        line, indent = lines[number], re.match(r" *", lines[number])[0]  # type: ignore[index]
        known = "\n".join(
            text for text, function in zip(lines, functions, strict=True) if function == functions[number]
        )
        for kind, text in replacements(line):
            strange = {word for family in SIBLINGS[:1] for word in family if not re.search(rf"\b{word}:? ?", known)}
            if not any(re.search(rf"(?<![\w.]){word}\b(?!=)", text) for word in strange):
                yield from make(number, text, kind=kind)
        if re.match(r" +(assert|log|self\.\w+\(|self\.\w+\[.*\] =)", line) and balanced(line):
            yield from make(number, f"{indent}pass", f"without {line.strip()}")
        elif re.match(r" +(log|assert)", line):
            end = next(at for at in range(number, len(lines)) if balanced("\n".join(lines[number : at + 1])))
            cut = "\n".join([*lines[:number], f"{indent}pass", *lines[end + 1 :]]) + "\n"
            if cut not in seen:
                seen.add(cut)
                yield Mutant(line=number + 1, name=f"{functions[number]}: without {line.strip()}…", source=cut, kind=0)
        if "assert extcall" in line:
            yield from make(number, line.replace("assert extcall", "moved: bool = extcall").split(', "')[0])
        condition = re.match(r"( +(?:el)?if )(.*):$", line)
        if condition:
            for fixed in ("True", "False"):
                yield from make(number, f"{condition[1]}{fixed}:", f"{line.strip()} always {fixed}")
        type_string = re.match(r'    "(\w+)\((.*)\)"$', line)
        if type_string:
            yield from make(number, line.replace("(", "(bytes32 more,", 1), f"another type string: {type_string[1]}")
    name = 'NAME: constant(String[11]) = "HansaEscrow"'
    yield from make(lines.index(name), name.replace("Escrow", "EscroW"))


def balanced(text: str) -> bool:
    return text.count("(") == text.count(")") and text.count("[") == text.count("]")


# ------------------------------------------------------------ compiling, in the compiler's own Python


def compile_all(folder: Path, part: int) -> None:
    """Compile every ``*.vy`` of one part of a folder into a ``*.json`` beside it; none where it does not compile."""
    from vyper.compiler import compile_code

    for path in sorted(folder.glob("*.vy"))[part::COMPILERS]:
        try:
            done = compile_code(
                path.read_text(), contract_path="HansaEscrow.vy", output_formats=["abi", "bytecode", "bytecode_runtime"]
            )
        except Exception as error:  # noqa: BLE001  (whatever the compiler says no with)
            path.with_suffix(".no").write_text(str(error))
            continue
        artefact = {"contract": "HansaEscrow", "compiler": "vyper", "source_sha256": "", "abi": done["abi"]}
        artefact |= {"bytecode": done["bytecode"], "runtime": done["bytecode_runtime"]}
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(artefact))
        unfinished.rename(path.with_suffix(".json"))


# ------------------------------------------------------------ testing


def passes_the_suite(artefact: Path) -> str:
    """Run the suite on a mutant, in a fork of this process: the test that noticed it, or nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        verdict = "the suite could not be run"
        try:
            verdict = noticed_by(artefact)
        finally:
            os.write(writer, verdict.encode()[:4000])
            os._exit(0)
    os.close(writer)
    verdict = "it hung"
    if select.select([reader], [], [], LIMIT_S)[0]:
        verdict = os.read(reader, 4096).decode()
    else:
        os.kill(child, 9)
    os.close(reader)
    os.waitpid(child, 0)
    assert verdict != "the suite could not be run"
    return verdict


def noticed_by(artefact: Path) -> str:
    """The test that fails on a mutant, or nothing.

    The tests are called as pytest would, without its start, which costs more than they do.
    """
    import pytest
    import trio
    from hypothesis import settings

    os.environ["HANSA_ESCROW_MUTANT"] = str(artefact)
    attacks, backends, fuzz = (importlib.import_module(name) for name in SUITE)
    from kit.chain_in_process import ChainInProcess
    from kit.contract_house import ContractHouse
    from kit.escrow_bench import EscrowBench
    from kit.settlement_scene import Scene

    def bench(test: Test, arguments: Arguments) -> None:
        needs = {"bench": EscrowBench} if "bench" in inspect.signature(test).parameters else {}
        test(**{name: make() for name, make in needs.items()}, **arguments)

    def scene(test: Test, arguments: Arguments) -> None:
        trio.run(partial(test, scene=Scene(ContractHouse(ChainInProcess())), **arguments))

    for module, call in ((attacks, bench), (backends, scene)):
        for name, test, arguments in tests_of(module):
            try:
                call(test, arguments)
            except pytest.skip.Exception:
                continue
            except (Exception, pytest.fail.Exception):  # noqa: BLE001  (whatever it notices the mutant with)
                return name
    try:
        fuzz.run_state_machine_as_test(fuzz.EscrowAgainstModel, settings=settings(fuzz.BUDGET, max_examples=FUZZED))
    except (Exception, pytest.fail.Exception):  # noqa: BLE001
        return "test_escrow_fuzz"
    return ""


def tests_of(module: ModuleType) -> Iterator[tuple[str, Test, Arguments]]:
    """A module's tests, each with the arguments of its parametrizations."""
    for name, test in vars(module).items():
        if not name.startswith("test_"):
            continue
        cases: list[Arguments] = [{}]
        for mark in getattr(test, "pytestmark", []):
            if mark.name == "parametrize":
                (argument, values) = mark.args
                cases = [{**case, argument: value} for case in cases for value in values]
        for case in cases:
            yield name, test, case


def import_once() -> None:
    """What the tests import, before the forks and not in each of them."""
    sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("", "contracts", "conformance")]
    for name in ("eth_account.messages", "trio", *SUITE):
        importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", type=Path, help="compile the sources in a folder (by the compiler's Python)")
    parser.add_argument("--part", type=int, default=0, help="which part of them")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    parser.add_argument("--only", default="", help="only mutants whose name holds this")
    arguments = parser.parse_args()
    if arguments.compile:
        compile_all(arguments.compile, arguments.part)
        return 0
    made = [mutant for mutant in mutants(SOURCE.read_text(encoding="utf-8")) if arguments.only in mutant.name]
    made.sort(key=lambda mutant: mutant.kind)
    if arguments.list:
        for mutant in made:
            print(f"{mutant.line}: {mutant.name}")
        print(f"{len(made)} mutants")
        return 0
    os.chdir(ROOT)
    import_once()
    with tempfile.TemporaryDirectory() as folder:
        return tested(made, Path(folder))


def tested(made: list[Mutant], folder: Path) -> int:
    """Compile and test all of them; 1 if one survives that is not known to be equivalent."""
    sources = [SOURCE.read_text(encoding="utf-8"), *(mutant.source for mutant in made)]
    for number, source in enumerate(sources):
        # What a mutant does does not depend on how well it is compiled, and this is twice as quick.
        (folder / f"{number:04}.vy").write_text(source.replace("# pragma optimize gas", "# pragma optimize none"))
    order = [str(COMPILER), __file__, "--compile", str(folder), "--part"]
    compiling = [subprocess.Popen([*order, str(part)]) for part in range(COMPILERS)]
    killed, same, stillborn, survived = 0, 0, 0, []
    original = ""
    for number, mutant in enumerate([None, *made]):
        artefact = folder / f"{number:04}.json"
        while not artefact.exists() and not artefact.with_suffix(".no").exists():
            assert compiling[number % COMPILERS].poll() in (None, 0), "a compiler stopped"
            time.sleep(0.05)
        if artefact.with_suffix(".no").exists():
            stillborn += 1
            continue
        runtime = json.loads(artefact.read_text())["runtime"]
        if mutant is None:
            original = runtime
            noticed = passes_the_suite(artefact)
            assert noticed == "", f"{noticed} must pass on the escrow itself"
            continue
        if runtime == original:
            same += 1
            continue
        by = passes_the_suite(artefact)
        if by:
            killed += 1
            print(f"killed    {mutant.line}: {mutant.name}    by {by}", flush=True)
        else:
            survived.append(mutant)
            print(f"SURVIVED  {mutant.line}: {mutant.name}", flush=True)
    for each in compiling:
        each.wait()
    print(f"\n{len(made)} mutants: {stillborn} do not compile, {same} compile to the same bytes")
    print(f"of the other {killed + len(survived)}, {killed} were killed and {len(survived)} survived:")
    unknown = [mutant for mutant in survived if mutant.name not in EQUIVALENT]
    for mutant in survived:
        print(f"  {mutant.line}: {mutant.name}    {EQUIVALENT.get(mutant.name, 'NOT KNOWN TO BE EQUIVALENT')}")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
