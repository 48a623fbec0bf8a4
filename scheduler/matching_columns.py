"""Adverts in columns: put in, replaced and taken out in place, so that a filter is a few comparisons of whole arrays.

One row is one advert's devices of one sort (kind, model, memory, cores, facts); nearly all adverts have one. Rows that
became free are used again, and the arrays double when they are full, so a change costs the same however many adverts
there are. Figures here rank and rule out; what is promised and paid is decided on the documents themselves.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hansa.market.clauses import facts_of
from hansa.market.value_forms import Kind
from hansa.market.vocabulary import VOCABULARY, Of, Word
from hansa.proto.market_documents import Advert, Device, Fact
from hansa.proto.units import Address

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

MISSING = np.iinfo(np.int64).min
"""Where a row does not state the fact."""
LARGEST = np.iinfo(np.int64).max
FIRST_ROWS = 64
MOST_FEATURES = 62
"""As many features have a bit of their own; whatever is named after that is looked at in the advert itself."""
COUNTED = frozenset((Kind.SIZE, Kind.NUMBER, Kind.COUNT, Kind.DURATION, Kind.SHARE, Kind.PRICE, Kind.RATE, Kind.TIER))
"""Kinds whose values are compared as one whole number; of the others the distinct values are looked at once each."""

LASTING = ("devices", "tier", "features", "region", "facts", "currency")
"""What is seldom different in the next advert of the same account."""
SLACK_NAMES = 4_096
"""So many more distinct texts than rows may be remembered, before those that nobody states any more are forgotten."""

ASKED = frozenset(word.name for word in VOCABULARY.values() if {Of.DEVICE, Of.PROVIDER} & set(word.of))
ASKED -= {"cores", "devices"}
"""Words whose values an advert can tell of a single device; these two are of all devices of a shard together."""


@dataclass(slots=True)
class Names:
    """Texts and their numbers, in the order in which they were first seen."""

    number: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def of(self, name: str) -> int:
        """The number of a text, a new one if need be."""
        known = self.number.get(name)
        if known is None:
            known = self.number[name] = len(self.names)
            self.names.append(name)
        return known


@dataclass(slots=True)
class FactColumn:
    """The values of one word: numbers of a kind that is counted, else numbers of the distinct texts."""

    word: Word
    values: Ints
    texts: Names = field(default_factory=Names)

    @property
    def is_counted(self) -> bool:
        """Whether the values are compared as they are."""
        return self.word.kind in COUNTED

    def key(self, text: str) -> int:
        """What stands in the column for a value; ``MISSING`` for one that is none."""
        if not self.is_counted:
            return self.texts.of(text)
        try:
            return min(int(self.word.key(self.word.read(text))), LARGEST)
        except ValueError:
            return int(MISSING)


def spread(words: Words) -> Words:
    """The words mixed so that neighbours are far apart (the finisher of splitmix64): chance that comes from a seed."""
    mixed = words + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)


class Columns:
    """Adverts by account, their rows, and the columns of these."""

    def __init__(self) -> None:
        """Empty."""
        self.generation = 0
        """Rises when texts and rows get other numbers."""
        self._left = 0
        """How many distinct texts the last compaction left."""
        self._clear()

    def _clear(self) -> None:
        self.adverts: dict[Address, Advert] = {}
        self.rows_of: dict[Address, tuple[int, ...]] = {}
        self.account: list[Address] = [Address(bytes(20))] * FIRST_ROWS
        self._free: list[int] = []
        self.height = 0
        """Rows that were ever used; those beyond hold nothing."""
        self.kinds, self.models, self.tiers, self.currencies = Names(), Names(), Names(), Names()
        self.features, self.facts = Names(), dict[str, FactColumn]()
        self.live: Flags = np.zeros(FIRST_ROWS, dtype=np.bool_)
        self.several: Flags = np.zeros(FIRST_ROWS, dtype=np.bool_)
        """Rows of adverts that have more than one."""
        self.first: Ints = np.zeros(FIRST_ROWS, dtype=np.int64)
        """The first row of the same advert, which stands for all of it."""
        self.count: Ints = np.zeros(FIRST_ROWS, dtype=np.int64)
        self.free: Ints = np.zeros(FIRST_ROWS, dtype=np.int64)
        self.kind: Ints = np.zeros(FIRST_ROWS, dtype=np.int64)
        self.model: Ints = np.zeros(FIRST_ROWS, dtype=np.int64)
        self.memory: Ints = np.zeros(FIRST_ROWS, dtype=np.int64)
        self.cores: Ints = np.zeros(FIRST_ROWS, dtype=np.int64)
        self.tier: Ints = np.zeros(FIRST_ROWS, dtype=np.int64)
        self.currency: Ints = np.zeros(FIRST_ROWS, dtype=np.int64)
        self.feature_bits: Ints = np.zeros(FIRST_ROWS, dtype=np.int64)
        self.expires: Ints = np.zeros(FIRST_ROWS, dtype=np.int64)
        self.price: Floats = np.zeros(FIRST_ROWS, dtype=np.float64)
        """For ranking only; prices are whole numbers, and compared as such before anybody is bound to one."""
        self.reliability: Floats = np.zeros(FIRST_ROWS, dtype=np.float64)
        self.word: Words = np.zeros(FIRST_ROWS, dtype=np.uint64)
        """The account's first eight bytes: what breaks ties, and what chance is mixed with."""

    def __len__(self) -> int:
        """How many adverts there are."""
        return len(self.adverts)

    def put(self, advert: Advert, *, reliability: float = 1.0) -> None:
        """Take an advert in; it replaces the account's earlier one. Should it fail, nothing has changed."""
        if self._says_the_same(advert):
            for row in self.rows_of[advert.signer]:
                self._write_terms(row, advert, reliability)
            self.adverts[advert.signer] = advert
            return
        # Twice what was left: adverts that state many texts must not make every later one rebuild everything.
        if self._distinct() > max(SLACK_NAMES + 4 * self.height, 2 * self._left):
            self._compact()
        sorts: dict[tuple[str, str, int, int, tuple[Fact, ...]], list[Device]] = {}
        for device in advert.devices:
            sort = (device.kind, device.model, device.memory_bytes, device.cores_milli, device.facts)
            sorts.setdefault(sort, []).append(device)
        # All that could fail comes before the first change: half an advert in the columns would break every search.
        drafts = [self._draft(advert, devices) for devices in sorts.values()]
        self.remove(advert.signer)
        if not sorts:
            return
        rows = tuple(self._row() for _ in sorts)
        for row, (terms, facts) in zip(rows, drafts, strict=True):
            self._write(row, advert, terms, facts)
            self._write_terms(row, advert, reliability)
            self.first[row], self.several[row] = rows[0], len(rows) > 1
        self.adverts[advert.signer], self.rows_of[advert.signer] = advert, rows

    def remove(self, account: Address) -> None:
        """Take the account's advert out, if it has one."""
        if self.adverts.pop(account, None) is None:
            return
        for row in self.rows_of.pop(account):
            self.live[row] = False
            self._free.append(row)

    def expire(self, now_ms: int) -> tuple[Address, ...]:
        """Take out what has expired; the accounts whose adverts these were."""
        rows = np.flatnonzero(self.live[: self.height] & (self.expires[: self.height] <= now_ms))
        gone = tuple(sorted({self.account[row] for row in rows}))
        for account in gone:
            self.remove(account)
        return gone

    def learn(self, account: Address, reliability: float) -> None:
        """What is held of a provider has changed."""
        for row in self.rows_of.get(account, ()):
            self.reliability[row] = reliability

    def fact(self, name: str) -> Ints | None:
        """The column of one word, as far as there are rows; ``None`` where nobody states it."""
        column = self.facts.get(name)
        return None if column is None else column.values[: self.height]

    def _distinct(self) -> int:
        texts = (self.kinds, self.models, self.tiers, self.currencies, self.features)
        return sum(len(names.names) for names in (*texts, *(column.texts for column in self.facts.values())))

    def _compact(self) -> None:
        """Begin anew with what is there: whoever changes its texts with every advert must not fill the memory."""
        standing = [(advert, float(self.reliability[self.rows_of[key][0]])) for key, advert in self.adverts.items()]
        self.generation += 1
        self._left = self._distinct()  # while they are put in again, nothing is to begin anew once more
        self._clear()
        for advert, reliability in standing:
            self.put(advert, reliability=reliability)
        self._left = self._distinct()

    def _row(self) -> int:
        if self._free:
            return self._free.pop()
        if self.height == len(self.live):
            self._grow()
        self.height += 1
        return self.height - 1

    def _grow(self) -> None:
        for name, column in list(vars(self).items()):
            if isinstance(column, np.ndarray):
                setattr(self, name, np.concatenate((column, np.zeros_like(column))))
        self.account += [Address(bytes(20))] * len(self.account)
        for fact in self.facts.values():
            fact.values = np.concatenate((fact.values, np.full(len(fact.values), MISSING, dtype=np.int64)))

    def _draft(self, advert: Advert, devices: list[Device]) -> tuple[dict[str, np.int64], dict[str, np.int64]]:
        """What is to stand in the columns for one sort of devices, and in those of the facts.

        Words that nobody could ask for get no column: they are as many as strangers care to think of.
        """
        device = devices[0]
        told = facts_of(advert) | {fact.name: fact.value for fact in device.facts}
        facts = {name: np.int64(self._fact_column(name).key(told[name])) for name in told if name in ASKED}
        # The same as ``market.clauses.device_facts`` says, without a text in between.
        facts["kind"] = np.int64(self._fact_column("kind").key(device.kind))
        if device.memory_bytes:
            self._fact_column("vram")
            facts["vram"] = np.int64(min(device.memory_bytes, LARGEST))
        terms = {
            "count": len(devices),
            "kind": self.kinds.of(device.kind),
            "model": self.models.of(device.model),
            "memory": min(device.memory_bytes, LARGEST),
            "cores": device.cores_milli,
            "tier": self.tiers.of(advert.tier),
            "currency": self.currencies.of(advert.currency),
            "feature_bits": self.bits(advert.features),
        }
        return {name: np.int64(value) for name, value in terms.items()}, facts

    def _write(self, row: int, advert: Advert, terms: dict[str, np.int64], facts: dict[str, np.int64]) -> None:
        self.live[row] = True
        self.account[row] = advert.signer
        self.word[row] = int.from_bytes(advert.signer[:8], "big")
        for name, value in terms.items():
            getattr(self, name)[row] = value
        for name, column in self.facts.items():
            column.values[row] = facts.get(name, MISSING)

    def _says_the_same(self, advert: Advert) -> bool:
        """Whether it differs from the account's earlier one in what ``_write_terms`` writes at the most."""
        known = self.adverts.get(advert.signer)
        return known is not None and all(getattr(known, name) == getattr(advert, name) for name in LASTING)

    def _write_terms(self, row: int, advert: Advert, reliability: float) -> None:
        """What changes from one advert of an account to its next."""
        self.free[row], self.expires[row] = advert.free, min(advert.expires_ms, LARGEST)
        self.price[row], self.reliability[row] = float(advert.price_e18_per_device_ms), reliability

    def _fact_column(self, name: str) -> FactColumn:
        column = self.facts.get(name)
        if column is None:
            values = np.full(len(self.live), MISSING, dtype=np.int64)
            column = self.facts[name] = FactColumn(word=VOCABULARY[name], values=values)
        return column

    def bits(self, features: tuple[str, ...]) -> int:
        """The features as bits; those that came after ``MOST_FEATURES`` others have none."""
        bits = 0
        for number in [self.features.of(feature) for feature in features]:
            # Not a sum: a feature that an advert names twice would carry into another one's bit.
            bits |= 1 << number if number < MOST_FEATURES else 0
        return bits
