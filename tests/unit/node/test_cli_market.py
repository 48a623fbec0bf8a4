"""What explains the market on a terminal: words that help, and a stranger's words that do no harm."""

from typing import Any

import pytest

from hansa.node.commands.cli_jobs import submit
from hansa.node.commands.cli_market import print_bids, print_dry_run, print_tenders, print_why
from hansa.node.commands.cli_screen import news
from hansa.node.commands.cli_tables import print_jobs

EVIL = "\x1b[2J\x1b]0;owned\x07\u202enice\n[bold]x[/bold]"
ACCOUNT = "0x52908400098527886E0F7030069857D2E4169EE7"


def why_view(text: str, **changes: Any) -> dict[str, Any]:
    view = {
        "job": "ab" * 32,
        "name": text,
        "phase": "gathering",
        "reason": text,
        "warning": text,
        "queue": {
            "shards": [0],
            "tries": 3,
            "reason": text,
            "next_ms": 1_700_000_000_000,
            "until_ms": 1_700_000_060_000,
        },
        "deadline_ms": 1_700_000_900_000,
        "tenders": 2,
        "unfilled": True,
        "summary": text,
        "wanted": 2,
        "eligible": 0,
        "failing": [
            {"name": text, "wanted": text, "nearest": text, "providers": 2},
            {"name": "cuda", "wanted": "cuda >= 12.4", "nearest": "any", "providers": 1},
            {"name": "buyer", "wanted": "buyer = me", "nearest": "", "providers": 1},
        ],
        "relaxations": [{"words": text, "changes": [], "providers": [ACCOUNT], "enough": True}],
        "helpless": 1,
        "answers": [{"provider": ACCOUNT, "outcome": "declined", "reason": text, "relaxation": text}],
    }
    return view | changes


def bids_view(text: str) -> dict[str, Any]:
    bid = {
        "provider": text,
        "price_per_hour": text,
        "devices": 2,
        "reliability_ppm": 900_000,
        "speed_ppm": 1_500_000,
        "finishing": "0.400000",
        "risk": "0.040000",
        "transfer": "0.000000",
        "reclaim": text,
        "rounds": "0.010000",
        "way_ms": 1_500,
        "line_source": text,
        "expected_cost": "0.440000",
        "result": "lost",
        "shard": None,
        "why": text,
    }
    tender = {
        "phase": "running",
        "shards": [0],
        "reason": text,
        "asked": 2,
        "declined": 0,
        "silent": 1,
        "open": [text],
        "bids": [bid, bid | {"result": "won", "shard": 0}],
        "choice": text,
        "round_work_ms": 90_000,
        "state_bytes": 2_500_000,
    }
    return {"tenders": [tender]}


def tenders_view(text: str) -> dict[str, Any]:
    bid = {"devices": 1, "price_per_hour": "0.400000", "outcome": "lost", "why": text}
    row = {"buyer": text, "shards": 2, "closes_ms": 1_700_000_000_000, "declined": text, "relaxation": text}
    return {"provides": True, "tenders": [row | {"bids": [bid]}]}


def dry_view(text: str, **changes: Any) -> dict[str, Any]:
    invited = {"provider": text, "price_per_hour": "0.400000", "shard_per_hour": "0.400000", "free": 1, "devices": 2}
    view = why_view(text) | {
        "currency": text,
        "enough": True,
        "invited": [invited | {"slots": 1, "tier": text, "region": text}],
        "hourly_least": "0.400000",
        "hourly_most": "1.000000",
        "promised_least": "0.400001",
        "budget": "0.100000",
        "budget_lacks": "0.300001",
        "wall_ms": 3_600_000,
        "queue_ms": 0,
    }
    return view | changes


@pytest.mark.parametrize(
    ("show", "view"),
    [
        (print_why, why_view(EVIL)),
        (print_bids, bids_view(EVIL)),
        (print_tenders, tenders_view(EVIL)),
        (print_dry_run, dry_view(EVIL)),
        (print_dry_run, dry_view(EVIL, enough=False)),
    ],
)
def test_a_strangers_words_move_no_cursor(show: Any, view: Any, capsys: pytest.CaptureFixture[str]) -> None:
    show(view)
    shown = capsys.readouterr().out
    assert shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_a_job_that_waits_says_when_it_asks_again_and_what_would_help(capsys: pytest.CaptureFixture[str]) -> None:
    print_why(why_view("words"))
    shown = capsys.readouterr().out
    assert "words  abababababab  queued: words" in shown
    assert "asked 3 times, asks again at 2023-11-14 22:13:20 UTC, gives up at 2023-11-14 22:14:20 UTC." in shown
    assert "words   (would be enough)" in shown
    assert "only without it" in shown
    assert "no change is known that would have 1 more provider bid" in shown
    print_why(why_view("words") | {"queue": None, "warning": "it waits for money"})
    assert "would be enough" not in capsys.readouterr().out
    job = {"job": "ab" * 32, "name": "n", "phase": "gathering", "spend": {}, "queue": why_view("nobody")["queue"]}
    print_jobs([job])
    listed = capsys.readouterr().out
    assert "queued" in listed
    assert "nobody" in listed


def test_a_watcher_hears_of_each_tender_that_came_to_nothing_once() -> None:
    first = {"phase": "gathering", "queue": {"tries": 1, "reason": "nobody", "next_ms": 1_000, "until_ms": 9_000}}
    asking = first | {"queue": {**first["queue"], "next_ms": None}}
    second = first | {"queue": {**first["queue"], "tries": 2, "next_ms": 7_000}}
    said = [[*news(before, after)] for before, after in ((None, first), (first, first), (first, asking))]
    assert [len([line for line in lines if "waits for a provider" in line]) for lines in said] == [1, 0, 0]
    (line,) = news(asking, second)
    assert "asked 2 times" in line
    assert "nobody" in line


def test_who_looks_for_nobody_is_told_where_the_bids_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_why(why_view("digits", unfilled=False, queue=None, phase="running", reason="", warning=""))
    assert "hansa bids abababababab" in capsys.readouterr().out
    print_tenders({"provides": False, "tenders": []})
    assert "lends nothing" in capsys.readouterr().out
    print_bids({"tenders": []})
    assert "no tender was sent yet" in capsys.readouterr().out


def test_the_table_of_bids_says_what_waiting_for_states_costs_and_how_that_is_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_bids(bids_view("measured"))
    shown = capsys.readouterr().out
    assert "rounds" in shown
    assert "states take 1.5 s a round on its line (measured)" in shown
    assert "A round is taken for 1 min 30 s of work and a state of 2.3 MiB from each shard." in shown
    quiet = bids_view("words")
    for bid in quiet["tenders"][0]["bids"]:
        bid |= {"rounds": "0.000000", "way_ms": 0, "line_source": ""}
    print_bids(quiet)
    assert "round" not in capsys.readouterr().out


def test_a_dry_run_says_what_it_would_cost_and_what_the_budget_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    print_dry_run(dry_view("USD"))
    shown = capsys.readouterr().out
    assert "An hour of all shards: 0.40 USD at the cheapest, at most 1.00" in shown
    assert "The budget lacks 0.300001" in shown
    assert "raise budget.total" in shown
    assert "would be enough" not in shown
    (row,) = dry_view("USD")["invited"]
    sets = row | {"shard_per_hour": "2.000000", "shard_per_hour_most": "16.000000"}
    print_dry_run(dry_view("USD", invited=[sets]))
    assert "2.00 to 16.00" in capsys.readouterr().out
    print_dry_run(dry_view("USD", enough=False, queue_ms=7_200_000))
    assert "It would wait in the queue for up to 2 h" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "dry_run", "only_bids"),
    [
        (["--dry-run", "job.toml"], True, False),
        (["job.toml", "--dry-run"], True, False),
        (["--dry-run=bids", "job.toml"], False, True),
        (["job.toml"], False, False),
    ],
)
def test_a_dry_run_may_ask_for_bids_and_the_job_file_stands_where_it_likes(
    said: list[str], dry_run: bool, only_bids: bool
) -> None:
    params = submit.make_context("submit", said).params
    assert (params["dry_run"], params["only_bids"], str(params["jobfile"])) == (dry_run, only_bids, "job.toml")
