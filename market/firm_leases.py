"""Firm leases: what a provider earns only by leaving its devices to the buyer until the end.

Of what was worked for under a firm lease, the bid's ``penalty`` is withheld from receipts as long as the lease lives.
It is charged once the lease has ended well for its provider, and never if it has not: totals only rise, and no money
flows back. Whether it has ended well is the buyer's word (``PenaltyReleased``), by which it is bound itself: from then
on its own check of receipts lets the whole amount through. So the two can never disagree over a receipt, which would
hold up everything else on their channel; and what a buyer could keep by saying nothing is the penalty, as a provider
knows when it bids.

An honest buyer says it when the run succeeded, when it wanted the end itself, when the lease came to its end, or when
the run failed by the job's own doing. After the devices were taken back only a success counts that brought results.

That a run failed by its job's own doing is mostly the provider's word, and a lie would be the cheapest way out of a
firm lease. So a word counts as far as the buyer sees something of it itself: the time that was used up, by its own
clock; the same end of the same job at another provider. Where it sees nothing, a provider is believed as long as its
record here is no worse than a stranger's (``is_believed``): every end of that sort marks the record, so one that often
says so is believed no more. Nothing that a provider shows (a log, a report of memory) would be better than its word.
"""

from dataclasses import replace

from hansa.market.receipts import CLOCK_SKEW_MS
from hansa.market.sale_funding import UNFUNDED
from hansa.market.track_record import Record

RELEASE_MS = 3_600_000
"""So long after the end of a run its provider waits for the word that it ended well: the buyer may have been away."""
JOBS_OWN = frozenset(("bad-entry", "bad-state", "out-of-memory", "protocol", "user-exception", "wall-limit", UNFUNDED))
"""Kinds of end that a job or its buyer brought about, wherever it would have run."""
DEVELOPERS_OWN = frozenset(("bad-entry", "out-of-memory", "user-exception"))
"""Those of them that the job's author made by mistake: no mark on a provider that says them no oftener than others."""
SEEN = frozenset(("wall-limit", UNFUNDED))
"""Those of them that the buyer holds against its own clock, or against signed words, before it takes them for true."""
SANDBOXS_OWN = frozenset(("protocol",))
"""Those that the provider's own software says of itself: they count only where another provider met with them too."""


def is_forfeited(*, outcome: str, kind: str, taken_back: bool) -> bool:
    """Whether a provider knows by itself that its lease did not end well, and need not wait for any word."""
    if outcome == "succeeded":
        return False
    return taken_back or (outcome == "failed" and kind not in JOBS_OWN)


def is_due(
    kind: str,
    *,
    taken_back: bool,
    is_silent: bool,
    ends_ms: int,
    at_ms: int,
    full_ms: int = 0,
    borne_out: bool = False,
) -> bool:
    """Whether a buyer owes what was withheld for a run that came to nothing.

    Args:
        kind: what sort of end it was, as the buyer sees it.
        taken_back: the provider had said that it wants its devices back.
        is_silent: nothing was heard of the provider for longer than the job bears.
        ends_ms: when the lease was to end.
        at_ms: when it did.
        full_ms: when a run of the lease can have used up its time at the earliest, by the buyer's own clock.
        borne_out: the job came to the same end at another provider.
    """
    if taken_back or is_silent:
        return False
    if kind == "wall-limit":
        return at_ms + CLOCK_SKEW_MS >= full_ms
    if kind in ("stopped", "lost"):
        return at_ms + CLOCK_SKEW_MS >= ends_ms
    return kind in JOBS_OWN and (borne_out or kind not in SANDBOXS_OWN)


def is_due_for_success(*, taken_back: bool, results: int, borne_out: bool) -> bool:
    """Whether a buyer owes what was withheld for a run that is said to have succeeded.

    Args:
        taken_back: the provider had said that it wants its devices back. From then on success is its way out.
        results: how many files came of the run, and are here.
        borne_out: at another provider, which took nothing back, the job made no files either.
    """
    return not taken_back or results > 0 or borne_out


def rests_on_word(kind: str, *, borne_out: bool) -> bool:
    """Whether nothing but the provider's word says that the job ended so by its own doing."""
    return kind in JOBS_OWN - SEEN and not borne_out


def is_believed(record: Record) -> bool:
    """Whether a word that nothing bears out counts: of whoever's leases here ended no worse than a stranger's do."""
    # Here each word counts in full, however many others say it: a penalty is the one thing that it could bring in.
    return replace(record, told_ppm=0, bad=record.bad + record.own).reliability_ppm >= Record().reliability_ppm
