"""A job's packages, installed by the real uv in a real room: from an index, from its own wheels, from hostile ones."""

import contextlib
import dataclasses
import io
import os
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from functools import cache
from pathlib import Path

import pytest
import trio
from kit.wheels import a_wheel, an_index, lock_line, sha256

from hansa.node.isolation import process_tree
from hansa.node.isolation.build_room import Outcome, Tool, make_work, run_tool
from hansa.node.isolation.sandbox_equipment import find_equipment
from hansa.node.isolation.trees import Trees, open_to_everybody
from hansa.node.runs import compile_inside, environments
from hansa.node.runs.environments import Environments, NotBuilt, ShippedWheel, check_environments, from_job
from hansa.node.settings.environments_config import EnvironmentsConfig
from hansa.proto.errors import Malformed

RAY = "2.60.0"


@cache
def why_not() -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        return check_environments(Trees(Path(directory) / "t", quota_bytes=1 << 30))


@pytest.fixture(autouse=True)
def room() -> None:
    if why_not():
        pytest.skip(f"no room for tools on this machine: {why_not()}")


class Workshop:
    """Trees and what builds them."""

    def __init__(self, directory: Path, index: str = "file:///nowhere/simple") -> None:
        self.directory = directory
        config = EnvironmentsConfig(enabled=True, index=index, find_links=(), quota_bytes=1 << 30, images=())
        self.trees = Trees(directory, quota_bytes=1 << 30)
        self.environments = Environments(self.trees, config)

    def bring(self, lock: str, *wheels: Path, run: bytes = b"run") -> Path | None:
        shipped = [ShippedWheel(name=wheel.name, path=wheel) for wheel in wheels]
        return trio.run(self.environments.bring, lock, shipped, run, RAY)

    def everything(self) -> set[str]:
        return {str(path.relative_to(self.directory)) for path in self.directory.rglob("*")}


def imported(tree: Path, code: str) -> str:
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def test_packages_from_an_index_and_from_the_job_are_installed_once_and_compiled(tmp_path: Path) -> None:
    one = a_wheel(tmp_path / "w", "one", "1.0", {"one/__init__.py": "import two\nNAME = 'one+' + two.NAME\n"})
    two = a_wheel(tmp_path / "w", "two", "2.0", {"two.py": "NAME = 'two'\n"})
    shop = Workshop(tmp_path / "t", an_index(tmp_path / "index", one))
    lock = lock_line(one) + lock_line(two)
    tree = shop.bring(lock, two)
    assert tree is not None
    assert imported(tree, "import one; print(one.NAME)") == "one+two"
    assert list(tree.rglob("*.pyc")), "runs are not to compile it again each time"
    began = time.monotonic()
    assert shop.bring("# in another order\n" + lock_line(two) + lock_line(one), two, run=b"other") == tree
    assert time.monotonic() - began < 1.0
    assert Trees(tmp_path / "t", quota_bytes=1 << 30).names() == shop.trees.names()
    for path in (tree, *tree.rglob("*")):
        mode = path.stat().st_mode
        assert mode & (0o555 if stat.S_ISDIR(mode) else 0o444) == (0o555 if stat.S_ISDIR(mode) else 0o444)


def test_a_lock_of_nothing_is_no_environment(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "t")
    assert shop.bring(f"ray==2.60.0 --hash=sha256:{'a' * 64}\n") is None
    assert shop.bring("") is None


def test_two_runs_that_need_the_same_wait_for_one_build(tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path / "w", "one", "1.0", {"one.py": ""})
    shop = Workshop(tmp_path / "t")
    built: list[Tool] = []

    def counted(tool: Tool, given_up: threading.Event | None) -> Outcome:
        built.append(tool)
        return run_tool(tool, given_up)

    shop.environments._run_tool = counted
    found: list[Path | None] = []

    async def both() -> None:
        async def one(run: bytes) -> None:
            shipped = [ShippedWheel(name=wheel.name, path=wheel)]
            found.append(await shop.environments.bring(lock_line(wheel), shipped, run, RAY))

        async with trio.open_nursery() as nursery:
            for run in (b"1", b"2", b"3"):
                nursery.start_soon(one, run)

    trio.run(both)
    assert len(built) == 2, "installed once, and compiled once"
    assert len(set(found)) == 1


def test_a_file_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path / "w", "one", "1.0", {"one.py": ""})
    shop = Workshop(tmp_path / "t", an_index(tmp_path / "index", wheel))
    with pytest.raises(NotBuilt, match="cannot be installed here"):
        shop.bring(f"one==1.0 --hash=sha256:{'0' * 64}\n")
    assert shop.trees.names() == []
    assert list(shop.trees.work.iterdir()) == [shop.trees.cache]


def test_a_file_without_a_hash_is_not_installed_whoever_wrote_the_list(work: Path, tmp_path: Path) -> None:
    """No lock gets as far as this; uv is told to refuse it all the same."""
    wheels = tmp_path / "wheels"
    wheel = a_wheel(wheels, "one", "1.0", {"one.py": ""})
    for line, installed in (("one==1.0\n", False), (lock_line(wheel), True)):
        (wheels / "requirements.txt").write_text(line)
        open_to_everybody(wheels)
        outcome = run_tool(from_job(find_equipment(), work, wheels))
        assert outcome.ok == (work / "one.py").exists() == installed, outcome.words


def test_a_jobs_own_wheel_cannot_write_over_what_other_jobs_packages_are_made_of(tmp_path: Path) -> None:
    one = a_wheel(tmp_path / "w", "one", "1.0", {"one/__init__.py": "NAME = 'one'\n"})
    evil = a_wheel(tmp_path / "w", "evil", "1.0", {"one/__init__.py": "NAME = 'evil'\n"})
    shop = Workshop(tmp_path / "t", an_index(tmp_path / "index", one))
    first = shop.bring(lock_line(one) + lock_line(evil), evil)
    assert first is not None
    assert imported(first, "import one; print(one.NAME)") == "evil", "a job may spoil what it brought itself"
    second = shop.bring(lock_line(one), run=b"other")
    assert second is not None
    assert imported(second, "import one; print(one.NAME)") == "one"
    # How uv of today writes over a file does not matter: where a job's wheels come on top, nothing is shared.
    assert {path.stat().st_nlink for path in first.rglob("*") if path.is_file()} == {1}
    assert (second / "one" / "__init__.py").stat().st_nlink > 1, (
        "else packages would lie here once for each environment"
    )


def test_no_source_is_ever_built(tmp_path: Path) -> None:
    """A source whose build would leave a mark is on the index, its hash is in the lock, and yet it is not built."""
    backend = "open('/work/mark', 'w').close()\n"
    files = tmp_path / "index" / "files"
    files.mkdir(parents=True)
    with tarfile.open(files / "evil-1.0.tar.gz", "w:gz") as archive:
        for name, text in {
            "evil-1.0/pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n'
            '[project]\nname = "evil"\nversion = "1.0"\n',
            "evil-1.0/b.py": backend,
            "evil-1.0/PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    page = tmp_path / "index" / "simple" / "evil"
    page.mkdir(parents=True)
    (page / "index.html").write_text('<a href="../../files/evil-1.0.tar.gz">evil-1.0.tar.gz</a>')
    for path in (tmp_path / "index", *(tmp_path / "index").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shop = Workshop(tmp_path / "t", f"file://{tmp_path}/index/simple")
    with pytest.raises(NotBuilt):
        shop.bring(f"evil==1.0 --hash=sha256:{sha256(files / 'evil-1.0.tar.gz')}\n")
    assert not [path for path in shop.everything() if path.endswith("mark")]


@pytest.mark.parametrize(
    "inside",
    [
        "../escaped.py",
        "../../../../../../tmp/escaped.py",
        "/work/escaped.py",
        "/tmp/escaped.py",
        "evil-1.0.data/data/../../../escaped.py",
        "evil-1.0.data/purelib/../../escaped.py",
        "evil-1.0.data/scripts/../../escaped.py",
        "..\\escaped.py",
    ],
)
def test_a_wheel_whose_files_lead_elsewhere_leaves_nothing_there(tmp_path: Path, inside: str) -> None:
    wheel = a_wheel(tmp_path / "w", "evil", "1.0", {inside: "x", "evil.py": ""})
    shop = Workshop(tmp_path / "t")
    try:
        tree = shop.bring(lock_line(wheel), wheel)
    except NotBuilt:
        tree = None
    escaped = [path for path in shop.everything() if "escaped" in path]
    inside_tree = [] if tree is None else [str(path.relative_to(shop.directory)) for path in tree.rglob("*escaped*")]
    assert sorted(escaped) == sorted(inside_tree)
    assert not Path("/tmp/escaped.py").exists()


def test_a_wheel_with_links_gives_no_way_to_the_host(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    secret.chmod(0o600)
    links = {"evil/passwd": "/etc/passwd", "evil/up": "../../..", "evil/secret": str(secret)}
    wheel = a_wheel(tmp_path / "w", "evil", "1.0", {"evil/__init__.py": ""}, links=links)
    shop = Workshop(tmp_path / "t")
    try:
        tree = shop.bring(lock_line(wheel), wheel)
    except NotBuilt:
        return
    assert tree is not None
    for path in tree.rglob("*"):
        assert path.is_symlink() or path.is_file() or path.is_dir()
        if path.is_file() and not path.is_symlink():
            assert path.read_bytes() != b"key"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_an_index_packages_scripts_and_hooks_do_not_run_while_it_is_installed(tmp_path: Path) -> None:
    mark = "import os; open('/work/mark', 'w').close()\n"
    wheel = a_wheel(
        tmp_path / "w",
        "evil",
        "1.0",
        {
            "evil.pth": mark,
            "sitecustomize.py": mark,
            "usercustomize.py": mark,
            "compileall.py": mark,
            "encodings/evil.py": mark,
            "evil-1.0.data/scripts/run": "#!python\n" + mark,
        },
    )
    shop = Workshop(tmp_path / "t")
    tree = shop.bring(lock_line(wheel), wheel)
    assert tree is not None
    assert not [path for path in shop.everything() if path.endswith("mark")]


def test_a_bomb_is_stopped_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "MOST_BYTES", 40 << 20)
    wheel = a_wheel(tmp_path / "w", "bomb", "1.0", {f"bomb/{n}.bin": bytes(20 << 20) for n in range(8)})
    assert wheel.stat().st_size < 1 << 20
    shop = Workshop(tmp_path / "t")
    with pytest.raises(NotBuilt, match="more than 40 MiB"):
        shop.bring(lock_line(wheel), wheel)
    assert list(shop.trees.work.iterdir()) == [shop.trees.cache]


@pytest.mark.parametrize("levels", [600, 1900])
def test_a_wheel_of_directories_in_each_other_harms_nobody_after_it(tmp_path: Path, levels: int) -> None:
    deep = a_wheel(tmp_path / "w", "deep", "1.0", {"d/" * levels + "x.py": ""})
    one = a_wheel(tmp_path / "w", "one", "1.0", {"one.py": ""})
    shop = Workshop(tmp_path / "t", an_index(tmp_path / "index", deep, one))
    for wheels in ((deep,), ()):
        with pytest.raises(NotBuilt, match="cannot be installed here"):
            shop.bring(lock_line(deep), *wheels)
    assert Trees(tmp_path / "t", quota_bytes=1 << 30).names() == []
    assert shop.bring(lock_line(one)) is not None
    shop.trees.quota_bytes = 0
    shop.trees.make_room()
    assert list(shop.trees.cache.iterdir()) == []


def bring_and_watch(shop: Workshop, *wheels: Path) -> tuple[Path | None, int]:
    """What came of some wheels, and the most memory that everything below this process had meanwhile."""
    most, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            pids = process_tree.descendants(os.getpid())[1:]
            most[0] = max(most[0], process_tree.memory_bytes(pids, enough_bytes=1 << 40))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return shop.bring("".join(map(lock_line, wheels)), *wheels), most[0]
    finally:
        over.set()
        watcher.join()


COSTLY = b"x = [" + b"a.b(c) + d[e] * f, " * 2_000_000 + b"]\n"
"""One list, for which the compiler takes gigabytes."""


def test_a_module_that_is_costly_to_compile_is_left_to_its_run_and_the_others_are_compiled(tmp_path: Path) -> None:
    bomb = a_wheel(tmp_path / "w", "bomb", "1.0", {"a.py": "A = 1\n", "bomb.py": COSTLY, "z.py": "Z = 26\n"})
    assert bomb.stat().st_size < 200_000
    tree, most_bytes = bring_and_watch(Workshop(tmp_path / "t"), bomb)
    assert tree is not None
    assert {path.name.partition(".")[0] for path in tree.rglob("*.pyc")} == {"a", "z"}
    assert imported(tree, "import a, z; print(a.A + z.Z)") == "27"
    assert most_bytes < 1 << 30


def test_a_module_that_keeps_the_compiler_busy_is_left_to_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.py", "busy.py", "z.py"):
        (tmp_path / name).write_text("x = 1\n")
    compile_one = compile_inside.compile_one

    def busy(path: str) -> bool:
        while path.endswith("busy.py"):
            pass
        return compile_one(path)

    monkeypatch.setattr(compile_inside, "compile_one", busy)
    monkeypatch.setattr(compile_inside, "MOST_CPU_S", 1)
    if (pid := os.fork()) == 0:  # as a program of its own, as it is
        compile_inside.main(str(tmp_path))
        os._exit(0)
    deadline = time.monotonic() + 60
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            for one in process_tree.descendants(pid):
                os.kill(one, signal.SIGKILL)
        time.sleep(0.05)
    assert {path.name.partition(".")[0] for path in tmp_path.rglob("*.pyc")} == {"a", "z"}
    assert time.monotonic() < deadline


def test_a_wheel_whose_description_is_a_bomb_ends_the_installation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some files of a wheel are read whole, whatever they weigh."""
    monkeypatch.setattr(environments, "MOST_MEMORY_BYTES", 704 << 20)
    bomb = a_wheel(tmp_path / "w", "bomb", "1.0", {"bomb.py": ""})
    with zipfile.ZipFile(bomb) as old:
        files = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in files.items():
            with new.open(name, "w", force_zip64=True) as file:
                file.write(data)
                for _ in range(384 if name.endswith("/METADATA") else 0):
                    file.write(bytes(1 << 20))
    assert bomb.stat().st_size < 1 << 20
    shop = Workshop(tmp_path / "t", an_index(tmp_path / "index", bomb))
    with pytest.raises(NotBuilt, match="more than the 704 MiB of memory"):
        shop.bring(lock_line(bomb))


def test_a_tool_that_wants_more_memory_than_it_may_have_does_not_get_it(work: Path) -> None:
    code = "kept = [bytes(1 << 20) for _ in range(600)]"
    tool = from_job(find_equipment(), work, work)
    tool = dataclasses.replace(tool, command=(find_equipment().python, "-c", code), most_memory_bytes=256 << 20)
    outcome = run_tool(tool)
    assert (outcome.ok, outcome.too_much) == (False, True)
    assert outcome.words == "it wanted more than the 256 MiB of memory that it may have"
    assert run_tool(dataclasses.replace(tool, most_memory_bytes=1 << 30)).ok


def test_a_jobs_own_wheels_that_want_too_much_are_its_fault_and_an_indexs_are_not(tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path / "w", "one", "1.0", {"one.py": ""})
    shop = Workshop(tmp_path / "t")
    for too_much in (True, False):

        def fail(_tool: Tool, _given_up: threading.Event | None, *, too_much: bool = too_much) -> Outcome:
            return Outcome(ok=False, words="no", too_much=too_much)

        shop.environments._run_tool = fail
        for shipped in ((wheel,), ()):
            with pytest.raises(NotBuilt) as caught:
                shop.bring(lock_line(wheel), *shipped)
            assert caught.value.is_jobs_fault == (too_much and bool(shipped))


def test_a_jobs_own_wheels_may_weigh_more_than_the_rooms_own_memory_holds(tmp_path: Path) -> None:
    """They were unpacked in its /tmp first, which has 256 MiB."""
    wheel = a_wheel(tmp_path / "w", "large", "1.0", {"large/__init__.py": "", "large/data": bytes(280 << 20)})
    shop = Workshop(tmp_path / "t")
    tree = shop.bring(lock_line(wheel), wheel)
    assert tree is not None
    assert (tree / "large" / "data").stat().st_size == 280 << 20
    assert {path.name for path in tree.iterdir()} <= {"large", "large-1.0.dist-info", ".lock"}
    assert {path.stat().st_nlink for path in tree.rglob("*") if path.is_file()} == {1}


def test_a_small_wheel_does_not_fill_a_large_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "ROOM_BYTES", 64 << 20)
    wheel = a_wheel(tmp_path / "w", "bomb", "1.0", {f"bomb/{n}.bin": bytes(20 << 20) for n in range(8)})
    one = a_wheel(tmp_path / "w", "one", "1.0", {"one/data": os.urandom(8 << 20)})
    shop = Workshop(tmp_path / "t", an_index(tmp_path / "index", one))
    with pytest.raises(NotBuilt, match=r"left more than \d\d MiB") as caught:
        shop.bring(lock_line(one) + lock_line(wheel), wheel)
    assert caught.value.is_jobs_fault
    monkeypatch.setattr(environments, "ROOM_BYTES", 1 << 20)
    assert shop.bring(lock_line(one), one) is not None, "honest wheels have room by what they weigh"


def test_a_bomb_of_files_is_stopped_by_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "MOST_FILES", 300)
    wheel = a_wheel(tmp_path / "w", "bomb", "1.0", {f"bomb/{n}.txt": "" for n in range(1000)})
    shop = Workshop(tmp_path / "t")
    with pytest.raises(NotBuilt, match="more than 300 files"):
        shop.bring(lock_line(wheel), wheel)


def a_tool(work: Path, *command: str, **changes: object) -> Tool:
    facts: dict[str, object] = {"most_bytes": 1 << 30, "most_s": 30.0}
    return Tool(command=command, work=str(work), **(facts | changes))  # type: ignore[arg-type]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    make_work(tmp_path / "work")
    return tmp_path / "work"


def test_a_room_shows_nothing_of_the_host_and_may_write_to_one_place_only(work: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    code = (
        f"cat {secret} /root/.bashrc /etc/shadow 2>/dev/null; ls /root /home {tmp_path} 2>/dev/null; "
        "id -u; grep CapEff /proc/self/status; echo x > /work/ok && echo may; "
        "for p in /usr/x /etc/x /x /dev/x /proc/sys/kernel/core_pattern; do echo x 2>/dev/null > $p && echo $p; done; "
        "cat /proc/net/dev | grep -c :; ls /proc | grep -c '^[0-9]'"
    )
    outcome = run_tool(a_tool(work, "/bin/sh", "-c", code))
    lines = outcome.words.splitlines()
    assert lines[:3] == ["1000", "CapEff:\t0000000000000000", "may"], outcome.words
    assert not [line for line in lines if line.startswith("/")], outcome.words
    assert lines[-2] == "1", "only a loopback of its own"
    assert int(lines[-1]) < 6, "no process of the host"
    assert (work / "ok").read_text() == "x\n"


def test_a_room_without_network_reaches_nobody_here(work: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        command = f"exec 3<>/dev/tcp/127.0.0.1/{port} && echo reached"
        assert "reached" not in run_tool(a_tool(work, "/bin/bash", "-c", command)).words
        assert "reached" in run_tool(a_tool(work, "/bin/bash", "-c", command, network=True)).words


def test_a_tool_is_ended_when_its_time_is_over_or_nobody_waits(work: Path) -> None:
    began = time.monotonic()
    outcome = run_tool(a_tool(work, "/bin/sleep", "60", most_s=0.7))
    assert not outcome.ok
    assert "longer than 1 s" in outcome.words
    assert time.monotonic() - began < 5
    given_up = threading.Event()
    threading.Timer(0.5, given_up.set).start()
    began = time.monotonic()
    assert not run_tool(a_tool(work, "/bin/sleep", "60"), given_up).ok
    assert time.monotonic() - began < 5


def test_no_other_user_can_read_what_a_tool_is_told_in_confidence(work: Path) -> None:
    secret = "s3cret-" + "x" * 20
    tool = Tool(
        command=("/bin/sh", "-c", 'test -n "$TOKEN" && touch here && sleep 30'),
        work=str(work),
        variables={"TOKEN": secret},
        most_bytes=1 << 20,
        most_s=30.0,
    )
    given_up = threading.Event()
    room = threading.Thread(target=run_tool, args=(tool, given_up))
    room.start()
    while not (work / "here").exists():
        time.sleep(0.05)
    lines = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                lines.append((process / "cmdline").read_bytes())
    given_up.set()
    room.join()
    assert any(b"bwrap" in line for line in lines)
    assert not any(secret.encode() in line for line in lines)


def test_modules_where_the_daemon_was_started_mean_nothing(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "resource.py").write_text(f"open({str(planted / 'mark')!r}, 'w').close()\n")
    monkeypatch.chdir(planted)
    assert run_tool(Tool(command=("/bin/true",), work=str(work), most_bytes=1 << 20, most_s=30.0)).ok
    assert not (planted / "mark").exists()


def test_what_a_tool_prints_is_capped_and_never_blocks_it(work: Path) -> None:
    outcome = run_tool(a_tool(work, "/bin/sh", "-c", "head -c 30000000 /dev/zero | tr '\\0' x; echo end"))
    assert outcome.ok
    assert len(outcome.words) <= 16 << 10
    assert outcome.words.endswith("end")


def test_a_tool_ends_with_the_daemon_that_started_it(work: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from hansa.node.isolation.build_room import Tool, run_tool\n"
        f"run_tool(Tool(command=('/bin/sh', '-c', 'while :; do date +%s.%N > /work/alive; sleep 0.05; done'),"
        f" work={str(work)!r}, most_bytes=1 << 30, most_s=60))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 15
    while not (work / "alive").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(0.3)
    before = (work / "alive").read_text()
    time.sleep(0.4)
    assert (work / "alive").read_text() == before


def test_where_packages_come_from_is_not_told_to_strangers(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "t", "http://owner:password@127.0.0.1:9/own-mirror/simple")
    with pytest.raises(NotBuilt) as caught:
        shop.bring(f"one==1.0 --hash=sha256:{'0' * 64}\n")
    assert "an address of this provider's" in str(caught.value)
    assert not any(word in str(caught.value) for word in ("password", "owner", "own-mirror"))


def test_where_things_lie_here_is_not_told_to_strangers(tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path / "w", "one", "1.0", {"one.py": ""})
    shop = Workshop(tmp_path / "t")

    def failing(_tool: Tool, _given_up: threading.Event | None) -> Outcome:
        return Outcome(ok=False, words=f"bwrap: Can't find source path {tmp_path}/x: No such file")

    def raising(_tool: Tool, _given_up: threading.Event | None) -> Outcome:
        raise FileNotFoundError(2, "No such file", f"{tmp_path}/y")

    for run in (failing, raising):
        shop.environments._run_tool = run
        with pytest.raises(NotBuilt) as caught:
            shop.bring(lock_line(wheel), wheel)
        assert "No such file" in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def test_a_wheel_that_is_no_wheel_is_refused_in_words(tmp_path: Path) -> None:
    junk = tmp_path / "one-1.0-py3-none-any.whl"
    junk.write_bytes(b"junk")
    shop = Workshop(tmp_path / "t")
    with pytest.raises(NotBuilt):
        shop.bring(lock_line(junk), junk)
    other = tmp_path / "noname.whl"
    other.write_bytes(b"junk")
    with pytest.raises(Malformed):
        shop.bring(lock_line(junk), junk, other)
