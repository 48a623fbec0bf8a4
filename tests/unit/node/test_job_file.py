"""What a developer can get wrong in job.toml is told with its place and a way out."""

import json
from pathlib import Path

import pytest

from hansa.node.api.job_json import spec_from_json, spec_to_json
from hansa.node.faults import ConfigError
from hansa.node.jobs.job_file import read_job_file
from hansa.proto.errors import Malformed
from hansa.proto.market_documents import DeviceChoice
from hansa.proto.units import parse_amount, price_per_hour_to_e18
from hansa.scheduler.job_spec import WORTH_RETRYING

LEAST = 'name = "digits"\nentry = "train.py:train"\n'
FULL = """
name = "digits"
entry = "train.py:train"
shards = 3
workers = 2

[parameters]
rate = 0.1
layers = [64, 32]
label = "a"

[resources]
kind = "gpu"
gpu_models = ["H100"]
devices = 2
device_memory = "40 GiB"
cores = 1.5
memory = "512 MiB"
disk = "1 GB"

[limits]
wall = "10 min"
stall = "90 s"
silence = "20 s"
round = "30 s"
outputs = "10 MiB"
state = "5 MiB"

[retry]
on = ["worker-died", "out-of-memory", "worker-died"]
most = 2
same_provider = false

[checkpoints]
mirror = true

[rounds]
state = "4 MiB"
every = "15 s"

[budget]
total = "2.50"
price_ceiling_per_hour = "0.80"
currency = "USD"

[tender]
bids = "3 s"
meter = "2 s"
queue_timeout = "30 min"
deadline = "6 h"
per_provider = 2
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("import os\n\n\ndef train(context):\n    return 1\n")
    (tmp_path / "job.toml").write_text(LEAST)
    return tmp_path


def refused(job: Path, text: str) -> ConfigError:
    (job / "job.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_job_file(job)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_name_and_entry_are_enough(job: Path) -> None:
    found = read_job_file(job)
    assert found.directory == job
    assert (found.spec.shards, found.spec.workers, found.spec.requirements.kind) == (1, 1, "any")


def test_the_command_line_may_say_another_number_of_shards(job: Path) -> None:
    (job / "job.toml").write_text(LEAST + "shards = 3\n[checkpoints]\nmirror = true\n")
    assert read_job_file(job).spec.shards == 3
    assert read_job_file(job, shards=2).spec.shards == 2
    with pytest.raises(ConfigError, match="mirror"):
        read_job_file(job, shards=1)


def test_the_file_may_be_named_itself(job: Path) -> None:
    assert read_job_file(job / "job.toml") == read_job_file(job)


def test_every_key_reaches_the_spec_in_exact_units(job: Path) -> None:
    (job / "job.toml").write_text(FULL)
    spec = read_job_file(job).spec
    needs = spec.requirements
    assert (spec.shards, spec.workers) == (3, 2)
    assert {parameter.name: json.loads(parameter.value) for parameter in spec.parameters} == {
        "rate": 0.1,
        "layers": [64, 32],
        "label": "a",
    }
    assert (needs.kind, needs.choices, needs.devices, needs.device_memory_bytes) == (
        "gpu",
        (DeviceChoice(devices=2, model="H100"),),
        2,
        40 << 30,
    )
    assert (needs.cores_milli, needs.memory_bytes, needs.scratch_bytes) == (1500, 512 << 20, 10**9)
    assert (needs.wall_ms, spec.stall_ms, spec.silence_ms, spec.round_timeout_ms) == (600_000, 90_000, 20_000, 30_000)
    assert (spec.retries, spec.output_bytes, spec.state_bytes) == (2, 10 << 20, 5 << 20)
    assert (spec.retry_on, spec.retry_same_provider) == (("out-of-memory", "worker-died"), False)
    assert spec.mirror
    assert (spec.round_bytes, spec.round_every_ms) == (4 << 20, 15_000)
    assert needs.features == ("mirrors",)
    assert spec.budget == parse_amount("2.50")
    assert spec.price_ceiling_e18_per_device_ms == price_per_hour_to_e18("0.80")
    assert (spec.bid_window_ms, spec.meter_interval_ms) == (3_000, 2_000)
    assert (spec.queue_ms, spec.deadline_after_ms, spec.most_each) == (30 * 60_000, 6 * 3_600_000, 2)


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ('entry = "train.py:train"\n', "job.toml: name", "name"),
        (LEAST + "shard = 3\n", "job.toml:3: shard: unknown key", "shards"),
        (LEAST + "[limit]\n", "job.toml:3: limit: unknown key", "limits"),
        (LEAST + "[limits]\nwal = 3\n", "job.toml:4: limits.wal: unknown key", "wall"),
        (LEAST + "[data]\nseal = true\n", "job.toml:4: data.seal: unknown key", "sealed"),
        (LEAST + "[data]\nsealed = 1\n", "job.toml:4: data.sealed: must be", "true"),
        (LEAST + "shards = 0\n", "job.toml:3: shards: is 0", "1"),
        (LEAST + 'shards = "3"\n', "job.toml:3: shards: must be a whole number", "quotes"),
        (LEAST + "shards = true\n", "job.toml:3: shards: must be a whole number", "quotes"),
        (LEAST + '[budget]\ntotal = "-1"\n', "job.toml:4: budget.total: must not be negative", "1.25"),
        (LEAST + '[budget]\nprice_ceiling_per_hour = "-0.1"\n', "price_ceiling_per_hour: must not be neg", "0.40"),
        (LEAST + "[budget]\ntotal = 0.5\n", "budget.total: must be text in quotes", "1.25"),
        (LEAST + '[budget]\ntotal = "0.000001"\n', "budget.total: 0.000001 does not pay", "at least 0.002777"),
        (LEAST + '[budget]\ntotal = "1e3"\n', "budget.total: an amount must be a plain decimal", "1.25"),
        (LEAST + '[limits]\nwall = "10 fortnights"\n', "is no length of time", "90 s"),
        (LEAST + '[limits]\nwall = "10"\n', "limits.wall: is no length of time: a number and a unit", "90 s"),
        (LEAST + "[limits]\nwall = 600\n", "limits.wall: must be text in quotes", "90 s"),
        (LEAST + '[resources]\nmemory = "1 GiBi"\n', "unknown unit 'GiBi'", "512 MiB"),
        (LEAST + '[resources]\nkind = "gpus"\n', "resources.kind", 'did you mean "gpu"'),
        (LEAST + '[resources]\ngpu_models = ["H100"]\n', "gpu_models: makes no sense", "kind"),
        (LEAST + "[resources]\ncores = 0.0001\n", "resources.cores: must be a number of cores", "0.5"),
        (LEAST + "[parameters]\nwhen = 2020-01-01\n", "parameters.when: is a date", "quotes"),
        (LEAST + "[parameters]\nrate = nan\n", "parameters.rate: must be a finite number", "JSON"),
        (LEAST + f'[parameters]\nbig = "{"x" * 3000}"\n', "parameters.big: is longer", "file"),
        ('name = "a"\nentry = "train.py"\n', "job.toml:2: entry: must be", "train.py:train"),
        ('name = "a"\nentry = "../train.py:train"\n', "entry: must name a file inside", "train.py"),
        ('name = "a"\nentry = "trian.py:train"\n', "entry: there is no file trian.py", "did you mean train.py:train"),
        ('name = "a"\nentry = "train.py:trian"\n', "defines no function trian", "did you mean train.py:train"),
        ('name = "a\nentry = "b"', "is no valid TOML", "toml.io"),
        ('name = ""\nentry = "train.py:train"\n', "job.toml:1: name: must not be empty", "name"),
        ('name = "a\\u001b[2J"\nentry = "train.py:train"\n', "name: must be one line of printable", "control"),
        (LEAST + '[retry]\non = ["worker-dies"]\n', "'worker-dies' is no kind of", 'did you mean "worker-died"?'),
        (LEAST + '[retry]\non = ["reclaimed"]\n', "retry.on: 'reclaimed' is no kind", "kinds of failure are bad-entry"),
        (LEAST + '[tender]\ndeadline = "59 min"\n', "tender.deadline: is 59 min after the job", "lower limits.wall"),
        (LEAST + '[tender]\nqueue_timeout = "1"\n', "tender.queue_timeout: is no length of time", "90 s"),
        (LEAST + "[tender]\nper_provider = -1\n", "tender.per_provider: is -1", "0"),
        (LEAST + "[retry]\nmost = 101\n", "retry.most: is 101", "100"),
        (LEAST + "[checkpoints]\nmirror = true\n", "checkpoints.mirror: needs a second shard", "shards = 2"),
        (LEAST + '[rounds]\nstate = "1 MiB"\n', "rounds.every: is missing", "every"),
        (LEAST + '[rounds]\nevery = "1 min"\n', "rounds.state: is missing", "state"),
        (LEAST + '[rounds]\nstate = "1 GiB"\nevery = "1 s"\n', "rounds.state: is more than limits.state", "256 MiB"),
        (LEAST + '[rounds]\nstates = "1 GiB"\n', "rounds.states: unknown key", "state"),
        (LEAST + "[checkpoints]\nmirror = 1\n", "checkpoints.mirror: must be true or false", "true"),
        (LEAST + "[checkpoints]\nmirrors = true\n", "checkpoints.mirrors", "mirror"),
        (LEAST + "[retry]\nsame_provider = 1\n", "retry.same_provider: must be true or false", "true"),
        ("budget = 3\n" + LEAST, "job.toml:1: budget: must be a table", "[budget]"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_a_way_out(job: Path, text: str, place: str, hint: str) -> None:
    fault = refused(job, text)
    assert place in fault.what
    assert hint in fault.hint


def test_a_sealed_job_is_one_whose_providers_must_know_how(job: Path) -> None:
    (job / "job.toml").write_text(LEAST + "[data]\nsealed = true\n")
    assert read_job_file(job).spec.requirements.features == ("sealed",)
    (job / "job.toml").write_text(LEAST + '[resources]\nneeds = "features = sealed"\n')
    assert read_job_file(job).spec.requirements.features == ("sealed",)
    (job / "job.toml").write_text(LEAST + "shards = 2\n[data]\nsealed = true\n[checkpoints]\nmirror = true\n")
    assert read_job_file(job).spec.requirements.features == ("mirrors", "sealed")
    (job / "job.toml").write_text(LEAST + "[data]\nsealed = false\n")
    assert read_job_file(job).spec.requirements.features == ()


@pytest.mark.parametrize("sealed", ["[data]\nsealed = true\n", '[resources]\nneeds = "features = sealed"\n'])
@pytest.mark.parametrize("other", ['dependencies = ["a"]\nwheels = "wheels"', 'image = "image.tar"'])
def test_a_sealed_job_brings_nothing_that_providers_keep_unpacked(job: Path, sealed: str, other: str) -> None:
    (job / "wheels").mkdir()
    for name in ("wheels/a-1-py3-none-any.whl", "image.tar"):
        (job / name).write_bytes(b"x")
    (job / "job.toml").write_text(LEAST + sealed + f"[environment]\n{other}\n")
    with pytest.raises(ConfigError, match=r"data.sealed: goes with no wheels and no image archive"):
        read_job_file(job)


def test_a_sealed_shard_is_on_one_machine(job: Path) -> None:
    (job / "job.toml").write_text(LEAST + "[data]\nsealed = true\n[resources]\nseveral_machines = true\n")
    with pytest.raises(ConfigError, match=r"job.toml:4: data.sealed: goes with one machine"):
        read_job_file(job)


def test_what_is_tried_again_without_a_word_about_it(job: Path) -> None:
    spec = read_job_file(job).spec
    assert (spec.retry_on, spec.retries, spec.retry_same_provider) == (WORTH_RETRYING, 3, True)
    assert not spec.mirror
    assert spec.requirements.features == ()
    (job / "job.toml").write_text(LEAST + "[limits]\nretries = 5\n")
    assert read_job_file(job).spec.retries == 5


def test_code_that_does_not_parse_is_named_with_its_line(job: Path) -> None:
    (job / "train.py").write_text("x = 1\ndef train(:\n")
    assert "train.py:2:" in refused(job, LEAST).what


@pytest.mark.parametrize(
    "code",
    [
        "from elsewhere import train\n",
        "from elsewhere import *\n",
        "train = make()\n",
        "try:\n    import numpy\nexcept ImportError:\n    pass\nelse:\n    def train(context): ...\n",
        "async def train(context): ...\n",
    ],
)
def test_an_entry_may_be_bound_in_any_way(job: Path, code: str) -> None:
    (job / "train.py").write_text(code)
    assert read_job_file(job).spec.entry == "train.py:train"


def test_code_that_python_itself_gives_up_on_is_said_in_words(job: Path) -> None:
    (job / "train.py").write_text(f"def train(context): ...\nx = {'-' * 100_000}1\n")
    assert "train.py is nested too deeply" in refused(job, LEAST).what


def test_a_function_inside_another_is_no_entry(job: Path) -> None:
    (job / "train.py").write_text("def outer():\n    def train(context): ...\n")
    assert "defines no function train" in refused(job, LEAST).what


def test_a_missing_file_or_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_job_file(tmp_path / "nowhere" / "job.toml")
    with pytest.raises(ConfigError, match=r"there is no job.toml in it"):
        read_job_file(tmp_path)
    with pytest.raises(ConfigError, match=r"train.py: is code and no job file"):
        read_job_file(tmp_path / "train.py")


def test_a_file_that_is_no_text_is_said(job: Path) -> None:
    (job / "job.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_job_file(job)


def test_a_spec_comes_back_from_json_as_it_was(job: Path) -> None:
    (job / "job.toml").write_text(FULL)
    spec = read_job_file(job).spec
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


def test_integers_that_json_would_round_travel_as_text(job: Path) -> None:
    plain = spec_to_json(read_job_file(job).spec)
    assert plain["price_ceiling_e18_per_device_ms"] == "277777777777777778"
    assert plain["shards"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"shards": -1},
        {"retry_same_provider": 1},
        {"shards": 1.5},
        {"shards": True},
        {"budget": "x"},
        {"name": "n" * 300},
        {"extra": 1},
        {"parameters": {"a": 1}},
        {"requirements": None},
    ],
)
def test_json_out_of_range_is_malformed(job: Path, change: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        spec_from_json(spec_to_json(read_job_file(job).spec) | change)
