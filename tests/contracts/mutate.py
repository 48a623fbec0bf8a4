"""Break the escrow in every small way that comes to mind, and see whether the tests notice each.

    make mutate-contract

A mutant is the source with one thing changed: a comparison, a constant, an assertion or a write left out, a role or a
variable taken for another. Those that do not compile, or compile to the very same bytes, say nothing and are left out.
Each other one is deployed in place of the escrow by the attacks, the conformance suite and the fuzzer; one that all of
them let pass is a survivor. A survivor must be known to be equivalent, with the reason (``equivalent_mutants.toml``),
or the script fails; it also fails where a reason stands there for a mutant that a test does notice, or for none.

It takes half an hour, so verdicts are kept (``--verdicts``) and a run that was stopped goes on where it was: what was
killed stays so while the contract and the test that noticed it read as they did. Survivors are tried anew each time,
and with ``--anew`` all of them.
"""

import argparse
import hashlib
import importlib
import inspect
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
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
REASONS = Path(__file__).with_name("equivalent_mutants.toml")
VERDICTS = ROOT / "build" / "mutants.jsonl"
FUZZER = "test_the_contract_does_what_the_model_does"
HUNG = "it hung"
LIMIT_S = 60
FUZZED = 10


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
# What is told and answered, and what would be nothing in its place.
TOLD = dict.fromkeys(("channelId", "splitsHash", "salt", "statement"), "empty(bytes32)")
TOLD |= dict.fromkeys(("payer", "payee", "payerSigner", "payeeSigner", "token", "account"), "empty(address)")
TOLD |= dict.fromkeys(("challengePeriod", "deposit", "cumulative", "paid", "index", "fault", "settled"), "0")
TOLD |= dict.fromkeys(("refund", "amount", "phase", "claimed", "closableAt"), "0")


Test = Callable[..., Any]
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Mutant:
    """One change: where, and the whole source with it."""

    line: int
    name: str
    source: str
    kind: int

    @property
    def digest(self) -> str:
        """What its verdict is kept under: the whole source, so that it holds for no other contract."""
        return hashlib.sha256(self.source.encode()).hexdigest()


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
    for found in re.finditer(r"\b(\w+)=(?!=)([^,()]+(?:\([^()]*\))?)", line):
        if found[1] in TOLD:
            yield 1, line[: found.start(2)] + TOLD[found[1]] + line[found.end(2) :]
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
        if re.match(r" +(assert|log|self\.\w+\(|self\.\w+\[.*\] =|\w+ [-+]?= |\w+\.append\()", line) and balanced(line):
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


def compile_all(folder: Path) -> None:
    """Compile every ``*.vy`` of a folder into a ``*.json`` beside it, or a ``*.no`` where it does not compile."""
    from vyper.compiler import compile_code

    for path in sorted(folder.glob("*.vy")):
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


def passes_the_suite(artefact: Path, *, only: str = "") -> str:
    """Run the suite, or one test of it, on a mutant, in a fork of this process: the test that noticed it, or none."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        # Time of its own and not of the clock: a busy machine is not what makes a mutant hang.
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
        try:
            os.write(writer, f"by {noticed_by(artefact, only)}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL), "the suite was ended from outside"
        return HUNG
    assert said.startswith("by "), "the suite could not be run"
    return said.removeprefix("by ")


def noticed_by(artefact: Path, only: str) -> str:
    """The test that fails on a mutant, or nothing.

    The tests are called as pytest would, without its start, which costs more than they do.
    """
    import pytest
    import trio
    from hypothesis import Phase, settings

    os.environ["HANSA_ESCROW_MUTANT"] = str(artefact)
    attacks, backends, fuzz = suite()
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
            if only not in ("", name):
                continue
            try:
                call(test, arguments)
            except pytest.skip.Exception:
                continue
            except (Exception, pytest.fail.Exception):  # noqa: BLE001  (whatever it notices the mutant with)
                return name
    if only:
        return ""
    try:
        # Whether there is a story that shows the difference is the question, and not which is the shortest.
        budget = settings(fuzz.BUDGET, max_examples=FUZZED, phases=(Phase.explicit, Phase.generate))
        fuzz.run_state_machine_as_test(fuzz.EscrowAgainstModel, settings=budget)
    except (Exception, pytest.fail.Exception):  # noqa: BLE001
        return FUZZER
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


def suite() -> list[ModuleType]:
    """The modules whose tests a mutant has to pass."""
    return [importlib.import_module(name) for name in SUITE]


def import_once() -> None:
    """What the tests import, before the forks and not in each of them."""
    sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("", "contracts", "conformance")]
    for name in ("eth_account.messages", "trio"):
        importlib.import_module(name)
    suite()


def fingerprints() -> dict[str, str]:
    """How each test reads now."""
    tests = {name: test for module in suite() for name, test, _ in tests_of(module)}
    tests |= {FUZZER: suite()[-1].EscrowAgainstModel, HUNG: passes_the_suite}
    return {name: hashlib.sha256(inspect.getsource(test).encode()).hexdigest()[:16] for name, test in tests.items()}


# ------------------------------------------------------------ verdicts

NOT_COMPILED, SAME, KILLED, SURVIVED = "does not compile", "compiles to the same bytes", "killed", "survived"


class Verdicts:
    """What is known of each mutant; kept in a file, a line for each, so that a stopped run goes on."""

    def __init__(self, path: Path, *, anew: bool) -> None:
        self._path, self._tests = path, fingerprints()
        self._known: dict[str, dict[str, str]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if anew:
            path.unlink(missing_ok=True)
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            if line.endswith("}"):  # what was being written when a run was stopped does not
                known = json.loads(line)
                self._known[known["mutant"]] = known

    def of(self, mutant: Mutant) -> dict[str, str] | None:
        """What holds of a mutant still; nothing where it has to be tried."""
        known = self._known.get(mutant.digest)
        if known is None or known["verdict"] == SURVIVED:
            return None
        return known if known["verdict"] != KILLED or self._tests.get(known["by"]) == known["test"] else None

    def keep(self, mutant: Mutant, verdict: str, by: str = "") -> None:
        """Write a verdict down at once."""
        known = {"mutant": mutant.digest, "verdict": verdict, "by": by, "test": self._tests.get(by, "")}
        self._known[mutant.digest] = known
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(known) + "\n")

    def count(self, made: list[Mutant], verdict: str) -> int:
        return len([mutant for mutant in made if self._known[mutant.digest]["verdict"] == verdict])

    def survivors(self, made: list[Mutant]) -> list[Mutant]:
        """Those that every test let pass."""
        return [mutant for mutant in made if self._known[mutant.digest]["verdict"] == SURVIVED]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", type=Path, help="compile the sources in a folder (by the compiler's Python)")
    parser.add_argument("--list", action="store_true", help="only list the mutants")
    parser.add_argument("--only", default="", help="only mutants whose name holds this")
    parser.add_argument("--verdicts", type=Path, default=VERDICTS, help="where verdicts are kept")
    parser.add_argument("--anew", action="store_true", help="try all of them again, whatever is known")
    arguments = parser.parse_args()
    if arguments.compile:
        compile_all(arguments.compile)
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
    verdicts = Verdicts(arguments.verdicts.resolve(), anew=arguments.anew)
    waiting = [mutant for mutant in made if verdicts.of(mutant) is None]
    print(f"{len(made)} mutants, {len(made) - len(waiting)} of them judged before", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        judge(waiting, verdicts, Path(folder))
    return summary(made, verdicts, is_whole=not arguments.only)


def judge(waiting: list[Mutant], verdicts: Verdicts, folder: Path) -> None:
    """Compile and test mutants, one after the other, while the next ones compile."""
    for number, source in enumerate([SOURCE.read_text(encoding="utf-8"), *(mutant.source for mutant in waiting)]):
        # What a mutant does does not depend on how well it is compiled, and this is twice as quick.
        (folder / f"{number:04}.vy").write_text(source.replace("# pragma optimize gas", "# pragma optimize none"))
    compiler = subprocess.Popen([str(COMPILER), __file__, "--compile", str(folder)])
    try:
        original = json.loads(compiled(compiler, folder / "0000.json").read_text())["runtime"]
        noticed = passes_the_suite(folder / "0000.json")
        assert noticed == "", f"{noticed} must pass on the escrow itself"
        for number, mutant in enumerate(waiting, start=1):
            artefact = compiled(compiler, folder / f"{number:04}.json")
            if not artefact.exists():
                verdicts.keep(mutant, NOT_COMPILED)
            elif json.loads(artefact.read_text())["runtime"] == original:
                verdicts.keep(mutant, SAME)
            elif by := passes_the_suite(artefact):
                verdicts.keep(mutant, KILLED, by)
                print(f"killed    {mutant.line}: {mutant.name}    by {by}", flush=True)
            else:
                verdicts.keep(mutant, SURVIVED)
                print(f"SURVIVED  {mutant.line}: {mutant.name}", flush=True)
    finally:
        compiler.kill()
        compiler.wait()


def compiled(compiler: subprocess.Popen[bytes], artefact: Path) -> Path:
    """Wait until the compiler is done with one source; where it does not compile, there is no such file."""
    while not artefact.exists() and not artefact.with_suffix(".no").exists():
        assert compiler.poll() in (None, 0), "the compiler stopped"
        time.sleep(0.05)
    return artefact


def summary(made: list[Mutant], verdicts: Verdicts, *, is_whole: bool) -> int:
    """Say what became of all of them; 1 if one survived without a reason, or has a reason and did not."""
    reasons = {
        f"{function}: {change}": reason
        for function, changes in tomllib.loads(REASONS.read_text(encoding="utf-8")).items()
        for change, reason in changes.items()
    }
    killed, survived = verdicts.count(made, KILLED), verdicts.survivors(made)
    print(f"\n{len(made)} mutants: {verdicts.count(made, NOT_COMPILED)} do not compile,", end=" ")
    print(f"{verdicts.count(made, SAME)} compile to the same bytes")
    print(f"of the other {killed + len(survived)}, {killed} were killed and {len(survived)} survived:")
    for mutant in survived:
        print(f"  {mutant.line}: {mutant.name}    {reasons.get(mutant.name, 'NOT KNOWN TO BE EQUIVALENT')}")
    unexplained = {mutant.name for mutant in survived} - set(reasons)
    unfounded = set(reasons) - {mutant.name for mutant in survived} if is_whole else set()
    for name in sorted(unfounded):
        print(f"  a reason is given for what did not survive: {name}")
    print(f"{len(unexplained)} survived without a reason")
    return 1 if unexplained or unfounded else 0


if __name__ == "__main__":
    sys.exit(main())
