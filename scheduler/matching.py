"""Which adverts could serve a job, what each would cost it, and whom to ask: filters over columns, then a short list.

The filters never rule out an advert that could serve: what they let through is checked on the advert itself, a few
dozen instead of a hundred thousand. The short list has the cheapest, and three times as many that chance picks from
the rest: with the cheapest alone, all buyers ask the same few and a fifth of what could be traded is not.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from hansa.market.clauses import failures
from hansa.market.isolation import is_served
from hansa.market.value_forms import Kind
from hansa.market.vocabulary import find
from hansa.proto.gpu_models import matches, parse
from hansa.proto.market_documents import KIND_CPU, Advert, Clause, Requirements
from hansa.proto.units import Address
from hansa.scheduler.matching_columns import (
    ASKED,
    LARGEST,
    MISSING,
    MOST_FEATURES,
    Columns,
    Flags,
    Floats,
    Ints,
    spread,
)

OTHERS_FOR_EACH = 3
"""So many of a short list are picked by chance for each that is there for being cheap."""
NARROW_BPS = 50_000_000.0
"""A line whose rate nobody states counts as this one: 50 Mbit/s."""
WINDOW = 4
"""So many times as many rows are looked at as are wanted, before the list is known to be too short for that."""

MOST_TABLES = 1_024
"""So many questions about texts are remembered."""

Holds = Callable[[Clause, str | None], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a buyer looks for.

    Attributes:
        requirements: of one shard.
        currency: the unit of account.
        ceiling_e18: the most that it pays for a device and a millisecond, times 1e18.
    """

    requirements: Requirements
    currency: str
    ceiling_e18: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Taste:
    """What else than the price makes an advert dear. Ranks only: no amount of money is ever taken from here.

    Attributes:
        speeds: useful throughput by model, where it is known; of any unit.
        usual_speed: that of a model of which nothing is known.
        gamma: how much reliability weighs; the cost is divided by its power.
        input_bytes: what has to come to the provider before a shard starts.
        work_ms: how long a shard works.
    """

    speeds: Mapping[str, float] = field(default_factory=dict)
    usual_speed: float = 1.0
    gamma: float = 1.0
    input_bytes: int = 0
    work_ms: int = 3_600_000


PLAIN = Taste()


def holds_of(clause: Clause, value: str | None) -> bool:
    """Whether a clause is true of a value in the vocabulary's form, or of none."""
    return not failures((clause,), {} if value is None else {clause.name: value})


class Filter:
    """The columns' answers to wishes. Answers about distinct texts are remembered, and grow with the texts."""

    def __init__(self, columns: Columns, holds: Holds = holds_of) -> None:
        """``holds`` says whether a clause is true of a value, and of none."""
        self._columns, self._holds = columns, holds
        self._tables: dict[object, list[bool]] = {}
        self._generation = columns.generation

    def _table(self, key: object, names: list[str], holds: Callable[[str], bool]) -> Flags:
        """For every distinct text whether something holds of it; asked once for each."""
        if len(self._tables) > MOST_TABLES or self._generation != self._columns.generation:
            self._tables.clear()
            self._generation = self._columns.generation
        table = self._tables.setdefault(key, [])
        table.extend(holds(name) for name in names[len(table) :])
        return np.array(table, dtype=np.bool_)

    def rows(self, wish: Wish, *, at_ms: int) -> Ints:
        """The first row of every advert that may serve one shard."""
        columns, needs, height = self._columns, wish.requirements, self._columns.height
        if not height:
            return np.zeros(0, dtype=np.int64)
        currency = columns.currencies.number.get(wish.currency, -1)
        fits = columns.live[:height] & (columns.expires[:height] > at_ms)
        fits &= columns.currency[:height] == currency
        # A price is rounded by less than this on its way to a float; the exact comparison follows.
        fits &= columns.price[:height] <= float(wish.ceiling_e18) * (1 + 1e-12)
        fits &= self._table(("tier", needs.tier), columns.tiers.names, lambda tier: is_served(needs.tier, tier))[
            columns.tier[:height]
        ]
        if needs.features:
            wanted = [columns.features.number.get(feature) for feature in needs.features]
            if None in wanted:
                return np.zeros(0, dtype=np.int64)
            bits = sum(1 << number for number in wanted if number is not None and number < MOST_FEATURES)
            fits &= (columns.feature_bits[:height] & bits) == bits
        for clause in needs.clauses:
            fits &= self._of_clause(clause)
        fits &= self._of_devices(needs)
        if not needs.choices:
            return self._enough(fits, needs, needs.devices)
        found = [self._enough(fits & self._named(one.model), needs, one.devices) for one in needs.choices]
        return np.unique(np.concatenate(found))

    def devices(self, needs: Requirements, rows: Ints) -> Ints:
        """How many devices a shard would take of each of these rows' adverts: by the choice with the fewest."""
        fewest = np.full(len(rows), needs.devices, dtype=np.int64)
        for one in sorted(needs.choices, key=lambda choice: -choice.devices):
            fewest[self._named(one.model)[rows]] = one.devices
        return fewest

    def _named(self, model: str) -> Flags:
        columns = self._columns
        table = self._table(("model", model), columns.models.names, lambda have: _may_be(model, have))
        return np.asarray(table[columns.model[: columns.height]], dtype=np.bool_)

    def _of_devices(self, needs: Requirements) -> Flags:
        columns, height = self._columns, self._columns.height
        fits = columns.memory[:height] >= min(needs.device_memory_bytes, LARGEST)
        if needs.kind != "any":
            fits &= columns.kind[:height] == columns.kinds.number.get(needs.kind, -1)
        return np.asarray(fits, dtype=np.bool_)

    def _enough(self, fits: Flags, needs: Requirements, devices: int) -> Ints:
        """Of these rows' adverts those with enough devices, cores and (of slots of CPUs) memory."""
        columns = self._columns
        rows = np.flatnonzero(fits)
        several = columns.several[rows]
        alone = rows[~several & (columns.count[rows] >= devices)]
        enough = columns.cores[alone] * devices >= needs.cores_milli
        slots = columns.kind[alone] == columns.kinds.number.get(KIND_CPU, -1)
        enough &= ~slots | (columns.memory[alone].astype(np.float64) * devices >= needs.memory_bytes * (1 - 1e-12))
        alone = alone[enough]
        rows = rows[several]
        if not len(rows):
            return alone
        # Of adverts with devices of several sorts only their number is looked at here.
        firsts, where = np.unique(columns.first[rows], return_inverse=True)
        together = np.bincount(where, weights=columns.count[rows])
        return np.concatenate((alone, firsts[together >= devices]))

    def _of_clause(self, clause: Clause) -> Flags:
        columns, height = self._columns, self._columns.height
        word, none = find(clause.name), np.zeros(height, dtype=np.bool_)
        if word is not None and (word.name not in ASKED or word.kind is Kind.MODEL):
            return ~none  # a bid or the buyer's own books will tell; what a model is depends on its memory too
        column = columns.facts.get(clause.name)
        if column is None or not clause.values:
            return none  # whatever nobody states holds of nobody
        values = column.values[:height]
        listed = clause.operator in ("in", "not in")
        if not column.is_counted:
            table = self._table(clause, column.texts.names, lambda value: self._holds(clause, value))
            told = table[np.maximum(values, 0)] if len(table) else none
            return np.asarray(told & (values != MISSING), dtype=np.bool_)
        keys = np.array([column.key(value) for value in clause.values], dtype=np.int64)
        if MISSING in keys or (len(keys) > 1 and not listed):
            return none  # what is asked cannot be read
        if listed:
            told = np.isin(values, keys) ^ (clause.operator == "not in")
        elif clause.operator in _COMPARE:
            told = _COMPARE[clause.operator](values, int(keys[0]))
        else:
            return none
        return np.asarray(told & (values != MISSING), dtype=np.bool_)


_COMPARE: Mapping[str, Callable[[Ints, int], Flags]] = {
    "=": lambda values, key: values == key,
    "!=": lambda values, key: values != key,
    "<": lambda values, key: values < key,
    "<=": lambda values, key: values <= key,
    ">": lambda values, key: values > key,
    ">=": lambda values, key: values >= key,
}


def _may_be(wanted: str, have: str) -> bool:
    """Whether a device with this name is the model that is wanted, if its memory is what that model has."""
    wish = parse(wanted)
    return matches(wanted, have) or (wish is not None and matches(wanted, have, wish.memory_gb << 30))


def expected_costs(columns: Columns, rows: Ints, taste: Taste = PLAIN) -> Floats:
    """What the same work would cost at each of these rows' providers, in a unit of its own: lower is better."""
    speeds = np.array([taste.speeds.get(model, taste.usual_speed) for model in columns.models.names], dtype=np.float64)
    cost = columns.price[rows] / speeds[columns.model[rows]]
    cost /= np.maximum(columns.reliability[rows], 1e-6) ** taste.gamma
    if taste.input_bytes:
        rates = columns.fact("download")
        bps = np.full(len(rows), NARROW_BPS) if rates is None else rates[rows].astype(np.float64)
        bps = np.where(bps > 0, bps, NARROW_BPS)
        cost *= 1 + (taste.input_bytes * 8_000.0 / bps) / taste.work_ms
    return np.asarray(cost, dtype=np.float64)


def _lowest(keys: Floats, columns: Columns, rows: Ints, most: int) -> Iterator[int]:
    """Rows from the lowest key up, the account deciding between equals; sorted only as far as they are asked for."""
    start, wanted = 0, most
    while start < len(rows):
        wanted = min(max(wanted, 1), len(rows))
        within = np.flatnonzero(keys <= np.partition(keys, wanted - 1)[wanted - 1])
        order = within[np.lexsort((columns.word[rows[within]], keys[within]))]
        yield from rows[order[start:]].tolist()
        start, wanted = len(order), len(order) * WINDOW


def shortlist(
    columns: Columns,
    rows: Ints,
    costs: Floats,
    *,
    most: int,
    chance: int,
    serves: Callable[[Advert], bool] = lambda _advert: True,
) -> tuple[Address, ...]:
    """Whom to ask, the cheapest first: a quarter of ``most`` for being cheap, the others by chance from all the rest.

    Args:
        columns: where the rows stand.
        rows: one row of every advert that may serve.
        costs: of each.
        most: how many at the most.
        chance: a number that nobody could foresee; the same one gives the same list.
        serves: whether an advert really would do. It is asked in order, until there are enough.
    """
    if most <= 0 or not len(rows):
        return ()
    cheapest = math.ceil(most / (1 + OTHERS_FOR_EACH))
    chosen: dict[int, None] = {}

    def fill(order: Iterator[int], until: int) -> None:
        for row in order:
            if len(chosen) >= until:
                return
            if row not in chosen and serves(columns.adverts[columns.account[row]]):
                chosen[row] = None

    fill(_lowest(costs, columns, rows, cheapest * WINDOW), cheapest)
    drawn = spread(columns.word[rows] ^ np.uint64(chance % (1 << 64))).astype(np.float64)
    fill(_lowest(drawn, columns, rows, most * WINDOW), most)
    where = np.flatnonzero(np.isin(rows, list(chosen)))
    ranked = sorted((float(costs[place]), columns.account[rows[place]]) for place in where)
    return tuple(account for _cost, account in ranked)
