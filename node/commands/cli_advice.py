"""What a person whose job failed reads at the end: the traceback of its own code, and what to do next.

The lines before it are news of one line each, in which a traceback has no room; and whoever reads that a run needed
more than its memory still has to know which key of ``job.toml`` gives it more.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from hansa.node.plain_text import TRACEBACK, fields_of, plain

View = Mapping[str, Any]
MOST_LINES = 60
LONGEST_LINE = 300
_SHORT_ID = 12
_KINDS = {
    "out-of-memory": "raise ram in resources.needs (or resources.memory) in job.toml, or have the code hold less",
    "stalled": "call ctx.report(step=...) more often, or raise limits.stall in job.toml",
    "wall-limit": "raise limits.wall in job.toml, or have the code do less",
    "bad-state": "a state is what ctx.sync and ctx.checkpoint take: arrays and plain values, within limits.state",
}
_WORDS = {
    "before its first step": "it never came to its first ctx.report(step=...): see where it waits (keep_failed in"
    " job.toml, then hansa exec), or raise limits.stall if it takes so long to begin",
    "over the limit of the run": "raise limits.state in job.toml, or hand over less",
    "packages cannot be installed": "packages come from the provider's index, PyPI as a rule, and not from yours: name"
    " versions that are there, or bring them (environment.wheels in job.toml)",
    "No space left on device": "what it writes is bounded by resources.disk in job.toml, and in ctx.outputs by"
    " limits.outputs too: raise the one that is full, or have the code write less",
    "workers' states": "the workers of a shard hand over states of one shape: the same names, each of the same size",
}
"""What some reasons say more exactly than their kind does."""
_MODULE = re.compile(r"ModuleNotFoundError: No module named '([A-Za-z0-9_]{1,60})")
_FILE = re.compile(r"FileNotFoundError: .*No such file or directory: '([^'\n]{1,200})'")


def last_words(view: View) -> Iterator[str]:
    """What follows the news of a job that failed, a line each; nothing of any other."""
    if view.get("phase") != "failed":
        return
    reason = str(view.get("reason") or "")
    yield from _traceback(reason)
    job = plain(view.get("job"), 64)[:_SHORT_ID]
    advice = _advice(view, reason)
    if advice:
        yield f"hint: {advice}"
    if any(fields_of(shard).get("lease") for shard in view.get("shards", ())):
        yield f"what its code printed: hansa logs {job}"
    else:
        yield f"what would help: hansa why {job}"
        if (shards := sum(type(fields_of(each).get("shard")) is int for each in view.get("shards", ()))) > 1:
            yield f"if too few devices are free for its {shards} shards: hansa submit ... --shards 1"


def _traceback(reason: str) -> Iterator[str]:
    """The lines of a traceback as they are, but for what could steer a terminal; of many the last ones."""
    _, found, after = reason.partition(TRACEBACK)
    if not found:
        return
    lines = [line for line in after.splitlines() if line.strip()]
    yield TRACEBACK
    yield from (plain(line, LONGEST_LINE) for line in islice(lines, max(0, len(lines) - MOST_LINES), None))


def _advice(view: View, reason: str) -> str:
    module = _MODULE.search(reason)
    if module:
        named = module[1]
        return f'name its package under [environment] in job.toml, for example dependencies = ["{named}"]'
    if _FILE.search(reason):
        return (
            "the code starts in an empty directory: files beside it are at Path(__file__).with_name(...), and what"
            " [inputs] in job.toml names is below ctx.inputs"
        )
    for words, remedy in _WORDS.items():
        if words in reason:
            return remedy
    if "not finite" in reason:
        return "ctx.sync takes finite numbers only: did the training diverge? Look at the loss before it"
    kinds = {str(fields_of(shard).get("kind")) for shard in view.get("shards", ())} & set(_KINDS)
    return _KINDS[min(kinds)] if kinds else ""
