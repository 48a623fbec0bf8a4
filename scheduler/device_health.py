"""Whether a GPU is fit to be lent: what its driver tells goes in, and in words comes out why it is not.

What is wrong counts at once. What is right again must have been right for a while, since a card that is ill comes and
goes; and an error of the hardware counts for longer each time it comes back.
"""

from dataclasses import dataclass, field, replace

from hansa.proto.units import DurationMs, UnixMs

WELL_MS: DurationMs = 60_000
"""How long everything must have been right."""
ERROR_MS: DurationMs = 600_000
"""How long the first error of the hardware counts; the next ones twice as long each, up to ``LONGEST_ERROR_MS``."""
LONGEST_ERROR_MS: DurationMs = 24 * 3_600_000
COOLER_C = 5
"""A card that was too hot must be cooler than its limit by this."""

HARDWARE_XIDS = {
    48: "a memory error that could not be corrected",
    62: "its own controller halted",
    63: "a row of its memory waits to be replaced",
    64: "a row of its memory could not be replaced",
    74: "an error of its NVLink",
    79: "it fell off the bus",
    92: "too many memory errors",
    94: "a memory error that was contained",
    95: "a memory error that was not contained",
    110: "a security fault",
    119: "its own controller does not answer",
    120: "an error of its own controller",
    121: "an error of its link to the processor",
    136: "its links did not come up",
    140: "memory errors that could not be corrected",
    143: "it could not be brought up",
    158: "a timeout that it does not recover from",
}
"""Error events that are the card's and not the program's, by their numbers in NVIDIA's list. The others, such as 13,
31, 43 and 45, are made by what a job does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """A GPU at one moment, as far as it matters here.

    Attributes:
        missing: why nothing is known of it; empty while its driver tells.
        xids: the driver's error events since the last time, by number.
        double_bit_errors: memory errors that could not be corrected, since its last reset.
        remap_failed: a row of its memory was to be replaced, and there was no spare one.
        reset_pending: rows or pages of its memory are to be replaced at the next reset.
        recovery: what its driver says must be done for it to be whole again; empty for nothing.
        temperature_c: of the chip.
        used_by: who uses it that is none of ours, in words; empty for nobody.
    """

    missing: str = ""
    xids: tuple[int, ...] = ()
    double_bit_errors: int = 0
    remap_failed: bool = False
    reset_pending: bool = False
    recovery: str = ""
    temperature_c: int | None = None
    used_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a device is not lent.

    Attributes:
        words: for its owner and its buyers.
        at_once: nothing computes on it that would be worth any patience.
    """

    words: str
    at_once: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What is remembered of one GPU.

    Attributes:
        reasons: why it is not lent; empty if it is.
        ailing_ms: when something was last wrong.
        errors: how many errors of the hardware there were.
        error: the last of them, in words.
        error_until_ms: until when it counts.
    """

    reasons: tuple[Reason, ...] = ()
    ailing_ms: UnixMs = 0
    errors: int = 0
    error: str = ""
    error_until_ms: UnixMs = 0

    @property
    def fit(self) -> bool:
        """Whether it may be lent."""
        return not self.reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRules:
    """The owner's part in it.

    Attributes:
        max_temperature_c: hotter than this it is not lent; ``None`` leaves heat to the card.
    """

    max_temperature_c: int | None = None


@dataclass(slots=True)
class _Found:
    reasons: list[Reason] = field(default_factory=list)

    def say(self, words: str, *, at_once: bool) -> None:
        self.reasons.append(Reason(words=words, at_once=at_once))


def judge(before: Health, vitals: Vitals, rules: HealthRules, at_ms: UnixMs) -> Health:
    """Look at a GPU once more."""
    after = _remember_errors(before, vitals, at_ms)
    found = _Found()
    if vitals.missing:
        found.say(vitals.missing, at_once=True)
    if at_ms < after.error_until_ms:
        found.say(after.error, at_once=True)
    if vitals.double_bit_errors > 0:
        found.say("its memory had errors that could not be corrected, and it was not reset since", at_once=True)
    if vitals.remap_failed:
        found.say("its memory has no spare rows left", at_once=True)
    if vitals.reset_pending:
        found.say("rows of its memory are to be replaced, and it was not reset since", at_once=True)
    if vitals.recovery:
        found.say(f"its driver asks for a {vitals.recovery}", at_once=True)
    if _is_too_hot(before, vitals, rules):
        found.say(f"it is hotter than {rules.max_temperature_c} °C", at_once=False)
    if vitals.used_by:
        found.say(f"{vitals.used_by} uses it", at_once=False)
    if found.reasons:
        return replace(after, reasons=tuple(found.reasons), ailing_ms=at_ms)
    if before.reasons and at_ms - before.ailing_ms < WELL_MS:
        return after  # the reasons stand until it has been well for a while
    return replace(after, reasons=())


def _remember_errors(before: Health, vitals: Vitals, at_ms: UnixMs) -> Health:
    grave = [xid for xid in vitals.xids if xid in HARDWARE_XIDS]
    if not grave:
        return before
    lasts_ms = min(LONGEST_ERROR_MS, ERROR_MS << min(before.errors, 16))
    return replace(
        before,
        errors=before.errors + 1,
        error=f"{HARDWARE_XIDS[grave[-1]]} (Xid {grave[-1]})",
        error_until_ms=at_ms + lasts_ms,
    )


def _is_too_hot(before: Health, vitals: Vitals, rules: HealthRules) -> bool:
    if rules.max_temperature_c is None or vitals.temperature_c is None:
        return False
    was_hot = any(reason.words == f"it is hotter than {rules.max_temperature_c} °C" for reason in before.reasons)
    return vitals.temperature_c > rules.max_temperature_c - (COOLER_C if was_hot else 0)
