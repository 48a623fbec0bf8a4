"""A job's own Python packages: built from its lock outside every sandbox, once, and shown read-only to its runs.

Nothing of a stranger's runs while they are built: only wheels are taken, never a source that would have to be built;
every file must have a hash that the lock names; and uv, which unpacks them, sits in a room of its own. What comes from
the index is installed with the network and without any file of the job's; what the job ships is installed after that,
without the network. The result is known by what went into it and shared by all runs that need the same.
"""

import hashlib
import logging
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import trio
from uv import find_uv_bin

from hansa.node.isolation.build_room import WORK, Outcome, TooDeep, Tool, run_in_thread, run_tool, tree_size, ways_out
from hansa.node.isolation.host_paths import without_host_paths
from hansa.node.isolation.sandbox_equipment import Equipment, SandboxUnavailable, find_equipment
from hansa.node.isolation.tree_removal import remove_tree
from hansa.node.isolation.trees import Trees, open_to_everybody
from hansa.node.runs import compile_inside
from hansa.node.runs.builder import RunTool, tool_runner
from hansa.node.runs.images import check_images
from hansa.node.runs.locks import (
    Locked,
    check_wheel_name,
    chosen,
    digest_of,
    parse_lock,
    requirements_text,
    without_provided,
)
from hansa.node.settings.environments_config import EnvironmentsConfig
from hansa.proto.market_documents import FEATURE_DEPENDENCIES, FEATURE_IMAGE

UV = "/opt/uv"
PROBE_WHEEL = "hansa_probe-1-py3-none-any.whl"
MOST_S = 20 * 60.0
MOST_COMPILE_S = 5 * 60.0
MOST_MEMORY_BYTES = 2 << 30
"""Of address space, for uv, which reads some files of a wheel's whole; 0.6 GiB of it is only reserved."""
MOST_OFFLINE_MEMORY_BYTES = 1 << 30
"""The same on a job's own wheels, which are unpacked in little room."""
MOST_COMPILE_BYTES = 512 << 20
THREADS = 4
"""Of uv's, of each of two kinds: as many as there are processors would reserve as many times the memory."""
MOST_BYTES = 20 << 30
OWN_CACHE = ".hansa-cache"
ROOM_BYTES, ROOM_PER_BYTE = 1 << 30, 20
"""For a job's own wheels, whatever they weigh, and for each byte of them."""
MOST_FILES = 500_000
LONGEST_WORDS = 1_500


LOGGER = logging.getLogger("hansa.furnish")
_ADDRESS = re.compile(r"(https?|file)://[^\s`'\"]+")


class NotBuilt(Exception):
    """The packages could not be had here; the words are for the buyer.

    Attributes:
        is_jobs_fault: whether they could be had nowhere.
    """

    def __init__(self, why: str, *, is_jobs_fault: bool = False) -> None:
        """Keep both."""
        super().__init__(why)
        self.is_jobs_fault = is_jobs_fault


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedWheel:
    """A wheel that the job brings.

    Attributes:
        name: its file name, which says what it is.
        path: where it lies here.
    """

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be built.

    Attributes:
        key: its name.
        fetched: what comes from the owner's index.
        shipped: what the job brings, each with its wheels.
    """

    key: str
    fetched: tuple[Locked, ...]
    shipped: tuple[tuple[Locked, tuple[ShippedWheel, ...]], ...]


class Environments:
    """Builds and keeps environments. One is built at a time."""

    def __init__(self, trees: Trees, config: EnvironmentsConfig) -> None:
        """``trees`` keeps them; the owner says where packages come from."""
        self._trees = trees
        self._config = config
        self._run_tool = tool_runner(config.builder)

    async def bring(self, lock: str, wheels: Sequence[ShippedWheel], run: bytes, pinned_version: str) -> Path | None:
        """The directory with everything that a lock names; ``None`` if that is nothing.

        It stays until ``Trees.let_go``. Two runs that need the same wait for one build.

        Raises:
            Malformed: the lock is none, or asks for what cannot be.
            NotBuilt: it cannot be had here.
        """
        plan = await trio.to_thread.run_sync(make_plan, lock, wheels, pinned_version)
        if not plan.fetched and not plan.shipped:
            return None
        if (ready := await trio.to_thread.run_sync(self._trees.take, plan.key, run)) is not None:
            return ready
        async with self._trees.building:
            if (ready := await trio.to_thread.run_sync(self._trees.take, plan.key, run)) is not None:
                return ready
            await run_in_thread(partial(self._build, plan))
            ready = await trio.to_thread.run_sync(self._trees.take, plan.key, run)
            await trio.to_thread.run_sync(self._trees.make_room)
        if ready is None:
            raise NotBuilt("the packages were built and are gone again: this provider's quota for them is too small")
        return ready

    def _build(self, plan: Plan, given_up: threading.Event) -> None:
        made = self._trees.begin()
        try:
            with tempfile.TemporaryDirectory(dir=self._trees.directory, prefix="input-") as given:
                tools = self._tools(plan, made, Path(given))
                open_to_everybody(Path(given))
                for tool in tools:
                    _check_place(made)
                    if not tool.network:
                        tool = replace(tool, most_bytes=min(tool.most_bytes, _room_for(plan, made)))  # noqa: PLW2901
                    outcome = self._run_tool(tool, given_up)
                    if not outcome.ok:
                        words = f"the job's packages cannot be installed here: {self._words(outcome)}"
                        raise NotBuilt(words, is_jobs_fault=outcome.too_much and not tool.network)
            _check_place(made)
            remove_tree(made / OWN_CACHE)
            outcome = self._run_tool(compiler(find_equipment(), made), given_up)
            if not outcome.ok:
                # Python compiles what it finds uncompiled; only the runs begin later.
                LOGGER.info("not all of a job's packages were compiled: %s", self._words(outcome))
            self._trees.publish(made, plan.key)
        except TooDeep as fault:
            raise NotBuilt("the job's packages cannot be installed here: their directories are too deep") from fault
        except (SandboxUnavailable, OSError) as fault:
            raise NotBuilt(f"the job's packages cannot be installed here: {without_host_paths(str(fault))}") from fault
        finally:
            self._trees.discard(made)

    def _tools(self, plan: Plan, made: Path, given: Path) -> list[Tool]:
        """The steps, with what they are given written down where they can only read it."""
        equipment = find_equipment()
        tools = []
        if plan.fetched:
            (given / "fetched.txt").write_text(requirements_text(plan.fetched))
            tools.append(self._from_index(equipment, made, given / "fetched.txt", copied=bool(plan.shipped)))
        if plan.shipped:
            (given / "wheels").mkdir(mode=0o755)
            for _, wheels in plan.shipped:
                for wheel in wheels:
                    shutil.copyfile(wheel.path, given / "wheels" / wheel.name)
            text = requirements_text(package for package, _ in plan.shipped)
            (given / "wheels" / "requirements.txt").write_text(text)
            tools.append(from_job(equipment, made, given / "wheels"))
        return tools

    def _from_index(self, equipment: Equipment, made: Path, wanted: Path, *, copied: bool) -> Tool:
        """Its own cache and what is being made are all that it may write to.

        ``copied`` if wheels of the job's own come on top: whatever writes over these files then must not write over
        those of the cache, which other jobs' packages are made of.
        """
        command = [
            *_install(equipment, f"{WORK}/{made.name}", "/opt/fetched.txt"),
            *("--link-mode", "copy" if copied else "hardlink", "--cache-dir", f"{WORK}/cache"),
        ]
        read = [*_tool_binds(equipment), (str(wanted), "/opt/fetched.txt")]
        # An address may hold a password, and arguments can be read by every user of this machine.
        places = {"UV_DEFAULT_INDEX": self._config.index}
        hidden = [place for place in self._config.find_links if "," not in place]  # which is what uv parts them by
        if hidden:
            places["UV_FIND_LINKS"] = ",".join(hidden)
        for place in set(self._config.find_links) - set(hidden):
            command += ["--find-links", place]
        read += [(local, local) for local in _local_places(self._config)]
        outward, certificates = ways_out()
        read += certificates
        return Tool(
            command=tuple(command),
            work=str(self._trees.work),
            read=tuple(read),
            variables={**_variables(equipment), **outward, **places},
            network=True,
            most_bytes=2 * self._config.quota_bytes,
            most_files=4 * MOST_FILES,
            most_s=MOST_S,
            most_memory_bytes=MOST_MEMORY_BYTES,
        )

    def _words(self, outcome: Outcome) -> str:
        """What uv said, without where this owner's packages come from: an address may hold a password."""
        words = _ADDRESS.sub("(an address of this provider's)", outcome.words)
        for place in self._config.find_links:
            words = words.replace(place, "(a place of this provider's)")
        return without_host_paths(words)[-LONGEST_WORDS:]


def make_plan(lock: str, wheels: Sequence[ShippedWheel], pinned_version: str) -> Plan:
    """What a lock comes to on this machine. Blocks: wheels are hashed.

    Raises:
        Malformed: it is none, or names what cannot be.
    """
    wanted = without_provided(chosen(parse_lock(lock)), pinned_version)
    by_hash: dict[str, ShippedWheel] = {}
    for wheel in wheels:
        check_wheel_name(wheel.name)
        by_hash[_sha256(wheel.path)] = wheel
    fetched, shipped = [], []
    for package in wanted:
        own = tuple(digest for digest in package.hashes if digest in by_hash)
        if own:
            exact = Locked(name=package.name, version=package.version, marker="", hashes=own)
            shipped.append((exact, tuple(by_hash[digest] for digest in own)))
        else:
            fetched.append(package)
    used = [digest for package, _ in shipped for digest in package.hashes]
    python = f"{platform.python_implementation()}-{python_version()}"
    key = digest_of([*fetched, *(package for package, _ in shipped)], used, python, sysconfig.get_platform())
    return Plan(key=key, fetched=tuple(fetched), shipped=tuple(shipped))


def python_version() -> str:
    """The sandbox's Python, which is this one, as ``"3.11"``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def from_job(equipment: Equipment, made: Path, wheels: Path) -> Tool:
    """Install wheels of the job's own: without the network, and without the cache of what other jobs use.

    It leaves a cache of its own beside them, which is to be removed (`OWN_CACHE`).
    """
    command = [
        *_install(equipment, WORK, "/opt/wheels/requirements.txt"),
        # Where there is room: without a cache uv unpacks in /tmp, which is memory, and little.
        *("--link-mode", "copy", "--cache-dir", f"{WORK}/{OWN_CACHE}"),
        *("--offline", "--no-index", "--find-links", "/opt/wheels"),
    ]
    return Tool(
        command=tuple(command),
        work=str(made),
        read=(*_tool_binds(equipment), (str(wheels), "/opt/wheels")),
        variables=_variables(equipment),
        most_bytes=MOST_BYTES,
        most_files=MOST_FILES,
        most_s=MOST_S,
        most_memory_bytes=MOST_OFFLINE_MEMORY_BYTES,
    )


def compiler(equipment: Equipment, made: Path) -> Tool:
    """Compile what was installed, so that runs need not: no module may take more than a modest time and memory."""
    return Tool(
        # Neither the environment's variables nor its packages have a say in what this interpreter does.
        command=(equipment.python, "-I", "-S", "/opt/compile.py", WORK),
        work=str(made),
        read=(*_tool_binds(equipment), (str(Path(compile_inside.__file__).resolve()), "/opt/compile.py")),
        variables=_variables(equipment),
        most_bytes=MOST_BYTES,
        most_files=MOST_FILES,
        most_s=MOST_COMPILE_S,
        most_memory_bytes=MOST_COMPILE_BYTES,
    )


def _room_for(plan: Plan, made: Path) -> int:
    """What may lie there once the job's own wheels are installed. Honest ones become a few times as large, twice."""
    shipped_bytes = sum(wheel.path.stat().st_size for _, wheels in plan.shipped for wheel in wheels)
    return tree_size(made)[0] + ROOM_BYTES + ROOM_PER_BYTE * shipped_bytes


def _check_place(made: Path) -> None:
    """One tool may not lead the next one elsewhere, whatever it made of its directory."""
    if made.is_symlink() or not made.is_dir():
        raise NotBuilt("the job's packages cannot be installed here: the first of them broke the rest")


def check_environments(trees: Trees, run: RunTool = run_tool) -> str:
    """Install a package in a room, as a job's would be; answers why that does not work, or nothing. Blocks."""
    made = trees.begin()
    try:
        with tempfile.TemporaryDirectory(dir=trees.directory, prefix="input-") as given:
            folder = Path(given)
            digest = _write_probe(folder / PROBE_WHEEL)
            probe = Locked(name="hansa-probe", version="1", marker="", hashes=(digest,))
            (folder / "requirements.txt").write_text(requirements_text([probe]))
            open_to_everybody(folder)
            outcome = run(from_job(find_equipment(), made, folder), None)
        if outcome.ok and not (made / "hansa_probe.py").is_file():
            return "uv said that it installed a package, and did not"
    except (SandboxUnavailable, OSError) as fault:
        return str(fault)
    finally:
        trees.discard(made)
    return "" if outcome.ok else outcome.words[-LONGEST_WORDS:]


def find_furnishings(trees: Trees, config: EnvironmentsConfig) -> frozenset[str]:
    """What jobs can bring to run on, by what works on this machine when it is tried. Blocks for a moment."""
    found = set()
    run = tool_runner(config.builder)
    if config.enabled:
        why = check_environments(trees, run)
        if why:
            LOGGER.warning("no packages are installed for jobs: %s", why)
        else:
            found.add(FEATURE_DEPENDENCIES)
    why = check_images(trees, run)
    if not why:
        found.add(FEATURE_IMAGE)
    LOGGER.info("images for jobs: %s", why or "as they ask for them")
    return frozenset(found)


def _write_probe(wheel: Path) -> str:
    """The smallest wheel there is; answers its hash."""
    info = "hansa_probe-1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hansa_probe.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: hansa-probe\nVersion: 1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"hansa_probe.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return _sha256(wheel)


def _install(equipment: Equipment, target: str, requirements: str) -> list[str]:
    """What every command line of uv has in common: no configuration, no source build, no file without a hash."""
    return [
        *(UV, "pip", "install", "--no-config", "--no-progress", "--color", "never"),
        *("--python", equipment.python, "--no-python-downloads", "--system-certs"),
        *("--target", target, "--requirements", requirements, "--require-hashes", "--only-binary", ":all:"),
        *("--no-deps", "--index-strategy", "unsafe-best-match"),
    ]


def _tool_binds(equipment: Equipment) -> tuple[tuple[str, str], ...]:
    """The tool itself, and the interpreter that it installs for."""
    python = tuple((host, inside) for host, inside in equipment.binds if inside == "/opt/py")
    return ((find_uv_bin(), UV), *python)


def _variables(equipment: Equipment) -> dict[str, str]:
    threads = {"TOKIO_WORKER_THREADS": str(THREADS), "UV_CONCURRENT_INSTALLS": str(THREADS)}
    return threads if equipment.library_path is None else {**threads, "LD_LIBRARY_PATH": equipment.library_path}


def _local_places(config: EnvironmentsConfig) -> list[str]:
    """What of the owner's packages lies on this machine. A local index leads to files beside it."""
    places = [place for place in config.find_links if place.startswith("/")]
    url = urlsplit(config.index)
    if url.scheme == "file":
        parent = str(Path(unquote(url.path)).parent)
        places.append(parent if parent != "/" else unquote(url.path))
    return places


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
