"""What a job needs in one sentence of job.toml or the command line, beside the older keys and never against them."""

import pytest

from hansa.node.api.job_json import spec_from_json, spec_to_json
from hansa.node.faults import ConfigError
from hansa.node.jobs.job_file import read_job_file
from hansa.proto.market_documents import Clause, DeviceChoice, Fact
from hansa.proto.units import price_per_hour_to_e18

GIB = 1 << 30


@pytest.fixture
def job(tmp_path):
    """Writes a job.toml with these further lines and reads it."""
    (tmp_path / "train.py").write_text("def train(job):\n    pass\n")

    def read(lines="", needs=None):
        (tmp_path / "job.toml").write_text('name = "digits"\nentry = "train.py:train"\n' + lines)
        return read_job_file(tmp_path, needs)

    return read


def refused(job, lines, needs=None):
    with pytest.raises(ConfigError) as caught:
        job(lines, needs)
    return str(caught.value), caught.value.hint


EVERYTHING = '''
[resources]
needs = """
    8xH100 or 16xA100-80GB
    ram >= 64 GiB, disk >= 200 GB, cuda >= 12.4
    region not in (cn, ru) and lease = firm, price <= 2.10, deadline = 6 h
"""
[policy]
licence = "MIT"
data_region = ["EU", "de"]
purpose = "research"
[budget]
total = "500.00"
max_prepay = "90 s"
'''


def test_one_sentence_says_it_all(job):
    spec = job(EVERYTHING).spec
    needs = spec.requirements
    assert needs.choices == (DeviceChoice(devices=8, model="H100"), DeviceChoice(devices=16, model="A100-80GB"))
    assert (needs.kind, needs.devices, needs.memory_bytes, needs.scratch_bytes) == ("gpu", 16, 64 * GIB, 200 * 10**9)
    assert needs.clauses == (
        Clause(name="cuda", operator=">=", values=("12.4",)),
        Clause(name="region", operator="not in", values=("cn", "ru")),
    )
    assert (spec.lease, spec.deadline_after_ms) == ("firm", 6 * 3_600_000)
    assert spec.price_ceiling_e18_per_device_ms == price_per_hour_to_e18("2.10")
    assert spec.facts == (
        Fact(name="data_region", value="de,eu"),
        Fact(name="licence", value="mit"),
        Fact(name="prepay", value="90 s"),
        Fact(name="purpose", value="research"),
    )
    assert spec_from_json(spec_to_json(spec)) == spec


def test_a_job_that_pays_nothing_ahead_says_so(job):
    assert job('[budget]\nmax_prepay = "0 s"\n').spec.facts == (Fact(name="prepay", value="0 ms"),)
    assert job("").spec.facts == (Fact(name="prepay", value="1 min"),)


def test_the_command_line_goes_before_the_file(job):
    lines = '[resources]\nneeds = "8xH100"\nmemory = "4 GiB"\n[budget]\nprice_ceiling_per_hour = "9.00"\n'
    spec = job(lines, "2xL4 and ram >= 8 GiB and price <= 0.5 and region = de").spec
    assert spec.requirements.choices == (DeviceChoice(devices=2, model="L4"),)
    assert spec.requirements.memory_bytes == 8 * GIB
    assert spec.price_ceiling_e18_per_device_ms == price_per_hour_to_e18("0.5")
    assert job(lines).spec.requirements.choices == (DeviceChoice(devices=8, model="H100"),)


def test_the_older_keys_say_the_same_as_ever(job):
    lines = '[resources]\nkind = "gpu"\ngpu_models = ["rtx_4090", "NVIDIA GeForce RTX 4090", "h100"]\ndevices = 2\n'
    assert job(lines).spec.requirements.choices == (
        DeviceChoice(devices=2, model="RTX4090"),
        DeviceChoice(devices=2, model="H100"),
    )


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ('[resources]\nneeds = "H100"\ngpu_models = ["H100"]\nkind = "gpu"\n', ("gpu_models", "'gpu'")),
        ('[resources]\nneeds = "H100"\ndevices = 2\n', ("devices", "'gpu'")),
        ('[resources]\nneeds = "devices = 2"\ndevices = 2\n', ("devices", "'devices'")),
        ('[resources]\nneeds = "vram >= 24 GB"\ndevice_memory = "24 GB"\n', ("device_memory", "'vram'")),
        ('[resources]\nneeds = "ram >= 8 GiB"\nmemory = "8 GiB"\n', ("memory", "'ram'")),
        ('[resources]\nneeds = "disk >= 8 GiB"\ndisk = "8 GiB"\n', ("disk", "'disk'")),
        ('[resources]\nneeds = "cores >= 8"\ncores = 8\n', ("cores", "'cores'")),
        ('[resources]\nneeds = "kind = cpu"\nkind = "cpu"\n', ("kind", "'kind'")),
        ('[resources]\nneeds = "tier = gvisor"\ntier = "gvisor"\n', ("tier", "'tier'")),
        ('[resources]\nneeds = "price <= 1"\n[budget]\nprice_ceiling_per_hour = "1"\n', ("budget.price_c", "'price'")),
        ('[resources]\nneeds = "deadline = 2 h"\n[tender]\ndeadline = "2 h"\n', ("tender.deadline", "'deadline'")),
        ('[resources]\nneeds = "lease = firm"\n[tender]\nlease = "firm"\n', ("tender.lease", "'lease'")),
    ],
)
def test_what_is_said_twice_names_both_places(job, lines, names):
    words, hint = refused(job, lines)
    assert all(name in words for name in names)
    assert "say it once" in hint


def test_a_slip_is_pointed_at_in_the_file_and_on_the_command_line(job):
    words, hint = refused(job, '[resources]\nneeds = "8xH100 and regoin = de"\n')
    assert "job.toml:4: resources.needs: 'regoin' is no word of the vocabulary" in words
    with pytest.raises(ConfigError) as caught:
        job('[resources]\nneeds = "8xH100 and regoin = de"\n')
    assert caught.value.quote == "8xH100 and regoin = de\n           ^^^^^^"
    assert hint == "did you mean region?"
    words, _ = refused(job, "", "vram >= 24")
    assert words.startswith("--needs: '24' is no size")
    assert refused(job, "[resources]\nneeds = 3\n")[0].endswith("needs: must be text")


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ('[resources]\nneeds = "ram >= 1 MiB"\n', "less memory than a run needs"),
        ('[resources]\nneeds = "disk >= 1 B"\n', "less room on disk"),
        ('[resources]\nneeds = "deadline = 1 min"\n', "sooner than a run"),
        ('[policy]\nlicence = ["a\\"b"]\n', "policy.licence"),
        ('[policy]\nlicense = "mit"\n', "unknown key"),
        ("[policy]\npurpose = [1]\n", "policy.purpose"),
    ],
)
def test_what_could_never_run_is_refused(job, lines, why):
    assert why in refused(job, lines)[0]
