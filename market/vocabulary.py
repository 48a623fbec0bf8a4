"""The words of the requirements language: what can be said of devices, providers and jobs.

Every word has one kind of value; how each kind is written and compared is in ``hansa.market.value_forms``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from hansa.market.value_forms import KEYS, READERS, Kind, stepped_value
from hansa.proto.market_documents import KIND_CPU, KIND_GPU, LEASE_FIRM, LEASE_SPOT, Fact

ANY: Final = "any"
"""A value that sets no condition."""


class Of(StrEnum):
    """Of what a word tells a fact, and so who knows it."""

    DEVICE = "device"
    PROVIDER = "provider"
    BID = "bid"
    BUYER = "buyer's own knowledge"
    JOB = "job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word.

    Attributes:
        name: as it is written.
        kind: what sort of value it has.
        of: what it tells a fact of; a word may serve a job's needs and a provider's rules.
        meaning: for the page of the vocabulary.
        example: a term with it.
        allowed: for texts, the only ones; empty for any.
    """

    name: str
    kind: Kind
    of: tuple[Of, ...]
    meaning: str
    example: str
    allowed: tuple[str, ...] = ()

    @property
    def is_ordered(self) -> bool:
        """Whether less and more have a meaning."""
        return self.kind in KEYS

    def read(self, text: str) -> str:
        """A value in its one form.

        Raises:
            ValueError: it is no such value.
        """
        value = READERS[self.kind](text)
        if self.allowed and value not in self.allowed:
            raise ValueError(f"is none of {', '.join(self.allowed)}")
        return value

    def key(self, value: str) -> Any:
        """What a value in its one form is compared by; only of words that are ordered."""
        return KEYS[self.kind](value)

    def stepped(self, value: str, step: int) -> str:
        """The value next below or above, where values can be counted; else empty."""
        return stepped_value(self.kind, value, step)


def find(name: str) -> Word | None:
    """The word of that name, in any case."""
    return VOCABULARY.get(name.casefold())


def _w(name: str, kind: Kind, of: Of | tuple[Of, ...], meaning: str, example: str, *allowed: str) -> Word:
    ofs = (of,) if isinstance(of, Of) else of
    return Word(name=name, kind=kind, of=ofs, meaning=meaning, example=example, allowed=allowed)


_BOTH: Final = (Of.DEVICE, Of.JOB)
WORDS: Final = (
    _w("gpu", Kind.MODEL, Of.DEVICE, "the model, or a family of models", "gpu in (H100, A100-80GB)"),
    _w("devices", Kind.COUNT, _BOTH, "how many devices a shard gets", "devices = 2"),
    _w("share", Kind.SHARE, (Of.DEVICE, Of.BID, Of.JOB), "the part of one device that a shard gets", "share = 25 %"),
    _w("kind", Kind.TEXT, _BOTH, "what the devices are", "kind = gpu", KIND_CPU, KIND_GPU),
    _w("vram", Kind.SIZE, Of.DEVICE, "each device's own memory, as its driver says it", "vram >= 40 GB"),
    _w("interconnect", Kind.TEXT, Of.DEVICE, "between every two of a machine's GPUs", "interconnect = nvlink"),
    _w("driver", Kind.VERSION, Of.DEVICE, "the GPU driver's version", "driver >= 550"),
    _w("cuda", Kind.VERSION, Of.DEVICE, "the newest CUDA that the driver runs", "cuda >= 12.4"),
    _w("compute", Kind.VERSION, Of.DEVICE, "CUDA compute capability", "compute >= 8.0"),
    _w("vendor", Kind.TEXT, Of.DEVICE, "who made the GPU", "vendor = nvidia"),
    _w("arch", Kind.TEXT, Of.DEVICE, "the processor's architecture", "arch = x86_64"),
    _w("benchmark", Kind.NUMBER, Of.DEVICE, "TFLOP/s in bf16 of one device, as its owner measured", "benchmark >= 60"),
    _w("spare", Kind.NUMBER, Of.PROVIDER, "what is free of devices that are lent in parts, in devices", "spare >= 0.5"),
    _w("cores", Kind.NUMBER, Of.PROVIDER, "CPU cores, all devices of a shard together", "cores >= 16"),
    _w("ram", Kind.SIZE, Of.PROVIDER, "main memory that a run may use", "ram >= 64 GiB"),
    _w("disk", Kind.SIZE, Of.PROVIDER, "room for a run's files", "disk >= 200 GB"),
    _w("download", Kind.RATE, Of.PROVIDER, "from the internet", "download >= 500 Mbit/s"),
    _w("upload", Kind.RATE, Of.PROVIDER, "to the internet", "upload >= 100 Mbit/s"),
    _w(
        "region",
        Kind.PLACE,
        Of.PROVIDER,
        "where the machine stands: a country's code or name, `eu`, a continent, or a part of the name",
        "region not in (cn, ru)",
    ),
    _w("tier", Kind.TIER, (Of.PROVIDER, Of.JOB), "isolation; in a job's needs this one or a stronger", "tier = gvisor"),
    _w("features", Kind.WORDS, Of.PROVIDER, "what else jobs can have; all that are named", "features = image"),
    _w("stated", Kind.WORDS, Of.PROVIDER, "the facts that are only their owner's word", "stated not in (download)"),
    _w("price", Kind.PRICE, (Of.BID, Of.JOB), "of one device and one hour, in the job's currency", "price <= 2.10"),
    _w("notice", Kind.DURATION, Of.BID, "how long before devices are taken back the buyer is told", "notice >= 5 min"),
    _w(
        "lease",
        Kind.TEXT,
        (Of.BID, Of.JOB),
        "whether devices may be taken back",
        "lease = firm",
        LEASE_FIRM,
        LEASE_SPOT,
    ),
    _w("deadline", Kind.DURATION, Of.BID, "from now; the job is worth nothing after it", "deadline = 6 h"),
    _w(
        "reliability",
        Kind.SHARE,
        Of.BUYER,
        "of the provider's leases with you, those that ended well",
        "reliability >= 0.95",
    ),
    _w(
        "reputation", Kind.SHARE, (Of.BUYER, Of.JOB), "what signed dealings say of the other side", "reputation >= 50 %"
    ),
    _w(
        "licence",
        Kind.WORDS,
        (Of.PROVIDER, Of.JOB),
        "of the code and data; what the provider is certified for",
        "licence = mit",
    ),
    _w("data_region", Kind.WORDS, (Of.PROVIDER, Of.JOB), "where the data may be", "data_region = eu"),
    _w("buyer", Kind.ACCOUNT, Of.JOB, "whose job it is", "buyer in (0x52908400098527886e0f7030069857d2e4169ee7)"),
    _w("network", Kind.WORDS, Of.JOB, "hosts that the job wants to reach, or none", "network = none"),
    _w("wall", Kind.DURATION, Of.JOB, "the longest that a run may take", "wall <= 24 h"),
    _w("shards", Kind.COUNT, Of.JOB, "how many shards the tender is for", "shards <= 8"),
    _w("purpose", Kind.WORDS, Of.JOB, "what the job is for, in its buyer's words", "purpose = research"),
    _w("prepay", Kind.DURATION, Of.JOB, "how much device time the buyer pays ahead", "prepay >= 1 min"),
)
VOCABULARY: Final[Mapping[str, Word]] = {word.name: word for word in WORDS}
OWNERS_WORDS: Final = ("benchmark", "data_region", "download", "licence", "upload")
"""What an owner may state of a machine beside what the node finds out itself."""
BUYERS_WORDS: Final = ("data_region", "licence", "prepay", "purpose")
"""What a buyer states of a job. The rest a provider reads from the tender."""


def facts(values: Mapping[str, str]) -> tuple[Fact, ...]:
    """Facts as documents carry them: in the vocabulary's form, sorted by name. Empty values say nothing.

    Raises:
        ValueError: a value is not of its word's kind.
    """
    told = {name: value for name, value in values.items() if value}
    return tuple(Fact(name=name, value=VOCABULARY[name].read(told[name])) for name in sorted(told))


def page(*, of_jobs: bool = False) -> str:
    """The words of a job's needs, or of a provider's rules on jobs, as a table in Markdown."""
    lines = ["| word | value | a fact of | meaning | example |", "|---|---|---|---|---|"]
    for word in WORDS:
        of = [one for one in word.of if (one is Of.JOB) == of_jobs]
        if of:
            row = (f"`{word.name}`", word.kind, ", ".join(of), word.meaning, f"`{word.example}`")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"
