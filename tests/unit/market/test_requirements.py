"""The requirements language: what is read, in which form it comes out, and how a slip of the pen is pointed at."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.market.needs_rendering import render
from hansa.market.needs_text import LONGEST_TEXT, MOST_TERMS, MOST_VALUES, NeedsError
from hansa.market.requirements import Needs, needs_of, ordered, parse_needs, parse_rules
from hansa.market.vocabulary import VOCABULARY, WORDS, Of
from hansa.proto.market_documents import Clause, DeviceChoice, Requirements
from hansa.proto.units import price_per_hour_to_e18

GIB = 1 << 30


def choices(*sets):
    return tuple(DeviceChoice(devices=devices, model=model) for devices, model in sets)


def clause(name, operator, *values):
    return Clause(name=name, operator=operator, values=values)


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        ("8\N{MULTIPLICATION SIGN}H100", [(8, "H100")]),
        ("8xH100", [(8, "H100")]),
        ("8*h100", [(8, "H100")]),
        ("8 x RTX 4090", [(8, "RTX4090")]),
        ("8 RTX 4090", [(8, "RTX4090")]),
        ("H100:8", [(8, "H100")]),
        ("H100", [(1, "H100")]),
        ("H100 and devices = 4", [(4, "H100")]),
        (
            "8xH100 or 16xA100-80GB or\n nvidia_a100_80gb_pcie:4",
            [(8, "H100"), (16, "A100-80GB"), (4, "A100-PCIE-80GB")],
        ),
        ("gpu in (H100, 2xA100)", [(1, "H100"), (2, "A100")]),
        ("gpu = RTX_4090", [(1, "RTX4090")]),
        ("'2xFoo 7000'", [(2, "Foo 7000")]),
        ("1xH100 or H100", [(1, "H100")]),
    ],
)
def test_sets_of_devices_are_read_as_people_write_them(text, sets):
    assert parse_needs(text).choices == choices(*sets)


def test_everything_at_once_comes_out_in_fields_and_clauses():
    text = """8xH100 or 8xA100-80GB
        vram in 24GB..80GB, cores >= 16 and RAM ≥ 64 GiB, disk >= 200 GB
        cuda >= 12.4 and driver >= 535.86.05, interconnect = NVLINK
        region not in (ru, cn), download >= 0.5 Gbit/s, tier = gvisor, features = image
        reliability >= 95 %, notice >= 5 min, lease = firm, price <= 2.10, deadline = 6 h"""
    assert parse_needs(text) == Needs(
        choices=choices((8, "H100"), (8, "A100-80GB")),
        kind="gpu",
        device_memory_bytes=24 * 10**9,
        cores_milli=16_000,
        memory_bytes=64 * GIB,
        scratch_bytes=200 * 10**9,
        tier="gvisor",
        features=("image",),
        clauses=(
            clause("cuda", ">=", "12.4"),
            clause("download", ">=", "500 Mbit/s"),
            clause("driver", ">=", "535.86.5"),
            clause("interconnect", "=", "nvlink"),
            clause("notice", ">=", "5 min"),
            clause("region", "not in", "cn", "ru"),
            clause("reliability", ">=", "0.95"),
            clause("vram", "<=", "80 GB"),
        ),
        price_e18_per_device_ms=price_per_hour_to_e18("2.10"),
        deadline_ms=6 * 3_600_000,
        lease="firm",
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("vram >= 24GB", "VRAM in 24 GB.."),
        ("region in (de)", "region = DE"),
        ("region notin [ru, cn]", 'region not in ("cn", "ru")'),
        ("cuda == 12.0", "cuda = 12"),
        ("region = any", ""),
        ("reliability > 0.95", "reliability > 95%"),
        ("wall", "wall"),
    ][:-1],
)
def test_equal_meaning_is_equal_text(one, other):
    assert parse_needs(one) == parse_needs(other)
    assert render(parse_needs(one)) == render(parse_needs(other))


@pytest.mark.parametrize(
    ("text", "token", "why", "hint"),
    [
        ("reliabilty >= 0.9", "reliabilty", "is no word", "did you mean reliability?"),
        ("vram 24GB", "vram 24GB", "no operator follows", "vram >= 40 GB"),
        ("vram >= 24", "24", "is no size", "vram >= 40 GB"),
        ("A100 and cuda >= twelve", "twelve", "is no version", "cuda >= 12.4"),
        ("region not in ()", "(", "empty list", "remove the term"),
        ("region in (de", "(", "never closed", "close the list with )"),
        ("vram >= 1 GB or cores >= 2", "or", "only between sets of devices", "region in (de, fr)"),
        ("vram >= 2 GB cores >= 3", "cores", "begins a new term", "and, a comma"),
        ("A100 and H100", "H100", "a second time", "or"),
        ("H10O", "H10O", "is no GPU model", "did you mean H100?"),
        ("99xH100", "99xH100", "1 to 64 devices", "8xH100"),
        ("H100:0", "H100:0", "1 to 64 devices", "8xH100"),
        ("2xH100 and devices = 3", "3", "as each model does", "once"),
        ("kind = cpu and H100", "cpu", "is a GPU", "kind = gpu"),
        ("wall <= 1 h", "wall", "nothing that a provider has", "job's needs know"),
        ("lease = frim", "frim", "none of firm, spot", "lease = firm"),
        ("lease = firm, lease = spot", "lease", "said twice", "once"),
        ("region < de", "region", "knows no order", "region not in"),
        ("region in de..fr", "de", "knows no order", "region"),
        ("vram in 80GB..24GB", "80GB", "ends below", "low..high"),
        ("vram in ..", "..", "without ends", "A..B"),
        ("vram >= (1 GB)", "(", "needs in", "vram in"),
        ("region in (any, de)", "any", "stands alone", "region = any"),
        ("tier != gvisor", "tier", "takes = or >=", "tier = gvisor"),
        ("price >= 1", "price", "takes = or <=", "price <= 2.10"),
        ('region = "de', '"', "cannot be read", "close the quotes"),
        ("features = imgae", "imgae", "is no feature", "did you mean image?"),
        ("share ! 3", "!", "cannot be read", "!="),
        ("and and region =", "", "a value is missing", "24 GB"),
        ("x" * (LONGEST_TEXT + 1), "", "longer than", "say less"),
        ("\n".join(["region != de"] * 9), "region", "more than 8 conditions", "not in"),
        ("\n".join(["vram >= 1 GB"] * (MOST_TERMS + 1)), "vram", "more are not read", "say less"),
        (" or ".join(["H100"] * (MOST_VALUES + 2)), "or", f"comes after {MOST_VALUES} sets", "families"),
    ],
)
def test_a_slip_is_pointed_at_with_a_way_out(text, token, why, hint):
    with pytest.raises(NeedsError) as caught:
        parse_needs(text)
    fault = caught.value
    assert (fault.token, why in fault.why, hint in fault.hint) == (token, True, True), (fault, fault.hint)
    line, mark = fault.shown.split("\n")
    at = mark.index("^")
    assert (
        not token or line[at:].startswith(token[: len(line) - at]) or text[fault.position : fault.position + 1] in "'\""
    )


def test_the_mark_stands_under_the_token_of_its_line():
    with pytest.raises(NeedsError) as caught:
        parse_needs("8xH100\ncuda >= 12.4\nregion = de and vrm >= 1 GB\ncores >= 2")
    assert caught.value.shown == "region = de and vrm >= 1 GB\n                ^^^"
    assert caught.value.hint == "did you mean vram?"


def test_a_providers_rules_are_about_jobs():
    buyer = "0x52908400098527886E0F7030069857D2E4169EE7"
    found = parse_rules(f"wall <= 24 h and network = none and buyer in ({buyer}) and devices in 1..4, licence = mit")
    assert found == (
        clause("buyer", "=", buyer.lower()),
        clause("devices", "<=", "4"),
        clause("devices", ">=", "1"),
        clause("licence", "=", "mit"),
        clause("network", "=", "none"),
        clause("wall", "<=", "1 d"),
    )
    with pytest.raises(NeedsError, match="says nothing of a job"):
        parse_rules("cuda >= 12")
    with pytest.raises(NeedsError, match="is no condition on a job"):
        parse_rules("8xH100")


def test_needs_are_laid_over_what_stood_there():
    base = Requirements(
        kind="any",
        choices=(),
        devices=1,
        device_memory_bytes=0,
        cores_milli=1_000,
        memory_bytes=GIB,
        scratch_bytes=GIB,
        tier="sandbox",
        features=("egress",),
        egress=("pypi.org:443",),
        wall_ms=1_000,
        clauses=(),
    )
    assert parse_needs("").applied_to(base) == base
    needs = parse_needs("2xH100 or 4xA100 and ram >= 8 GiB and features = image and region = de").applied_to(base)
    assert (needs.devices, needs.memory_bytes, needs.features) == (4, 8 * GIB, ("egress", "image"))
    assert (needs.cores_milli, needs.kind, needs.clauses) == (1_000, "gpu", (clause("region", "=", "de"),))
    assert parse_needs(render(needs)) == needs_of(needs)


# Whatever can be said comes back as it was.

VALUES = {
    "gpu": ["H100", "A100-80GB", "K80"],
    "vram": ["24 GB", "40 GiB", "1 B"],
    "driver": ["550", "535.86.5"],
    "cuda": ["12.4", "13"],
    "compute": ["8.6", "9"],
    "interconnect": ["nvlink", "pcie"],
    "cores": ["0.5", "16"],
    "ram": ["64 GiB"],
    "download": ["500 Mbit/s"],
    "region": ["de", "new york", "any place, and more", "not", "in"],
    "notice": ["5 min", "90 s"],
    "reliability": ["0.95", "1"],
    "licence": ["mit", "apache-2.0"],
}
LISTED = st.sampled_from(["in", "not in"])


@st.composite
def some_clause(draw):
    name = draw(st.sampled_from(sorted(VALUES)))
    if VOCABULARY[name].is_ordered:
        operators = ["<", "<=", ">", "!=", *([] if name in ("vram", "cores", "ram", "disk") else [">=", "="])]
        return clause(name, draw(st.sampled_from(operators)), draw(st.sampled_from(VALUES[name])))
    several = draw(st.lists(st.sampled_from(VALUES[name]), min_size=2, max_size=3, unique=True))
    if len(VALUES[name]) > 2 and draw(st.booleans()):
        # Of models only those that are not wanted are a clause.
        return clause(name, "not in" if name == "gpu" else draw(LISTED), *sorted(several))
    return clause(name, "!=" if name == "gpu" else draw(st.sampled_from(["=", "!="])), several[0])


def maybe(values):
    return st.one_of(st.none(), values)


@st.composite
def some_needs(draw):
    sets = draw(
        st.lists(
            st.builds(
                DeviceChoice,
                devices=st.integers(1, 64),
                model=st.sampled_from(
                    ["H100", "A100-80GB", "RTX4070TI-SUPER", "A100-SXM4-40GB MIG 1g.5gb", "Foo 7", "and"]
                ),
            ),
            max_size=3,
            unique=True,
        )
    )
    is_gpu = any(one.model not in ("Foo 7", "and") for one in sets)
    return Needs(
        choices=tuple(sets),
        kind="gpu" if is_gpu else draw(st.sampled_from(["", "cpu", "gpu"])),
        devices=None if sets else draw(maybe(st.integers(1, 64))),
        device_memory_bytes=draw(maybe(st.integers(0, 1 << 50))),
        cores_milli=draw(maybe(st.integers(0, 10**6))),
        memory_bytes=draw(maybe(st.integers(0, 1 << 50))),
        scratch_bytes=draw(maybe(st.integers(0, 1 << 50))),
        tier=draw(st.sampled_from(["", "sandbox", "gvisor"])),
        features=tuple(sorted(draw(st.sets(st.sampled_from(["image", "egress", "python3.12"]))))),
        clauses=ordered(draw(st.lists(some_clause(), max_size=6))),
        price_e18_per_device_ms=draw(maybe(st.sampled_from(["0.01", "2.10", "12.345678"]).map(price_per_hour_to_e18))),
        deadline_ms=draw(maybe(st.integers(0, 10**10))),
        lease=draw(st.sampled_from(["", "firm", "spot"])),
    )


@given(some_needs())
def test_what_is_rendered_is_read_as_the_same(needs):
    assert parse_needs(render(needs)) == needs


PIECES = st.sampled_from(
    [
        "8xH100",
        "or",
        "and",
        ",",
        "\n",
        "vram",
        ">=",
        "24 GB",
        "..",
        "(",
        ")",
        "in",
        "not",
        "'",
        "any",
        "region",
        "=",
        "de",
    ]
)


def outcome(read, text):
    try:
        return read(text)
    except NeedsError as fault:
        return fault


@given(st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=12).map(" ".join)))
def test_any_text_is_needs_or_a_complaint_that_points_into_it(text):
    for read in (parse_needs, parse_rules):
        found = outcome(read, text)
        if isinstance(found, NeedsError):
            assert 0 <= found.position <= len(text)
            assert all((found.why, found.hint, "^" in found.shown))
        elif isinstance(found, Needs):
            assert parse_needs(render(found)) == found


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.name)
def test_every_example_of_the_vocabulary_is_read(word):
    if any(one is not Of.JOB for one in word.of):
        assert parse_needs(word.example) != Needs()
    if Of.JOB in word.of:
        assert parse_rules(word.example)
