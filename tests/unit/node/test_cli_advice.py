"""What is said at the end of a job that failed: where its code broke, and the next step."""

import pytest
from kit.memory_desk import changed, job_view

from hansa.node.commands.cli_advice import MOST_LINES, last_words

JOB = "ab" * 32
TRACE = (
    "shard 0 failed (user-exception): its code ended with an error: Traceback (most recent call last):\n"
    '  File "/job/code/train.py", line 27, in train\n    x[9]\x1b[2J\nIndexError: index 9 is out of bounds\n'
)


def said(reason, kind="user-exception", **changes):
    shards = [changed(job_view(JOB)["shards"][0], phase="lost", kind=kind, reason=reason)]
    return list(last_words(job_view(JOB, **({"phase": "failed", "reason": reason, "shards": shards} | changes))))


def test_a_traceback_is_shown_whole_with_file_and_line_and_without_what_steers_a_terminal():
    lines = said(TRACE)
    assert lines[:2] == ["Traceback (most recent call last):", '  File "/job/code/train.py", line 27, in train']
    assert lines[3:] == ["IndexError: index 9 is out of bounds", f"what its code printed: hansa logs {JOB[:12]}"]
    assert "\x1b" not in "".join(lines)


def test_of_a_long_traceback_the_last_lines_are_shown():
    lines = said("Traceback (most recent call last):\n" + "  frame\n" * 500 + "ValueError: bad")
    assert len(lines) == MOST_LINES + 2
    assert lines[-2] == "ValueError: bad"


@pytest.mark.parametrize(
    ("kind", "reason", "hint"),
    [
        (
            "bad-entry",
            "Traceback (most recent call last):\nModuleNotFoundError: No module named 'einops'",
            '["einops"]',
        ),
        ("user-exception", "FileNotFoundError: [Errno 2] No such file or directory: 'rows.npz'", "ctx.inputs"),
        ("user-exception", "Traceback …\nOSError: [Errno 28] No space left on device", "limits.outputs"),
        ("out-of-memory", "it went over its memory", "raise ram"),
        ("stalled", "it hung", "ctx.report"),
        ("wall-limit", "it took longer than it may", "limits.wall"),
        (
            "stalled",
            "it hung: for 300 s it neither printed nor reported anything, before its first step",
            "first ctx.report",
        ),
        ("bad-state", "its state could not be used", "limits.state"),
        ("bad-state", "a state of 3 bytes is over the limit of the run, 2 bytes", "raise limits.state"),
        ("bad-state", "the workers' states differ in w", "of one shape"),
        ("", "round 1 could not be averaged: its state holds numbers that are not finite", "finite numbers only"),
    ],
)
def test_each_kind_of_failure_has_its_remedy(kind, reason, hint):
    (line,) = (line for line in said(reason, kind) if line.startswith("hint: "))
    assert hint in line


def test_packages_that_a_provider_cannot_have_are_explained():
    reason = "shard 0 was lost 4 times, the last time because: its provider could not start it: the job's packages"
    reason += " cannot be installed here: Because there is no version of torch==2.13.0+cpu, they are unsatisfiable."
    (line,) = (line for line in said(reason, "refused") if line.startswith("hint: "))
    assert "from the provider's index" in line
    assert "wheels" in line


def test_one_worker_is_told_nothing_of_shapes():
    assert "shape" not in "".join(said("a checkpoint of 3 bytes is over the limit of the run, 2 bytes", "bad-state"))


def test_a_job_that_found_nobody_is_told_how_to_ask_why():
    shards = [{"shard": 0, "phase": "lost", "lease": None, "kind": "", "reason": ""}]
    assert said("unfilled", shards=shards) == [f"what would help: hansa why {JOB[:12]}"]


def test_a_job_of_several_shards_that_found_nobody_is_told_that_fewer_may_do():
    shards = [{"shard": number, "phase": "lost", "lease": None, "kind": "", "reason": ""} for number in range(3)]
    why, fewer = said("unfilled", shards=shards)
    assert why == f"what would help: hansa why {JOB[:12]}"
    assert fewer == "if too few devices are free for its 3 shards: hansa submit ... --shards 1"
    shards[2]["lease"] = "ab" * 32
    assert not any("--shards" in line for line in said("unfilled", shards=shards))


@pytest.mark.parametrize("phase", ["running", "succeeded", "cancelled"])
def test_no_other_job_has_last_words(phase):
    assert said(TRACE, phase=phase) == []


def test_views_that_say_odd_things_break_nothing():
    assert list(last_words({})) == []
    assert said(None, shards=[None, {"kind": 3}]) == [f"what would help: hansa why {JOB[:12]}"]
