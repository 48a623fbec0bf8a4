"""The command as a person types it: through click, over a real socket, to a real API with a desk in memory."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result
from kit.memory_desk import PROVIDERS, MemoryDesk, changed, job_view, output_view
from rich.console import Console

from hansa.node.api.http_api import build_api
from hansa.node.api.http_server import serve_api
from hansa.node.commands.cli import cli
from hansa.node.commands.cli_results import write_output
from hansa.node.commands.cli_screen import follow, news, render
from hansa.node.commands.cli_tables import print_jobs
from hansa.node.faults import OperatorError
from hansa.node.plain_text import plain, short_account
from hansa.proto.blob import blob_ref

JOB = "ab" * 32
HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]x[/]\r\n\u202egnp.exe"


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def desk() -> MemoryDesk:
    return MemoryDesk()


@pytest.fixture
def data(tmp_path: Path, desk: MemoryDesk) -> Iterator[Path]:
    """A data directory whose daemon runs, in a thread of its own."""
    directory = tmp_path / "node"
    directory.mkdir(mode=0o700)
    ready = threading.Event()
    stop: list[Any] = []

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_api, build_api(desk), directory / "api.sock")
            stop.append((trio.lowlevel.current_trio_token(), nursery.cancel_scope))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert ready.wait(10)
    yield directory
    token, scope = stop[0]
    token.run_sync_soon(scope.cancel)
    thread.join(10)
    assert not thread.is_alive()


def json_lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code in (0, 1), result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def a_job(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "train.py").write_text("def train(context): ...\n")
    (directory / "job.toml").write_text('name = "digits"\nentry = "train.py:train"\n')
    return directory


def is_one_line_with_a_hint(result: Result) -> bool:
    lines = result.stderr.splitlines()
    return (
        result.exit_code == 2
        and result.stdout == ""
        and len(lines) == 2
        and lines[0].startswith("hansa: ")
        and lines[1].startswith("hint: ")
    )


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    program = (
        "import sys\nsys.argv = ['hansa', '--help']\n"
        "from hansa.node.commands.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'libp2p', 'eth_account', 'ray', 'httpx', 'numpy', 'trio', 'rich', 'coincurve', 'starlette'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "submit" in done.stdout
    assert done.stderr.strip() == "[]"


def test_a_full_disk_behind_the_output_is_not_said_to_be_the_nodes() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hansa", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert "what this command says cannot be written: [Errno 28] No space left on device" in done.stderr
    assert done.stderr.count("\n") == 2


@pytest.mark.parametrize("command", ["submit", "jobs", "watch", "logs", "results", "cancel", "providers", "balance"])
def test_every_command_explains_itself_and_knows_json_and_data(command: str) -> None:
    shown = run(command, "--help").stdout
    assert "--json" in shown
    assert "--data" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs"],
        ["watch", JOB],
        ["logs", JOB],
        ["results", JOB],
        ["cancel", JOB],
        ["providers"],
        ["balance", "--json"],
    ],
)
def test_without_a_daemon_every_command_says_how_to_start_one(tmp_path: Path, arguments: list[str]) -> None:
    result = run(*arguments, "--data", tmp_path)
    assert is_one_line_with_a_hint(result)
    assert "hansa node run" in result.stderr


def test_a_socket_that_nobody_answers_is_no_daemon(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "api.sock"))
    result = run("jobs", "--data", tmp_path)
    assert is_one_line_with_a_hint(result)
    assert "no daemon is running" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every socket")
def test_a_socket_of_somebody_else_is_said(data: Path) -> None:
    (data / "api.sock").chmod(0)
    result = run("jobs", "--data", data)
    assert is_one_line_with_a_hint(result)
    assert "no right" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["submit"],
        ["jobs", "--colour"],
        ["watch", "not-an-id"],
        ["watch", "../node"],
        ["logs", "abcd", "--shard", "-1"],
        ["submit", "/nowhere/job.toml"],
    ],
)
def test_a_slip_of_the_pen_is_one_line_with_a_hint(data: Path, arguments: list[str]) -> None:
    where = [] if arguments == ["frobnicate"] else ["--data", data]
    assert is_one_line_with_a_hint(run(*arguments, *where))


def test_an_id_that_is_not_known_is_said(data: Path) -> None:
    assert is_one_line_with_a_hint(run("watch", "abcd", "--data", data))


def test_a_mistake_in_the_job_file_is_found_before_anything_is_sent(
    tmp_path: Path, data: Path, desk: MemoryDesk
) -> None:
    job = a_job(tmp_path / "job")
    (job / "job.toml").write_text('name = "x"\nentry = "train.py:train"\nshard = 3\n')
    result = run("submit", job, "--data", data)
    assert is_one_line_with_a_hint(result)
    assert "job.toml:3: shard: unknown key" in result.stderr
    assert desk.blobs == {}


def test_an_entry_that_is_left_out_of_the_package_is_said(tmp_path: Path, data: Path) -> None:
    job = a_job(tmp_path / "job")
    (job / ".hansaignore").write_text("train.py\n")
    assert is_one_line_with_a_hint(run("submit", job, "--data", data))


def test_a_job_is_submitted_with_its_directory(tmp_path: Path, data: Path, desk: MemoryDesk) -> None:
    (answer,) = json_lines(run("submit", a_job(tmp_path / "job"), "--json", "--data", data))
    ((spec, package),) = desk.submitted
    assert spec.name == "digits"
    assert bytes.fromhex(answer["job"]) in desk.views
    assert b"def train" in desk.blobs[package.root]


def test_a_job_is_submitted_with_as_many_shards_as_the_command_says(
    tmp_path: Path, data: Path, desk: MemoryDesk
) -> None:
    assert is_one_line_with_a_hint(run("submit", a_job(tmp_path / "job"), "--shards", "0", "--data", data))
    json_lines(run("submit", a_job(tmp_path / "job"), "--shards", "2", "--json", "--data", data))
    ((spec, _),) = desk.submitted
    assert spec.shards == 2


def test_submitting_and_watching_ends_with_the_jobs_fate(tmp_path: Path, data: Path) -> None:
    result = run("submit", a_job(tmp_path / "job"), "--watch", "--data", data)
    assert result.exit_code == 0
    assert "job succeeded" in result.stdout
    views = json_lines(run("submit", a_job(tmp_path / "job"), "--watch", "--json", "--data", data))
    assert list(views[0]) == ["job"]
    assert views[-1]["phase"] == "succeeded"


def test_a_job_that_fails_is_exit_code_one(data: Path, desk: MemoryDesk) -> None:
    desk.add(job_view(JOB), job_view(JOB, phase="failed", reason="no bids"))
    result = run("watch", JOB[:6], "--data", data)
    assert result.exit_code == 1
    assert "job failed: no bids" in result.stdout


def test_jobs_providers_and_balance_are_readable_and_have_json(data: Path, desk: MemoryDesk) -> None:
    assert "no jobs yet" in run("jobs", "--data", data).stdout
    desk.add(job_view(JOB))
    assert "digits" in run("jobs", "--data", data).stdout
    assert json_lines(run("jobs", "--json", "--data", data))[0]["jobs"][0]["job"] == JOB
    shown = run("providers", "--data", data).stdout
    assert "0.300000 USD" in shown
    assert "1 x cpu Some CPU 4 GiB" in shown
    money = run("balance", "--entries", "--data", data).stdout
    assert "sum over the ledger (2 entries): 0.000000\n" in money
    assert "IOU" in money
    assert "0.000000 USD  STILL DUE to this node in all\n" in money
    assert "0.002500 USD  STILL OWED by this node in all\n" in money
    assert json_lines(run("balance", "--json", "--data", data))[0]["sum"] == "0.000000"


def test_cancelling_twice_says_that_it_has_ended(data: Path, desk: MemoryDesk) -> None:
    desk.add(job_view(JOB))
    assert json_lines(run("cancel", JOB, "--json", "--data", data)) == [{"job": JOB, "phase": "cancelled"}]
    assert is_one_line_with_a_hint(run("cancel", JOB, "--data", data))


def test_logs_are_shown_as_plain_text(data: Path, desk: MemoryDesk) -> None:
    desk.add(job_view(JOB))
    desk.lines = [{"shard": 1, "at_ms": 1, "text": HOSTILE}, {"shard": 0, "at_ms": 1, "text": "fine"}]
    shown = run("logs", JOB, "--shard", "1", "--data", data).stdout
    assert shown.startswith("[1] ")
    assert not any(character in shown for character in "\x1b\x07\r\u202e")
    assert shown.count("\n") == 1
    assert json_lines(run("logs", JOB, "--json", "--data", data))[0]["text"] == HOSTILE
    desk.later = [{"shard": 0, "at_ms": 2, "text": "followed"}]
    assert "followed" not in run("logs", JOB, "--data", data).stdout
    assert "followed" in run("logs", JOB, "-f", "--data", data).stdout


def test_init_makes_a_node_once(tmp_path: Path) -> None:
    made = run("init", "--data", tmp_path / "n", "--provider", "--price", "0.45", "--cpu-slots", "1")
    assert made.exit_code == 0
    assert "hansa node run" in made.stdout
    assert is_one_line_with_a_hint(run("init", "--data", tmp_path / "n"))
    (answer,) = json_lines(run("init", "--json", "--data", tmp_path / "m"))
    assert set(answer) == {"data", "account", "peer_id"}


@pytest.mark.parametrize(
    "wishes", [["--price", "-1"], ["--cpu-slots", "many"], ["--listen", "localhost"], ["--metrics-port", "x"]]
)
def test_init_with_a_wish_out_of_range_makes_nothing(tmp_path: Path, wishes: list[str]) -> None:
    assert is_one_line_with_a_hint(run("init", "--data", tmp_path / "n", *wishes))
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("role", [["--provider"], []])
def test_init_sells_no_more_cores_than_the_machine_has(tmp_path: Path, role: list[str]) -> None:
    refused = run("init", "--data", tmp_path / "n", "--cpu-slots", "1000", *role)
    assert is_one_line_with_a_hint(refused)
    assert "sells 2000 cores, and this machine has" in refused.stderr
    assert "--cpu-slots" in refused.stderr
    assert not (tmp_path / "n").exists()


def test_running_a_node_that_does_not_exist_says_how_to_make_one(tmp_path: Path) -> None:
    result = run("node", "run", "--data", tmp_path / "n")
    assert is_one_line_with_a_hint(result)
    assert "hansa init" in result.stderr


# ---- results ---------------------------------------------------------------------------------------------------------


def with_output(desk: MemoryDesk, path: str, content: bytes = b"weights", shard: int = 0) -> None:
    blob = desk.add_blob(content)
    desk.add(job_view(JOB, phase="succeeded", ended_ms=1, outputs=[output_view(path, blob, shard)]))


def test_results_lie_below_the_directory_by_shard(data: Path, desk: MemoryDesk, tmp_path: Path) -> None:
    with_output(desk, "model/weights.bin", b"w" * 2_500_000)
    out = tmp_path / "out"
    assert str(out / "shard-0/model/weights.bin") in run("results", JOB, "-o", out, "--data", data).stdout
    assert (out / "shard-0/model/weights.bin").read_bytes() == b"w" * 2_500_000
    (again,) = json_lines(run("results", JOB, "-o", out, "--json", "--data", data))
    assert again["files"] == [str(out / "shard-0/model/weights.bin")]
    assert not list(out.rglob(".hansa-*"))


@pytest.mark.parametrize("path", ["../../evil", "/etc/evil", "a/../../evil", "", ".", "a//b", "a\nb", "a\\b"])
def test_a_path_that_leads_elsewhere_writes_nothing(data: Path, desk: MemoryDesk, tmp_path: Path, path: str) -> None:
    with_output(desk, path)
    before = sorted(tmp_path.rglob("*"))
    assert is_one_line_with_a_hint(run("results", JOB, "-o", tmp_path / "out", "--data", data))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", ["../../evil", "model", "n" * 300])
def test_what_one_provider_names_keeps_no_other_shards_outputs_back(
    data: Path, desk: MemoryDesk, tmp_path: Path, path: str
) -> None:
    """A path that leads elsewhere, one that is a file where another is to lie below it, one that no disk takes."""
    named = [(path, b"lies", 0), ("model/weights.bin", b"of the liar", 0), ("model/weights.bin", b"honest", 1)]
    outputs = [output_view(where, desk.add_blob(content), shard) for where, content, shard in named]
    desk.add(job_view(JOB, phase="succeeded", ended_ms=1, outputs=outputs))
    out = tmp_path / "out"
    shown = run("results", JOB, "-o", out, "--data", data)
    assert shown.exit_code == 2
    assert (out / "shard-1/model/weights.bin").read_bytes() == b"honest"
    assert str(out / "shard-1/model/weights.bin") in shown.stdout.splitlines()
    first, hint = shown.stderr.splitlines()
    assert "1 of 3 outputs could not be fetched: " in first
    assert hint.startswith("hint: ")
    told = json.loads(run("results", JOB, "-o", out, "--json", "--data", data).stdout)
    assert len(told["files"]) == 2
    assert len(told["not_fetched"]) == 1


def test_links_below_the_directory_are_not_followed(data: Path, desk: MemoryDesk, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "shard-0").symlink_to(elsewhere)
    with_output(desk, "weights.bin")
    assert is_one_line_with_a_hint(run("results", JOB, "-o", out, "--data", data))
    (out / "shard-0").unlink()
    (out / "shard-0").mkdir()
    (out / "shard-0" / "weights.bin").symlink_to(elsewhere / "weights.bin")
    assert is_one_line_with_a_hint(run("results", JOB, "-o", out, "--data", data))
    assert not list(elsewhere.iterdir())


def test_a_file_of_the_users_is_never_replaced(data: Path, desk: MemoryDesk, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "shard-0").mkdir(parents=True)
    (out / "shard-0" / "weights.bin").write_bytes(b"precios")
    with_output(desk, "weights.bin")
    assert is_one_line_with_a_hint(run("results", JOB, "-o", out, "--data", data))
    assert (out / "shard-0" / "weights.bin").read_bytes() == b"precios"


@pytest.mark.parametrize("pieces", [[b"weight"], [b"weights", b"more"], [b"WEIGHTS"], []])
def test_bytes_that_are_not_what_was_promised_leave_no_file(tmp_path: Path, pieces: list[bytes]) -> None:
    with pytest.raises(OperatorError, match="not what was promised"):
        write_output(tmp_path, 0, "weights.bin", blob_ref(b"weights"), pieces)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_output_that_the_daemon_does_not_have_is_said(data: Path, desk: MemoryDesk, tmp_path: Path) -> None:
    with_output(desk, "weights.bin")
    desk.blobs.clear()
    assert is_one_line_with_a_hint(run("results", JOB, "-o", tmp_path / "out", "--data", data))


# ---- the screen ------------------------------------------------------------------------------------------------------


def drawn(view: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=160, force_terminal=True, markup=False)
    with console.capture() as capture:
        console.print(render(view))
    return capture.get()


def test_the_screen_tells_who_bid_what_and_why_the_winner_won() -> None:
    shown = drawn(job_view(JOB))
    for words in ("0.30", "0.45", "0.60", "shard 1", "lost", "lowest expected cost"):
        assert words in shown
    for words in ("declined", "tier = 'none'", "silent"):
        assert words in shown
    for words in ("round 2 of 10", "accuracy 0.81", "loss 0.7", "0.001"):
        assert words in shown


def test_news_are_told_once_and_in_order() -> None:
    first = job_view(JOB)
    told = list(news(None, first))
    assert told[0].startswith(f"bid from {short_account(PROVIDERS[0])}: 0.30 per hour")
    assert "round 1/10: loss 0.7  accuracy 0.81" in told
    assert told[-1] == "job running"
    assert list(news(first, first)) == []


def test_what_a_round_rejected_is_told_by_the_rounds_number_whatever_the_jobs_steps_are() -> None:
    first = job_view(JOB)
    assert [done["round"] for done in first["rounds"]] == [1, 2]
    rejected = {"round": 7, "at_ms": 1, "members": [0], "rejected": [{"shard": 1, "reason": "late"}]}
    later = changed(first, rounds=[*first["rounds"], rejected])
    assert list(news(first, later)) == ["round 7: rejected shard 1: late"]
    assert list(news(later, later)) == []
    assert "rejected: 1" in drawn(later)
    assert "rejected" not in drawn(changed(later, rounds=[*later["rounds"], changed(rejected, round=8, rejected=[])]))


def test_a_shard_that_is_kept_or_moves_is_shown_with_its_time_and_reason() -> None:
    first = job_view(JOB)
    running, other = first["shards"]
    until_ms = 1_700_000_060_000
    moves = changed(running, leaves_by_ms=until_ms, leaves_why="the owner plays" + HOSTILE)
    kept = changed(other, phase="kept", kept_until_ms=until_ms, reason="its code ended with an error: x")
    after = changed(first, shards=[moves, kept])
    told = list(news(first, after))
    assert told[0].startswith("shard 0 moves by 2023-11-14 22:14:20 UTC: the owner plays")
    assert told[1].startswith("shard 1 kept until 2023-11-14 22:14:20 UTC on 0x")
    assert told[1].endswith(": its code ended with an error: x")
    assert all(line.isprintable() for line in told)
    assert list(news(after, after)) == []
    shown = drawn(after)
    assert "moves by 2023-11-14 22:14:20 UTC" in shown
    assert shown.count("2023-11-14 22:14:20 UTC") == 2
    assert "\x1b[2J" not in shown


def test_isolation_and_use_of_each_lease_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spend = job_view(JOB)["spend"]
    lease = changed(spend["by_provider"][0], tier="sandbox", used_percent=87)
    unmeasured = changed(lease, tier="vault" + HOSTILE, used_percent=None)
    spend = changed(spend, by_provider=[lease, unmeasured, lease])
    view = job_view(JOB, spend=spend)
    assert "(sandbox 87 %)" in drawn(view)
    monkeypatch.setenv("COLUMNS", "220")
    print_jobs([view])
    listed = capsys.readouterr().out
    assert "sandbox 87 %, vault" in listed
    assert "\x1b[2J" not in listed


def poisoned(value: Any) -> Any:
    """The same view with something hostile in every text."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {(key + HOSTILE if key in ("loss", "accuracy") else key): poisoned(item) for key, item in value.items()}
    return value


def test_a_strangers_words_reach_the_terminal_as_plain_text() -> None:
    view = poisoned(job_view(JOB, reason="x"))
    shown = drawn(view)
    assert "\x1b[2J" not in shown
    assert "\x1b]0" not in shown
    assert not any(character in shown for character in "\x07\r\u202e")
    assert "[bold red]x[/]" in shown
    for line in news(None, view):
        assert line.isprintable()


def test_a_view_with_holes_is_shown_all_the_same() -> None:
    holes: dict[str, Any] = {"job": JOB, "phase": None, "shards": [{}], "tenders": [{"bids": [{}]}], "history": [{}]}
    assert drawn(holes)
    assert list(news(None, holes))


def test_without_a_terminal_there_are_lines_and_no_escape_sequences() -> None:
    out = StringIO()
    last = follow([job_view(JOB), job_view(JOB, phase="succeeded")], out)
    assert last is not None
    assert last["phase"] == "succeeded"
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().splitlines()[-1] == "job succeeded"


def test_what_ended_an_attempt_is_not_said_of_the_next_one() -> None:
    shard = changed(job_view(JOB)["shards"][0], phase="starting", attempts=2, reason="it hung")
    told = [line for line in news(None, job_view(JOB, shards=[shard])) if line.startswith("shard")]
    assert [line.split(short_account(PROVIDERS[0]))[1] for line in told] == [" (attempt 2; before: it hung)"]
    after = job_view(JOB, shards=[changed(shard, phase="running")])
    assert not any("hung" in line for line in news(job_view(JOB, shards=[shard]), after))
    lost = job_view(JOB, shards=[changed(shard, phase="lost")])
    assert any(line.endswith(": it hung") for line in news(after, lost))


def test_long_text_is_cut_and_tabs_are_spaces() -> None:
    assert plain("a\tb") == "a b"
    assert len(plain("x" * 10_000)) == 4096
    assert PROVIDERS[0] == plain(PROVIDERS[0])


def test_a_job_that_waits_for_money_says_what_helps_and_the_command_helps(data: Path, desk: MemoryDesk) -> None:
    warning = f"it waits for money: at least 0.500000 more is needed; hansa top-up {JOB[:12]} 0.500000"
    desk.add(job_view(JOB, warning=warning), job_view(JOB, warning=warning, phase="running"))
    assert "waits for money" in " ".join(run("jobs", "--data", data).stdout.split())
    assert "may cost 1.500000 in all" in run("top-up", JOB, "0.5", "--data", data).stdout
    assert json_lines(run("top-up", JOB, "0", "--json", "--data", data)) == [{"job": JOB, "budget": "1.500000"}]
    assert is_one_line_with_a_hint(run("top-up", JOB, "0.0000001", "--data", data))
    assert is_one_line_with_a_hint(run("top-up", JOB, "1e3", "--data", data))
    desk.add(job_view(JOB, phase="succeeded"))
    assert is_one_line_with_a_hint(run("top-up", JOB, "1", "--data", data))
