"""The index over adverts against a plain reading of the same adverts."""

from dataclasses import replace

import numpy as np
from drawn_values import TEXT, dataclasses_of
from hypothesis import event, given, settings
from hypothesis import strategies as st

from hansa.market.clauses import facts_of, failures
from hansa.market.isolation import is_served
from hansa.proto.gpu_models import matches
from hansa.proto.market_documents import Advert, Clause, Device, DeviceChoice, Fact, Requirements
from hansa.scheduler.fitting import misfit
from hansa.scheduler.matching import Filter, Taste, Wish, expected_costs, shortlist
from hansa.scheduler.matching_columns import ASKED, FIRST_ROWS, MOST_FEATURES, SLACK_NAMES, Columns

NOW_MS = 1_000
MODELS = ("H100-SXM5", "A100-SXM4-80GB", "A100-SXM4-40GB", "RTX4090", "L4")
GIB = 1 << 30


def advert(
    number: int,
    *,
    devices: tuple[tuple[str, int, int], ...] = (("H100-SXM5", 80, 8_000),),
    price: int = 100,
    **changed: object,
) -> Advert:
    made = Advert(
        signer=number.to_bytes(20, "big"),
        peer_id="",
        addresses=(),
        devices=tuple(
            Device(id=bytes([place]) * 32, kind="gpu", model=model, memory_bytes=gib * GIB, cores_milli=cores, facts=())
            for place, (model, gib, cores) in enumerate(devices)
        ),
        free=len(devices),
        tier="sandbox",
        features=("dependencies",),
        region="se",
        facts=(),
        currency="usd",
        price_e18_per_device_ms=price,
        sequence=1,
        expires_ms=NOW_MS + 1,
    )
    return replace(made, **changed)  # type: ignore[arg-type]


NEEDS = Requirements(
    kind="any",
    choices=(),
    devices=1,
    device_memory_bytes=0,
    cores_milli=0,
    memory_bytes=0,
    scratch_bytes=0,
    tier="sandbox",
    features=(),
    egress=(),
    wall_ms=1,
    clauses=(),
)


def wish(**changed: object) -> Wish:
    return Wish(requirements=replace(NEEDS, **changed), currency="usd", ceiling_e18=1_000)  # type: ignore[arg-type]


def index_of(*adverts: Advert) -> Columns:
    columns = Columns()
    for one in adverts:
        columns.put(one)
    return columns


def found(columns: Columns, looked_for: Wish, at_ms: int = NOW_MS) -> set[bytes]:
    rows = Filter(columns).rows(looked_for, at_ms=at_ms)
    assert len(set(rows.tolist())) == len(rows), "an advert is found once"
    return {columns.account[row] for row in rows}


def test_slots_of_too_little_memory_are_not_found_whatever_kind_is_asked_for() -> None:
    gpu = advert(1, devices=(("L4", 24, 8_000),))
    slots = tuple(replace(device, kind="cpu") for device in advert(2, devices=(("EPYC", 4, 8_000),) * 2).devices)
    columns = index_of(gpu, replace(advert(2), devices=slots, free=2))
    assert found(columns, wish(memory_bytes=8 * GIB)) == {gpu.signer}
    assert found(columns, wish(memory_bytes=8 * GIB, devices=2)) == {advert(2).signer}
    assert found(columns, wish(memory_bytes=64 * GIB, kind="cpu")) == set()


def may_serve(one: Advert, looked_for: Wish, at_ms: int) -> bool:
    """The same, read plainly from the documents."""
    needs = looked_for.requirements
    if one.currency != looked_for.currency or one.price_e18_per_device_ms > looked_for.ceiling_e18:
        return False
    if one.expires_ms <= at_ms or not is_served(needs.tier, one.tier) or not set(needs.features) <= set(one.features):
        return False
    asked = [clause for clause in needs.clauses if clause.name in ASKED]
    fitting = [
        device
        for device in one.devices
        if needs.kind in ("any", device.kind)
        and device.memory_bytes >= needs.device_memory_bytes
        and not failures(asked, facts_of(one, device))
    ]
    sorts = {(device.model, device.memory_bytes, device.cores_milli, device.facts) for device in one.devices}
    for choice in needs.choices or (None,):
        count = needs.devices if choice is None else choice.devices
        kept = [device for device in fitting if choice is None or matches(choice.model, device.model)]
        enough = len(sorts) > 1 or all(device.cores_milli * count >= needs.cores_milli for device in kept)
        if len(kept) >= count and enough:
            return True
    return False


facts = st.dictionaries(
    st.sampled_from(("cuda", "driver", "download", "interconnect", "benchmark")),
    st.integers(0, 3),
    max_size=4,
).map(lambda drawn: tuple(Fact(name=name, value=VALUES[name][number]) for name, number in sorted(drawn.items())))
VALUES = {
    "cuda": ("11.8", "12.2", "12.10", "nonsense"),
    "driver": ("535", "550.54", "550.6", "570"),
    "download": ("100 Mbit/s", "1 Gbit/s", "500 Mbit/s", "fast"),
    "interconnect": ("nvlink", "pcie", "xgmi", "none"),
    "benchmark": ("10", "60.5", "100", "-"),
    "region": ("se", "de", "us", "eu se"),
}
clauses = st.sampled_from(sorted(VALUES)).flatmap(
    lambda name: st.builds(
        Clause,
        name=st.just(name),
        operator=st.sampled_from(
            ("=", "!=", "in", "not in")
            if name in ("interconnect", "region")
            else ("=", "!=", "<", "<=", ">", ">=", "in", "not in")
        ),
        values=st.lists(st.sampled_from(VALUES[name][:3]), min_size=1, max_size=2, unique=True).map(
            lambda values: tuple(sorted(values))
        ),
    )
)
devices = st.tuples(st.sampled_from(MODELS), st.sampled_from((24, 40, 80)), st.sampled_from((1_000, 8_000)))
adverts = st.builds(
    advert,
    st.integers(0, 30),
    devices=st.one_of(
        st.tuples(devices, st.integers(1, 8)).map(lambda drawn: (drawn[0],) * drawn[1]),
        st.lists(devices, max_size=6).map(tuple),
    ),
    price=st.integers(0, 1_500),
    tier=st.sampled_from(("none", "sandbox", "gvisor", "strange")),
    features=st.sampled_from(((), ("dependencies",), ("dependencies", "image"))),
    region=st.sampled_from(VALUES["region"]),
    facts=facts,
    currency=st.sampled_from(("usd", "usd", "eur")),
    expires_ms=st.integers(NOW_MS - 1, NOW_MS + 5),
)
wishes = st.builds(
    wish,
    kind=st.sampled_from(("any", "gpu", "cpu")),
    choices=st.lists(
        st.builds(
            DeviceChoice,
            devices=st.integers(1, 4),
            model=st.sampled_from(("H100", "A100", "A100-80GB", "A100-SXM4-40GB", "RTX4090", "Z9")),
        ),
        max_size=2,
    ).map(tuple),
    devices=st.integers(1, 4),
    device_memory_bytes=st.sampled_from((0, 24 * GIB, 41 * GIB)),
    cores_milli=st.sampled_from((0, 4_000, 16_000)),
    tier=st.sampled_from(("", "sandbox", "gvisor", "strange")),
    features=st.sampled_from(((), ("image",), ("dependencies",))),
    clauses=st.lists(clauses, max_size=2).map(tuple),
)


@settings(max_examples=300, deadline=None)
@given(
    moves=st.lists(st.one_of(adverts, st.integers(0, 30), st.tuples(st.integers(NOW_MS - 1, NOW_MS + 3))), max_size=40),
    looked_for=st.lists(wishes, min_size=1, max_size=4),
)
def test_whatever_came_and_went_the_index_finds_what_a_plain_reading_finds(
    moves: list[Advert | int | tuple[int]], looked_for: list[Wish]
) -> None:
    columns, plain = Columns(), dict[bytes, Advert]()
    filter_ = Filter(columns)
    for number, move in enumerate(moves):
        match move:
            case Advert():
                columns.put(move)
                plain[move.signer] = move
            case int():
                columns.remove(move.to_bytes(20, "big"))
                plain.pop(move.to_bytes(20, "big"), None)
            case (now_ms,):
                gone = {one.signer for one in plain.values() if one.expires_ms <= now_ms and one.devices}
                assert set(columns.expire(now_ms)) == gone
                plain = {key: one for key, one in plain.items() if one.expires_ms > now_ms}
        if number % 7 == 0:  # questions in between, so that what is remembered of texts has to grow
            filter_.rows(looked_for[0], at_ms=NOW_MS)
    for one in looked_for:
        rows = filter_.rows(one, at_ms=NOW_MS)
        told = [columns.account[row] for row in rows]
        assert len(set(told)) == len(told)
        assert set(told) == {key for key, known in plain.items() if may_serve(known, one, NOW_MS)}


other_clauses = st.sampled_from(
    (
        Clause(name="gpu", operator="!=", values=("A100-80GB",)),
        Clause(name="vram", operator="<=", values=("40 GiB",)),
        Clause(name="cores", operator="<=", values=("8",)),
        Clause(name="devices", operator="<=", values=("4",)),
        Clause(name="features", operator="=", values=("image",)),
        Clause(name="reliability", operator=">=", values=("0.9",)),
        Clause(name="tier", operator=">=", values=("gvisor",)),
    )
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(adverts, min_size=3, max_size=12),
    wishes.flatmap(
        lambda one: st.lists(other_clauses, max_size=2).map(
            lambda more: replace(
                one, requirements=replace(one.requirements, clauses=(*one.requirements.clauses, *more))
            )
        )
    ),
)
def test_nobody_who_would_be_invited_on_a_full_reading_is_filtered_out(known: list[Advert], one: Wish) -> None:
    plain = {each.signer: each for each in known if each.expires_ms > NOW_MS}
    invited = {
        key
        for key, each in plain.items()
        if misfit(each, one.requirements, currency=one.currency, ceiling_e18=one.ceiling_e18) is None
    }
    columns = index_of(*plain.values())
    assert invited <= found(columns, one)
    event("somebody is invited" if invited else "nobody is")


def test_an_advert_said_anew_has_its_new_price_and_time() -> None:
    columns = index_of(advert(1, price=900))
    columns.put(advert(1, price=100, expires_ms=NOW_MS + 9, free=0))
    assert columns.height == 1
    assert found(columns, replace(wish(), ceiling_e18=500), at_ms=NOW_MS + 8) == {advert(1).signer}
    columns.put(advert(1, price=900, expires_ms=NOW_MS + 9))
    assert not found(columns, replace(wish(), ceiling_e18=500))


def test_versions_are_compared_as_versions() -> None:
    columns = index_of(
        advert(1, facts=(Fact(name="cuda", value="12.10"),)), advert(2, facts=(Fact(name="cuda", value="12.9"),))
    )
    clause = Clause(name="cuda", operator=">=", values=("12.10",))
    assert found(columns, wish(clauses=(clause,))) == {advert(1).signer}


def test_what_is_not_stated_meets_no_clause_not_even_an_exclusion() -> None:
    columns = index_of(advert(1), advert(2, facts=(Fact(name="interconnect", value="pcie"),)))
    clause = Clause(name="interconnect", operator="!=", values=("nvlink",))
    assert found(columns, wish(clauses=(clause,))) == {advert(2).signer}


def test_what_only_a_bid_can_tell_rules_nobody_out() -> None:
    clause = Clause(name="notice", operator=">=", values=("5 min",))
    assert found(index_of(advert(1)), wish(clauses=(clause,))) == {advert(1).signer}


def test_a_device_s_own_fact_goes_before_its_provider_s() -> None:
    one = advert(1, facts=(Fact(name="cuda", value="12.9"),))
    own = replace(one.devices[0], facts=(Fact(name="cuda", value="11.8"),))
    columns = index_of(replace(one, devices=(own,)))
    assert not found(columns, wish(clauses=(Clause(name="cuda", operator=">=", values=("12",)),)))


def test_devices_of_several_sorts_count_together() -> None:
    mixed = advert(1, devices=(("A100-SXM4-80GB", 80, 1_000),) * 2 + (("A100-SXM4-40GB", 40, 1_000),) * 2)
    columns = index_of(mixed)
    assert found(columns, wish(choices=(DeviceChoice(devices=4, model="A100"),)))
    assert not found(columns, wish(choices=(DeviceChoice(devices=4, model="A100-80GB"),)))


def test_each_choice_has_its_own_number_of_devices() -> None:
    columns = index_of(advert(1, devices=(("L4", 24, 1_000),) * 4), advert(2, devices=(("H100-SXM5", 80, 1_000),)))
    needs = wish(choices=(DeviceChoice(devices=1, model="H100"), DeviceChoice(devices=4, model="L4")), devices=4)
    filter_ = Filter(columns)
    rows = filter_.rows(needs, at_ms=NOW_MS)
    took = filter_.devices(needs.requirements, rows)
    counts = {columns.account[row]: int(count) for row, count in zip(rows, took, strict=True)}
    assert counts == {advert(1).signer: 4, advert(2).signer: 1}


def test_a_price_at_the_ceiling_is_not_above_it_however_large() -> None:
    price = (1 << 90) + 1
    columns = index_of(advert(1, price=price))
    assert Filter(columns).rows(replace(wish(), ceiling_e18=price), at_ms=NOW_MS).size == 1


def test_rows_are_used_again_and_texts_that_nobody_states_are_forgotten() -> None:
    columns = Columns()
    filter_ = Filter(columns)
    for number in range(SLACK_NAMES + 4 * FIRST_ROWS + 10):
        columns.put(advert(number % 3, region=f"r{number}", devices=((f"X{number}", 1, 1),)))
        if number % 1_000 == 0:
            needs = wish(choices=(DeviceChoice(devices=1, model=f"X{number}"),))
            assert found(columns, needs) == {advert(number % 3).signer}
            assert [columns.account[row] for row in filter_.rows(needs, at_ms=NOW_MS)] == [advert(number % 3).signer]
    assert columns.generation > 0
    assert columns.height <= 3
    assert len(columns.models.names) <= SLACK_NAMES + 4 * FIRST_ROWS


def test_a_row_that_is_used_again_keeps_nothing_of_who_had_it_before() -> None:
    columns = index_of(advert(1, facts=(Fact(name="cuda", value="12.4"), Fact(name="download", value="1 Gbit/s"))))
    columns.remove(advert(1).signer)
    columns.put(advert(2))
    assert columns.height == 1
    for clause in (
        Clause(name="cuda", operator=">=", values=("12",)),
        Clause(name="download", operator=">=", values=("1 Mbit/s",)),
    ):
        assert not found(columns, wish(clauses=(clause,)))


def test_answers_about_texts_are_forgotten_with_the_texts() -> None:
    columns = index_of(advert(1, devices=(("L4", 24, 1_000),)))
    filter_, needs = Filter(columns), wish(choices=(DeviceChoice(devices=1, model="H100"),))
    assert not filter_.rows(needs, at_ms=NOW_MS).size
    columns.remove(advert(1).signer)
    columns.put(advert(2))
    columns._compact()
    assert columns.models.names == ["H100-SXM5"], "it has the number that the other had"
    assert filter_.rows(needs, at_ms=NOW_MS).size == 1


def test_words_that_nobody_could_ask_for_take_no_column() -> None:
    columns = index_of(advert(1, facts=tuple(Fact(name=f"x{number}", value="1") for number in range(100))))
    assert set(columns.facts) <= ASKED


def ranked(columns: Columns, most: int, chance: int, *refused: bytes, taste: Taste | None = None) -> list[int]:
    rows = Filter(columns).rows(wish(), at_ms=NOW_MS)
    costs = expected_costs(columns, rows, taste or Taste())
    chosen = shortlist(columns, rows, costs, most=most, chance=chance, serves=lambda one: one.signer not in refused)
    return [int.from_bytes(account, "big") for account in chosen]


def spread_out(count: int) -> list[Advert]:
    return [advert((number << 96) + number, price=number) for number in range(1, count + 1)]


def test_a_short_list_has_the_cheapest_and_three_times_as_many_by_chance() -> None:
    columns = index_of(*spread_out(200))
    chosen = [account % (1 << 96) for account in ranked(columns, 16, chance=7)]
    assert len(chosen) == len(set(chosen)) == 16
    assert chosen[:4] == [1, 2, 3, 4]
    assert chosen == sorted(chosen)
    assert max(chosen) > 50, "chance reaches far beyond the cheapest"


def test_a_short_list_depends_on_chance_alone_and_not_on_the_order_in_which_adverts_came() -> None:
    some = spread_out(100)
    there, back = index_of(*some), index_of(*reversed(some))
    assert ranked(there, 16, chance=7) == ranked(back, 16, chance=7)
    assert ranked(there, 16, chance=7) != ranked(there, 16, chance=8)


def test_every_advert_has_a_chance_to_be_asked() -> None:
    columns = index_of(*spread_out(40))
    asked = {account for chance in range(100) for account in ranked(columns, 8, chance=chance)}
    assert len(asked) == 40


def test_who_would_not_do_after_all_is_replaced_by_the_next() -> None:
    columns = index_of(*spread_out(12))
    refused = [one.signer for one in spread_out(12)[:6]]
    assert [account % (1 << 96) for account in ranked(columns, 16, 3, *refused)] == [7, 8, 9, 10, 11, 12]


def test_nobody_is_left_out_where_all_can_be_asked() -> None:
    columns = index_of(*spread_out(10))
    assert len(ranked(columns, 64, chance=0)) == 10
    assert ranked(columns, 0, chance=0) == []


def test_equal_costs_are_ordered_by_account_wherever_the_list_is_cut() -> None:
    some = [advert(number << 96, price=5) for number in (3, 1, 2, 9, 7, 8, 4, 6, 5)]
    assert ranked(index_of(*some), 4, chance=1)[0] == 1 << 96


def test_what_works_faster_fails_less_or_has_a_wide_line_may_cost_more() -> None:
    fast = advert(1, price=200, devices=(("H100-SXM5", 80, 1),), facts=(Fact(name="download", value="10 Gbit/s"),))
    slow = advert(2, price=150, devices=(("L4", 24, 1),), facts=(Fact(name="download", value="10 Mbit/s"),))
    columns = index_of(fast, slow)
    assert ranked(columns, 4, 0) == [2, 1]
    assert ranked(columns, 4, 0, taste=Taste(speeds={"H100-SXM5": 3.0})) == [1, 2]
    assert ranked(columns, 4, 0, taste=Taste(input_bytes=10 * GIB)) == [1, 2]
    columns.learn(slow.signer, 0.5)
    assert ranked(columns, 4, 0) == [1, 2]


def test_costs_are_of_the_rows_that_were_asked_about() -> None:
    columns = index_of(advert(1, price=10), advert(2, price=20))
    rows = Filter(columns).rows(wish(), at_ms=NOW_MS)
    assert expected_costs(columns, rows[::-1]).tolist() == [20.0, 10.0]
    assert np.isfinite(expected_costs(columns, rows)).all()


def test_a_feature_named_more_than_once_is_one() -> None:
    last = MOST_FEATURES - 1
    columns = index_of(advert(1, features=tuple(f"f{number:02d}" for number in range(MOST_FEATURES))))
    columns.put(advert(1, features=(*(f"f{number:02d}" for number in range(MOST_FEATURES)), *(f"f{last}",) * 3)))
    columns.put(advert(2, features=("f00", "f00")))
    assert found(columns, wish()) == {advert(1).signer, advert(2).signer}
    assert found(columns, wish(features=(f"f{last}",))) == {advert(1).signer}
    assert found(columns, wish(features=("f01",))) == {advert(1).signer}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(dataclasses_of(Advert), st.integers(0, 3), st.booleans(), st.lists(st.sampled_from(sorted(ASKED)))),
        max_size=6,
    ),
    TEXT,
)
def test_any_advert_that_can_be_read_is_found_as_it_says_and_breaks_nothing(
    drawn: list[tuple[Advert, int, bool, list[str]]], value: str
) -> None:
    columns, plain = Columns(), dict[bytes, Advert]()
    for given_advert, number, usual, names in drawn:
        one = replace(given_advert, signer=number.to_bytes(20, "big"))
        if usual:
            told = tuple(Fact(name=name, value=value) for name in names)
            one = replace(one, currency="usd", tier="sandbox", price_e18_per_device_ms=1, facts=told)
            one = replace(one, devices=tuple(replace(device, facts=told) for device in one.devices))
        columns.put(one)
        plain[one.signer] = one
    assert set(columns.adverts) == {key for key, one in plain.items() if one.devices}
    assert found(columns, wish()) == {key for key, one in plain.items() if may_serve(one, wish(), NOW_MS)}


def test_adverts_with_many_texts_do_not_make_every_later_one_rebuild_the_columns() -> None:
    columns = index_of(
        *(advert(number, features=tuple(f"{number}-{part}" for part in range(2_000))) for number in range(10))
    )
    columns.put(advert(20, region="r0"))
    before = columns.generation
    for number in range(50):
        columns.put(advert(20, region=f"r{number}"))
    assert columns.generation - before <= 1
