"""Clauses are judged by everybody in the same way, and the nearest change that is named really suffices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.trading import DEVICE, needs

from hansa.market.clauses import (
    MOST_CLAUSES,
    failures,
    of_provider,
    relaxation,
    relaxed,
    relaxed_requirements,
    shared_facts,
    too_many,
    unmet,
    unmet_by_bid,
    why_no_answer,
)
from hansa.market.requirements import parse_needs
from hansa.market.vocabulary import VOCABULARY
from hansa.proto.market_documents import Clause, DeviceChoice, Fact, Shortfall

FACTS = {
    "gpu": "A100-SXM4-80GB",
    "kind": "gpu",
    "vram": "81920 MiB",
    "cuda": "12.10",
    "driver": "535.86.5",
    "region": "frankfurt, de, eu",
    "download": "400 Mbit/s",
    "interconnect": "nvlink",
    "licence": "apache-2.0,mit",
    "notice": "5 min",
    "tier": "gvisor",
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("cuda >= 12.9", True),
        ("cuda > 12.10", False),
        ("cuda = 12.10.0", True),
        ("cuda < 13", True),
        ("driver >= 535.86.05", True),
        ("driver >= 535.104", False),
        ("vram <= 80 GiB", True),
        ("vram < 80 GiB", False),
        ("download >= 0.4 Gbit/s", True),
        ("download >= 50 MB/s", True),
        ("download >= 51 MB/s", False),
        ("region = de", True),
        ("region = Frankfurt", True),
        ("region = d", False),
        ("region not in (cn, ru)", True),
        ("region not in (cn, eu)", False),
        ("gpu != A100-80GB", False),
        ("gpu != A100-40GB", True),
        ("gpu not in (H100, K80)", True),
        ("licence = mit", True),
        ("licence in (gpl, mit)", True),
        ("licence not in (gpl, mit)", False),
        ("licence = 'mit,apache-2.0'", True),
        ("licence = 'mit,gpl'", False),
        ("notice >= 300 s", True),
        ("upload >= 1 Mbit/s", False),
    ],
)
def test_clauses_hold_of_facts_as_they_are_meant(text, holds):
    clauses = parse_needs(text).clauses
    assert clauses
    assert (unmet(clauses, FACTS) == ()) is holds


@pytest.mark.parametrize(
    ("text", "reason", "nearest", "words"),
    [
        ("cuda >= 12.11", "cuda is 12.10", "12.10", "cuda >= 12.10"),
        ("cuda > 12.10", "cuda is 12.10", "12.10", "cuda >= 12.10"),
        ("cuda < 12.10", "cuda is 12.10", "12.10", "cuda <= 12.10"),
        ("cuda <= 12.9", "cuda is 12.10", "12.10", "cuda <= 12.10"),
        ("region in (cn, us)", "region is frankfurt, de, eu", "frankfurt, de, eu", 'region = "frankfurt, de, eu"'),
        ("region not in (cn, de)", "region is frankfurt, de, eu", "cn", "region not in (cn)"),
        ("region != de", "region is frankfurt, de, eu", "any", "region = any"),
        ("upload >= 1 Mbit/s", "does not say its upload", "any", "upload = any"),
    ],
)
def test_what_fails_says_why_and_what_would_help(text, reason, nearest, words):
    (found,) = failures(parse_needs(text).clauses, FACTS)
    assert (found.reason, found.nearest, relaxation(found)) == (reason, nearest, words)
    assert unmet([found.clause], FACTS) == (
        Shortfall(name=found.clause.name, wanted=text if "12" in text else found.shortfall.wanted, nearest=nearest),
    )


def test_strangers_clauses_are_unmet_with_a_reason_and_never_a_crash():
    bad = [
        Clause(name="wizardry", operator=">=", values=("9",)),
        Clause(name="cuda", operator="~", values=("12",)),
        Clause(name="cuda", operator=">=", values=()),
        Clause(name="cuda", operator=">=", values=("1", "2")),
        Clause(name="cuda", operator=">=", values=("twelve",)),
        Clause(name="region", operator="<", values=("de",)),
        Clause(name="cuda", operator="in", values=()),
    ]
    found = failures(bad, FACTS)
    assert [failure.clause for failure in found] == bad
    assert found[0].reason == "wizardry is no word that is known here"
    assert all(failure.nearest == "any" for failure in found)
    (garbled,) = failures(parse_needs("cuda >= 1").clauses, {"cuda": "new\x00est"})
    assert garbled.reason == "does not say its cuda"
    assert not too_many(bad)
    different = [Clause(name=f"w{number}", operator="=", values=("1",)) for number in range(MOST_CLAUSES + 1)]
    assert too_many(different)
    assert not too_many(different[:-1])
    assert too_many([Clause(name="region", operator="!=", values=(str(number),)) for number in range(9)])
    assert too_many([Clause(name="region", operator="in", values=("de",) * 300)])


def test_what_only_the_buyer_knows_is_not_asked_of_providers():
    clauses = parse_needs("reliability >= 0.9 and reputation >= 0.5 and cuda >= 12").clauses
    assert [one.name for one in of_provider(clauses)] == ["cuda"]
    assert unmet_by_bid(clauses, FACTS) == ()
    assert [one.name for one in unmet_by_bid(clauses, {**FACTS, "reliability": "0.8"})] == ["reliability"]


def test_a_bid_answers_a_choice_by_model_and_number():
    requirements = _needs((8, "H100"), (4, "A100-80GB"))
    assert why_no_answer(requirements, 4, FACTS) == ""
    assert "number of devices" in why_no_answer(requirements, 8, FACTS)
    assert why_no_answer(requirements, 8, {**FACTS, "gpu": "H100-SXM5"}) == ""
    assert "not a model" in why_no_answer(requirements, 8, {"gpu": "H200"})
    assert "not a model" in why_no_answer(requirements, 4, {"gpu": "A100-SXM4", "vram": "40960 MiB"})
    assert "does not say its model" in why_no_answer(requirements, 8, {})
    plain = _needs()
    assert why_no_answer(plain, plain.devices, {}) == ""
    assert why_no_answer(plain, plain.devices + 1, {})


def _needs(*sets):
    from kit.trading import needs

    return needs(choices=tuple(DeviceChoice(devices=devices, model=model) for devices, model in sets))


def test_of_several_devices_the_least_is_what_all_have():
    from dataclasses import replace

    def gpu(**facts):
        told = tuple(Fact(name=name, value=value) for name, value in sorted(facts.items()))
        return replace(DEVICE, kind="gpu", model="NVIDIA L4", memory_bytes=24 << 30, facts=told)

    pair = [gpu(cuda="12.9", interconnect="nvlink", arch="x86_64"), gpu(cuda="12.10", interconnect="pcie")]
    assert shared_facts(pair) == {"cuda": "12.9", "interconnect": "pcie", "gpu": "L4", "kind": "gpu", "vram": "24 GiB"}
    assert shared_facts([]) == {}


NAMES = st.sampled_from([*VOCABULARY, "nonsense"])
TEXTS = st.sampled_from(
    [
        "12.4",
        "12.10",
        "24 GB",
        "40 GiB",
        "de",
        "frankfurt, de",
        "mit",
        "mit,gpl",
        "5 min",
        "0.9",
        "1",
        "any",
        "",
        "x; y",
        "y",
        "H100",
        "A100-80GB",
        "gvisor",
        "sandbox",
        "firm",
        "500 Mbit/s",
        "gpu",
        "()",
    ]
)
OPERATORS = st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "in", "not in", "?"])
CLAUSES = st.builds(
    Clause,
    name=NAMES,
    operator=OPERATORS,
    values=st.lists(st.one_of(TEXTS, st.text(max_size=5)), max_size=3).map(tuple),
)


@given(st.lists(CLAUSES, max_size=6), st.dictionaries(NAMES, TEXTS))
def test_with_every_nearest_change_made_nothing_is_unmet(clauses, facts):
    found = failures(clauses, facts)
    assert len(unmet(clauses, facts)) == len(found)
    failed = {failure.clause for failure in found}
    changed = [one for failure in found if (one := relaxed(failure.clause, failure.nearest)) is not None]
    assert unmet([*(one for one in clauses if one not in failed), *changed], facts) == ()
    for failure in found:
        assert failure.reason
        assert relaxation(failure)


@given(
    st.sampled_from(["gpu", "devices", "kind", "vram", "cores", "ram", "disk", "tier", "price", "nonsense"]),
    st.one_of(
        st.text(max_size=12), st.sampled_from(["any", "4\N{MULTIPLICATION SIGN}L4", "\N{MULTIPLICATION SIGN}", "2 GB"])
    ),
)
def test_a_strangers_shortfall_changes_requirements_or_nothing_and_never_crashes(name, nearest):
    before = _needs((8, "H100"))
    after = relaxed_requirements(before, [Shortfall(name=name, wanted="", nearest=nearest)])
    assert after.clauses == before.clauses
    assert after.choices[:1] == before.choices or after.choices == ()


@pytest.mark.parametrize("nearest", ["0", "-1", "65", "1e3", "\u0663", "9" * 5_000, "", "many", " 2"])
def test_a_number_of_devices_that_no_shard_has_changes_nothing(nearest):
    asked = needs(choices=())
    assert relaxed_requirements(asked, [Shortfall(name="devices", wanted="devices = 1", nearest=nearest)]) == asked


def test_a_number_of_devices_that_a_shard_may_have_is_the_one_that_would_do():
    asked = needs(choices=())
    assert relaxed_requirements(asked, [Shortfall(name="devices", wanted="devices = 1", nearest="64")]).devices == 64
