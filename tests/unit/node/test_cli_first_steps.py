"""What somebody types who has never seen the command: nothing, too little, or what is nearly right."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from kit.memory_desk import PROVIDERS, changed, job_view
from rich.console import Console

from hansa.node.api import cli_client, shell_desk
from hansa.node.commands.cli import cli
from hansa.node.commands.cli_screen import news, render
from hansa.node.commands.cli_tables import clock, print_jobs, print_providers, queue_text
from hansa.node.faults import OperatorError

JOB = "0123456789ab" + "cd" * 26


@pytest.mark.parametrize("group", [[], ["node"], ["net"], ["ledger"], ["wallet"], ["chain"], ["agent"]])
def test_a_group_that_is_named_alone_shows_its_help_as_a_page(group: list[str]) -> None:
    alone, helped = CliRunner().invoke(cli, group), CliRunner().invoke(cli, [*group, "--help"])
    assert alone.exit_code == 2
    assert alone.stderr == helped.stdout
    assert alone.stdout == ""
    assert len(helped.stdout.splitlines()) > 5


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_what_people_copy_stands_in_one_piece_on_narrow_terminals(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_jobs([job_view(JOB, name="a-sweep-of-some-length")])
    assert JOB[:12] in capsys.readouterr().out
    provider: dict[str, Any] = {"account": PROVIDERS[0], "price_per_hour": "0.400000", "currency": "USD"}
    device = {"kind": "gpu", "model": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 << 30}
    print_providers([provider | {"free": 1, "devices": [device], "tier": "sandbox", "region": "", "connected": True}])
    shown = f"{PROVIDERS[0][:6]}\N{HORIZONTAL ELLIPSIS}{PROVIDERS[0][-4:]}"
    assert shown in capsys.readouterr().out
    console = Console(width=max(columns, 60))
    with console.capture() as capture:
        console.print(render(job_view(JOB)))
    assert capture.get().count(shown) >= 2


def test_an_amount_in_the_list_of_jobs_is_exact_and_has_no_zeros_that_say_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    print_jobs([job_view(JOB, spend={"vouched": "0.007597", "budget": "10.200000"})])
    assert "0.007597 of 10.20 " in capsys.readouterr().out


def steps(first: int, last: int, **fields: Any) -> dict[str, Any]:
    """The view of a job of which so many steps are kept."""
    history = [{"round": step, "at_ms": step, "metrics": {"loss": 1.0}} for step in range(first, last)]
    return job_view(JOB, history=history, **fields)


def test_steps_are_told_for_as_long_as_there_are_new_ones() -> None:
    before, after = steps(1, 1001), steps(3, 1003)
    assert list(news(before, after)) == ["round 1001/10: loss 1", "round 1002/10: loss 1"]
    late = changed(after, history=[changed(after["history"][0], round=2), *after["history"]])
    assert list(news(after, late)) == ["round 2/10: loss 1"], "a slow shard may have a step that the fast one left out"


def test_a_job_without_rounds_has_come_as_far_as_its_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shards = [changed(job_view(JOB)["shards"][0], step=60), changed(job_view(JOB)["shards"][1], step=58)]
    view = steps(60, 61, round=0, parameters={"epochs": 60}, shards=shards)
    assert "step 60: loss 1" in list(news(None, view))
    print_jobs([view, job_view(JOB, round=3)])
    listed = capsys.readouterr().out
    assert "step 60" in listed
    assert "round 0" not in listed
    assert "round 3" in listed
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render(view))
    assert "step 60" in capture.get()
    assert "round 0" not in capture.get()


@contextmanager
def daemon_that(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> Iterator[None]:
    """A daemon whose answers are said beforehand."""
    with monkeypatch.context() as patch:
        patch.setattr(cli_client.DaemonClient, "get", lambda _self, _path, **_said: answers["view"])
        patch.setattr(
            cli_client.DaemonClient, "lines", lambda _self, _path, **_said: (line for line in answers["lines"])
        )
        patch.setattr(cli_client.DaemonClient, "watch", lambda _self, _job, _patience: answers["watch"]())
        yield


def test_a_shard_that_the_job_has_not_is_no_silent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with daemon_that(monkeypatch, view=job_view(JOB), lines=()):
        for form in ([], ["--json"]):
            told = CliRunner().invoke(cli, ["logs", JOB, "--shard", "7", *form])
            assert told.exit_code == 2
            assert "there is no shard 7: the job has shards 0 to 1" in told.stderr
        told = CliRunner().invoke(cli, ["logs", JOB, "--shard", "1"])
        assert told.exit_code == 0
        assert told.stderr.endswith(f"hansa watch {JOB[:12]}\n"), "an id that can be copied"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_who_stops_watching_is_told_that_the_job_goes_on(monkeypatch: pytest.MonkeyPatch, form: list[str]) -> None:
    def until_the_key() -> Iterator[dict[str, Any]]:
        yield job_view(JOB)
        raise KeyboardInterrupt

    with daemon_that(monkeypatch, watch=until_the_key):
        told = CliRunner().invoke(cli, ["watch", JOB, *form])
    assert told.exit_code == 130
    assert "the job goes on" in told.stderr
    assert f"hansa cancel {JOB[:12]}\n" in told.stderr
    assert "goes on" not in told.stdout


def test_a_shell_in_a_job_that_begins_says_what_its_shards_do() -> None:
    def job(phase: str, *shards: str) -> Any:
        return SimpleNamespace(phase=phase, shards=[SimpleNamespace(phase=each, reason="") for each in shards])

    with pytest.raises(OperatorError, match="no shard runs at the moment: shard 0 is starting, shard 1 is finished"):
        shell_desk._shard(job("running", "starting", "finished"), None)
    with pytest.raises(OperatorError, match="no shard runs: the job has failed"):
        shell_desk._shard(job("failed", "lost"), None)


def test_a_dry_run_of_an_unknown_form_names_those_that_there_are() -> None:
    told = CliRunner().invoke(cli, ["submit", "there", "--dry-run=bid"])
    assert told.exit_code == 2
    assert "'--dry-run=bid': say --dry-run, or --dry-run=bids" in told.stderr
    assert "submit --help" in told.stderr


def test_every_option_of_every_command_says_what_it_is_for() -> None:
    def below(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(inner, f"{path} {name}")

    silent = {
        f"{path} {option.opts[-1]}"
        for path, command in below(cli, "hansa")
        for option in command.params
        if option.param_type_name == "option" and not option.hidden and not option.help
    }
    assert silent == set()


def test_a_time_on_another_day_has_its_date() -> None:
    now_ms, day_ms = int(time.time() * 1000), 86_400_000
    midnight_ms = now_ms - now_ms % day_ms
    assert clock(midnight_ms + 1_000) == "00:00:01 UTC"
    assert clock(midnight_ms + 2 * day_ms).endswith(" 00:00:00 UTC")
    assert len(clock(midnight_ms + 2 * day_ms)) == len("2026-01-01 00:00:00 UTC")
    assert clock(1_700_000_060_000) == "2023-11-14 22:14:20 UTC"
    assert clock(None) == ""
    told = queue_text({"tries": 1, "next_ms": midnight_ms + 1_000, "until_ms": 1_700_000_060_000})
    assert told.endswith("asks again at 00:00:01 UTC, gives up at 2023-11-14 22:14:20 UTC.")


def test_while_a_shard_is_starting_its_watcher_hears_where_to_look() -> None:
    shard = changed(job_view(JOB)["shards"][0], phase="starting")
    view = job_view(JOB, shards=[shard])
    where = f"hansa logs {JOB[:12]}"
    assert [line for line in news(None, view) if where in line] == [f"what is fetched and made ready: {where}"]
    assert not any(where in line for line in news(view, changed(view, round=5)))
    console = Console(width=160)
    for each, is_told in ((view, True), (job_view(JOB), False)):
        with console.capture() as capture:
            console.print(render(each))
        assert (where in capture.get()) == is_told
