"""What a buyer has seen itself: how leases with a provider ended, and how fast a kind of job ran on which devices.

Integers only, so that two machines that know the same come to the same figure to the last digit.

How likely a lease ends well is a beta distribution: its prior says what is thought of a provider that nobody knows,
good ends add to one side and bad ends to the other. What counts is not its mean but the mean less one standard
deviation: one good lease proves less than ten, and a provider that comes back under a new name is never better off than
one that kept its own and did as it promised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt

from hansa.proto.keccak import keccak256
from hansa.proto.units import Address, Bytes32, DeviceMs, Line, Uint32, Uint64, UnixMs
from hansa.proto.workload import Workload

PPM = 1_000_000
PRIOR_GOOD = 3
PRIOR_BAD = 1
"""A provider that nobody knows counts as four leases of which one ended badly: its bound is 0.55, about a half."""
TOLD_LEASES = 4
"""As so many good leases counts the best reputation of a provider that is new here."""
TAKEN_PRIOR_OF = 8
"""Before anything is known of it, a provider counts as one that takes its devices back in one of so many leases."""
LEAST_STEPS = 3
"""Fewer measured steps say nothing of a speed."""
MOST_STEPS = 1 << 62
RATE_MS = 1_000_000_000
"""Rates are steps in so much time of a run, so that slow jobs have digits too."""


def lower_bound_ppm(good_ppm: int, bad_ppm: int) -> int:
    """The mean of a beta distribution less its standard deviation, in millionths. Counts are given in millionths."""
    both = good_ppm + bad_ppm
    # Rounded once, at the end: where each part was rounded by itself one more bad end could raise the figure.
    mean = good_ppm * 10**18 // both
    deviation = isqrt(good_ppm * bad_ppm * 10**42 // (both * both * (both + PPM))) + 1
    return max(1, (mean - deviation) // (10**18 // PPM))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How a provider's earlier leases with this node ended, and its figure from signed dealings.

    Attributes:
        good, bad: how many ended well, and how many did not.
        told_ppm: what others' signed dealings say of it, in millionths.
        taken_back: how many ended because their devices were taken back, with the notice that was promised.
        own: how many ended, by its word alone, with an error of the job's own code.
    """

    good: Uint32 = 0
    bad: Uint32 = 0
    told_ppm: Uint32 = 0
    taken_back: Uint32 = 0
    own: Uint32 = 0

    @property
    def reliability_ppm(self) -> int:
        """The share of its leases that will end well, with some certainty, in millionths."""
        told = TOLD_LEASES * min(self.told_ppm, PPM)
        return lower_bound_ppm((PRIOR_GOOD + self.good) * PPM + told, (PRIOR_BAD + self.bad) * PPM)

    @property
    def taken_back_ppm(self) -> int:
        """The expected share of its leases whose devices it takes back, in millionths."""
        return (self.taken_back + 1) * PPM // (self.good + self.bad + self.taken_back + TAKEN_PRIOR_OF)


def doubted(record: Record, others: Sequence[Record]) -> int:
    """How many of the errors that a provider says were the jobs' own count against it.

    Whose code fails has it fail everywhere. So as large a share of its leases is believed as ended so at all others
    together (a half where nobody else had any), and one more; who says it oftener has what is beyond that as bad ends.
    """
    own = sum(other.own for other in others)
    both = own + sum(other.good for other in others)
    believed = (record.own + record.good) * (own + 1) // (both + 2) + 1
    return max(0, record.own - believed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How fast one kind of job ran on so many devices of one model of one provider, as far as it was paid for.

    Attributes:
        kind: which kind of job (``job_kind``).
        provider: whose devices.
        model: what it said that they are.
        devices: how many worked on a shard.
        steps, device_ms: what was measured from one receipt to the next, all such leases together.
        at_ms: when the newest of it was measured.
    """

    kind: Bytes32
    provider: Address
    model: Line
    devices: Uint32
    steps: Uint64 = 0
    device_ms: DeviceMs = 0
    at_ms: UnixMs = 0

    @property
    def key(self) -> bytes:
        """Under which it is kept."""
        return keccak256(b"\0".join((self.kind, self.provider, self.model.encode(), str(self.devices).encode())))

    def rate(self, devices: int) -> int:
        """Steps of a shard in ``RATE_MS`` of a run on so many devices; more devices count in proportion."""
        return self.steps * devices * RATE_MS // self.device_ms if self.device_ms else 0


def job_kind(workload: Workload) -> bytes:
    """Which kind of job it is: those of one name and one entry are taken to do steps of one size."""
    return keccak256(b"\0".join((b"job kind", workload.name.encode(), workload.entry.encode())))


def lower_median(values: Sequence[int]) -> int:
    """The middle value, of an even number the lower of the two."""
    return sorted(values)[(len(values) - 1) // 2]


def measured_rate(trials: Sequence[Trial], provider: bytes, model: str, devices: int) -> tuple[int, bool] | None:
    """How fast a shard would run there: (rate, whether it was measured on that very provider); None if nothing says.

    What a provider's own devices did goes before what is known of their model: whoever says that its devices are faster
    than they are is believed once. Of a model the lower median of its providers counts, so that no single one of three
    moves it by inventing steps.
    """
    enough = [trial for trial in trials if trial.steps >= LEAST_STEPS]
    # Who now says nothing of its model does not get away from what its devices did.
    own = [trial for trial in enough if trial.provider == provider and model in (trial.model, "")]
    own = [trial for trial in own if trial.devices == devices] or own
    if own:
        return max(1, lower_median([trial.rate(devices) for trial in own])), True
    by_provider: dict[bytes, int] = {}
    for trial in enough:
        if not model or trial.model != model:
            continue
        if trial.provider not in by_provider or trial.devices == devices:
            by_provider[trial.provider] = trial.rate(devices)
    return (max(1, lower_median(list(by_provider.values()))), False) if by_provider else None


def added(before: Trial | None, measured: Trial) -> Trial:
    """What is known of a trial with what was just measured."""
    if before is None:
        return measured
    return replace(
        measured,
        # Steps are a stranger's word, and have to fit where they are written down.
        steps=min(before.steps + measured.steps, MOST_STEPS),
        device_ms=before.device_ms + measured.device_ms,
    )
