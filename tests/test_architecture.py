"""The house's rules, read from the code with ``ast``. No exemptions: what breaks a rule is moved or changed."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("proto", "market", "scheduler", "node", "worker")
MAY_IMPORT = {
    "proto": {"proto"},
    "market": {"proto", "market"},
    "scheduler": {"proto", "market", "scheduler"},
    "node": {"proto", "market", "scheduler", "node"},
    "worker": {"proto", "worker"},
}
PURE = ("proto", "market", "scheduler")
IMPURE_MODULES = {
    "asyncio",
    "datetime",
    "glob",
    "http",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "queue",
    "random",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "trio",
    "urllib",
    "uuid",
}
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}
ONE_PLACE = {
    "libp2p": ("node/network/libp2p_",),
    "multiaddr": ("node/network/libp2p_",),
    "ray": ("worker/",),
    "pynvml": ("node/devices/nvml.py",),
    "amdsmi": ("node/devices/amd.py",),
    "sqlite3": (
        "node/engine/journal.py",
        "node/ledger/ledger_store.py",
        "node/ledger/head_store.py",
        "node/chain/evm_store.py",
    ),
    "eth_abi": ("node/chain/evm_escrow.py",),
    "eth_account": ("node/chain/keystore.py", "node/chain/evm_signing.py"),
    "sha3": ("proto/keccak.py",),
    # The market's histograms are filled where things are counted; the page shows them.
    "prometheus_client": ("node/api/metrics.py", "node/api/market_figures.py"),
    "hypercorn": ("node/api/http_server.py",),
    "httpx": ("node/api/cli_client.py", "node/chain/json_rpc.py"),
    "click": ("node/commands/cli",),
    # TLS between machines, sealing, the wrapping of keys for a provider, and of those on this disk.
    "cryptography": (
        "node/storage/pinned_tls.py",
        "node/storage/sealing.py",
        "node/messaging/key_exchange.py",
        "node/storage/job_keys.py",
    ),
    "h11": ("node/runs/egress_",),
    "idna": ("proto/egress.py",),
    "yaml": ("node/jobs/import_yaml.py",),
    "tomlkit": ("node/chain/chain_setup.py",),
    "zeroconf": ("node/messaging/lan_discovery.py",),
    "ifaddr": ("node/messaging/lan_discovery.py",),
    "miniupnpc": ("node/network/upnp_process.py",),
}
WORKER_THIRD_PARTY = {"ray", "numpy", "safetensors", "msgpack"}
LONGEST_MODULE_LINES, LONGEST_FUNCTION_LINES = 600, 75
"""Past 400 and 60 one looks for the seam; past these there has always been one."""
FORBIDDEN_WORDS = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}


ROOMS = (
    "commands",
    "jobs",
    "daemon",
    "agents",
    "api",
    "runs",
    "pricing",
    "isolation",
    "chain",
    "messaging",
    "ledger",
    "engine",
    "storage",
    "network",
    "settings",
    "devices",
)
"""The folders of the node, the highest first: each imports those below it, and what lies in ``node/`` itself."""
UPWARDS = {
    ("node/devices/inventory.py", "hansa.node.settings.provider_config"),  # what the owner says of devices
    ("node/devices/inventory.py", "hansa.node.settings.share_config"),
    ("node/engine/queueing.py", "hansa.node.messaging.book"),  # given to it, and only read: which adverts are new
}
FOLDERS = (*PACKAGES, *(f"node/{room}" for room in ROOMS))


def modules(folder: str) -> list[Path]:
    """All of a package, in the node with its rooms; or those of one room."""
    here = sorted((ROOT / folder).glob("*.py"))
    rooms = ROOMS if folder == "node" else ()
    return here + [path for room in rooms for path in sorted((ROOT / folder / room).glob("*.py"))]


EVERY_MODULE = [path for package in PACKAGES for path in modules(package)]


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Every import of a module, also those inside functions, as the dotted name that is imported from."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.module == "hansa":
                for alias in node.names:
                    yield node, f"hansa.{alias.name}"
            else:
                yield node, node.module or ""


def where(path: Path, node: ast.stmt | ast.expr) -> str:
    return f"{shown(path)}:{node.lineno}"


def test_there_is_code_to_look_at() -> None:
    assert len(EVERY_MODULE) > 50
    for package in PACKAGES:
        assert modules(package)


def test_imports_follow_the_dependency_rule() -> None:
    wrong = []
    for package in PACKAGES:
        for path in modules(package):
            for node, name in imports(path):
                top, _, rest = name.partition(".")
                ours = rest.split(".")[0]
                if top == "hansa" and ours in PACKAGES and ours not in MAY_IMPORT[package]:
                    wrong.append(f"{where(path, node)} imports {name}")
                assert top not in PACKAGES, f"{where(path, node)} imports {name} without hansa."
    assert wrong == []


def when_running(path: Path) -> Iterator[str]:
    """What a module imports when it runs: without what stands there for the types alone, which may name anything."""
    waiting: list[ast.AST] = [tree_of(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        waiting += ast.iter_child_nodes(node)


def test_no_import_is_relative_or_takes_everything() -> None:
    for path in EVERY_MODULE:
        for node, name in imports(path):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{where(path, node)} imports relatively"
                assert all(alias.name != "*" for alias in node.names), f"{where(path, node)} imports all of {name}"


def test_pure_packages_have_no_clock_chance_files_or_threads() -> None:
    wrong = []
    for package in PURE:
        for path in modules(package):
            for node, name in imports(path):
                if name.split(".")[0] in IMPURE_MODULES:
                    wrong.append(f"{where(path, node)} imports {name}")
            wrong += [
                f"{where(path, call)} calls {call.func.id}"
                for call in ast.walk(tree_of(path))
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in IMPURE_CALLS
            ]
    assert wrong == []


def test_each_third_party_system_is_named_in_one_place() -> None:
    wrong = []
    for path in EVERY_MODULE:
        for node, name in imports(path):
            allowed = ONE_PLACE.get(name.split(".")[0])
            if allowed is not None and not shown(path).startswith(allowed):
                wrong.append(f"{where(path, node)} imports {name}, which belongs to {', '.join(allowed)}")
    assert wrong == []


def test_the_worker_brings_little_into_the_sandbox() -> None:
    for path in modules("worker"):
        for node, name in imports(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names | WORKER_THIRD_PARTY | {"hansa"}, (
                f"{where(path, node)} imports {name}"
            )


def test_the_node_never_imports_the_worker_and_nothing_imports_the_examples() -> None:
    for path in EVERY_MODULE:
        for node, name in imports(path):
            assert not name.startswith("hansa.node.examples"), where(path, node)
            assert shown(path).startswith("worker/") or not name.startswith("hansa.worker"), where(path, node)


def test_every_module_class_and_function_that_others_use_says_what_it_is() -> None:
    wrong = []
    for path in EVERY_MODULE:
        tree = tree_of(path)
        if not ast.get_docstring(tree):
            wrong.append(f"{shown(path)} has no docstring")
        wrong += [
            f"{where(path, node)} {node.name} has no docstring"
            for node in public_parts(tree.body)
            if not ast.get_docstring(node)
        ]
    assert wrong == []


def public_parts(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_parts(node.body)


def test_no_module_has_a_name_that_says_nothing() -> None:
    for path in EVERY_MODULE:
        assert not FORBIDDEN_WORDS & set(path.stem.split("_")), shown(path)


def test_no_module_and_no_function_is_too_long_to_be_read_at_once() -> None:
    wrong = []
    for path in EVERY_MODULE:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        wrong += [f"{shown(path)} has {lines} lines"] if lines > LONGEST_MODULE_LINES else []
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                wrong += (
                    [f"{where(path, node)} {node.name} has {lines} lines"] if lines > LONGEST_FUNCTION_LINES else []
                )
    assert wrong == []


def test_no_child_of_ours_looks_for_modules_where_its_parent_was_started() -> None:
    """``python -m`` looks in the working directory first, so a ``json.py`` lying there would be run, ``-P`` aside."""
    found, wrong = 0, []
    for path in EVERY_MODULE:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.List | ast.Tuple):
                words = [ast.unparse(each).strip("'") for each in node.elts]
                if "-m" in words and not words[words.index("-m") + 1].isdigit():  # mkfs takes a number by that name
                    found += 1
                    wrong += [where(path, node)] if words[words.index("-m") - 1] != "-P" else []
    assert found > 9
    assert wrong == []


def test_a_room_of_the_node_imports_only_those_below_it() -> None:
    taken = set()
    wrong = []
    for path in modules("node"):
        own = path.parent.name
        for name in when_running(path):
            there = name.split(".")[2:3]
            if name.startswith("hansa.node.") and there[0] in ROOMS and there[0] != own:
                module = ".".join(name.split(".")[:4])
                if own != "node" and ROOMS.index(own) < ROOMS.index(there[0]):
                    continue
                if (shown(path), module) in UPWARDS:
                    taken.add((shown(path), module))
                else:
                    wrong.append(f"{shown(path)} imports {module}, which stands above it")
    assert wrong == []
    assert taken == UPWARDS, "an exception that nobody takes any more"


def test_every_folder_of_the_node_is_a_room_and_no_two_modules_have_one_name() -> None:
    folders = {path.parent.name for path in (ROOT / "node").glob("*/*.py") if not path.parent.is_symlink()}
    assert folders == set(ROOMS)
    names = [path.name for path in modules("node")]
    assert len(set(names)) == len(names), "a name says which module is meant, without its room"


def test_no_two_modules_of_tests_have_one_name() -> None:
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == [], "pytest takes one for the other"


@pytest.mark.parametrize("package", FOLDERS)
def test_a_folders_readme_names_every_module_of_it_and_none_that_is_not_there(package: str) -> None:
    named = set(re.findall(r"`(\w+\.py)`", (ROOT / package / "README.md").read_text(encoding="utf-8")))
    assert {path.name for path in sorted((ROOT / package).glob("*.py"))} - named == set(), "a row is missing"
    assert named - {path.name for path in EVERY_MODULE} == set(), "a row of the table is of something that is gone"


def test_folders_of_code_are_no_packages_and_have_a_readme() -> None:
    for folder in FOLDERS:
        assert not (ROOT / folder / "__init__.py").exists()
        assert (ROOT / folder / "README.md").is_file()
    for package in PACKAGES:
        link = ROOT / "src" / "hansa" / package
        assert link.is_symlink()
        assert link.resolve() == ROOT / package


def test_no_folder_or_file_at_the_root_shadows_anything_importable() -> None:
    """The root is on the path of every ``python -m`` started here, and Ray puts it on its workers' path."""
    taken = set(packages_distributions()) | set(sys.stdlib_module_names)
    for path in ROOT.iterdir():
        importable = path.is_dir() and (path / "__init__.py").exists()
        if importable or path.suffix == ".py":
            assert path.stem not in taken, f"{path.name} shadows an installed module"
        assert not (path.is_dir() and path.name in sys.stdlib_module_names), f"{path.name} has a standard module's name"


def test_no_path_of_the_wire_goes_through_a_float() -> None:
    """Money and prices are integers: neither package that decides about them divides with ``/`` or calls ``float``."""
    for path in [*modules("market"), ROOT / "proto" / "units.py"]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.BinOp):
                assert not isinstance(node.op, ast.Div), f"{where(path, node)} divides into a float"


@pytest.mark.parametrize(
    ("source", "found"),
    [("import hansa.node.x", "hansa.node.x"), ("from hansa import node", "hansa.node"), ("def f():\n import os", "os")],
)
def test_the_reader_of_imports_sees_them_all(tmp_path: Path, source: str, found: str) -> None:
    module = tmp_path / "module.py"
    module.write_text(source)
    assert [name for _, name in imports(module)] == [found]
