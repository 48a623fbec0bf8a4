"""Akash's SDL: what its own parser refuses is refused, what it accepts is read."""

import re
from pathlib import Path

import pytest

from hansa.node.faults import ConfigError
from hansa.node.jobs.import_formats import read_spec
from hansa.node.jobs.import_job import GIB, Draft

SDL = """version: "2.0"
services:
  train:
    image: ghcr.io/me/train@sha256:{digest}
    command: [bash, "-c"]
    args: ["pip install einops && python train.py --data https://data.example.org/x"]
    env:
      - HF_TOKEN=hf_secretsecret
      - EPOCHS=3
      - PATH=/usr/bin
      - EMPTY=
    expose:
      - port: 8080
        to:
          - global: true
    params:
      storage:
        data:
          mount: /data
        shm:
          mount: /dev/shm
profiles:
  compute:
    train:
      resources:
        cpu:
          units: 16
          attributes:
            arch: amd64
        memory:
          size: 64Gi
        storage:
          - size: 100Gi
          - name: data
            size: 50Gi
            attributes:
              persistent: true
              class: beta3
          - name: shm
            size: 8Gi
            attributes:
              class: ram
              persistent: false
        gpu:
          units: 8
          attributes:
            vendor:
              nvidia:
                - model: a100
                  ram: 80Gi
                - model: h100
                  interface: sxm
                - model: rtx4090
                  interface: pcie
  placement:
    dcloud:
      attributes:
        region: us-west
      signedBy:
        anyOf: [akash1x]
      pricing:
        train:
          denom: uact
          amount: 10000
deployment:
  train:
    dcloud:
      profile: train
      count: 2
""".replace("{digest}", "ab" * 32)


def read(text: str, part: str = "") -> Draft:
    return read_spec(text.encode(), Path("deploy.yaml"), part=part)


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.hint
    return caught.value


def changed(*pairs: tuple[str, str]) -> str:
    text = SDL
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def test_everything_that_has_a_place_here_is_carried_over() -> None:
    draft = read(SDL)
    assert draft.system == "Akash"
    assert draft.name == "train"
    assert draft.choices == ((8, "A100-80GB"), (8, "H100-SXM5"), (8, "RTX4090"))
    assert (draft.devices, draft.cores_milli, draft.shards) == (8, 16_000, 2)
    assert draft.clauses == ["arch = x86_64"]
    assert draft.disk_bytes == 150 * GIB
    assert draft.shared_memory_bytes == 8 * GIB
    assert draft.memory_bytes == 72 * GIB, "Akash's shared memory comes on top of its memory, here it counts against it"
    assert draft.image == "ghcr.io/me/train@sha256:" + "ab" * 32
    assert draft.env == {"EPOCHS": "3"}
    assert draft.hosts == ("data.example.org:443", "huggingface.co:443", "*.hf.co:443")
    assert draft.packages == ("einops",)
    assert draft.price_per_hour is None


def test_what_has_none_is_named_with_its_line_and_its_reason() -> None:
    left = {remark.place: remark for remark in read(SDL).left_out}
    assert "port of it can be reached" in left["services.train.expose[0] (line 13)"].how
    assert "persistent at /data" in left["profiles.compute.train.resources.storage[1] (line 34)"].what
    assert left["services.train.env[0] (line 8)"].what == "HF_TOKEN"
    price = left["profiles.placement.dcloud.pricing.train (line 62)"]
    assert price.what == "10000 uact a block"
    assert "is not converted" in price.how
    assert "6.00 an hour, 0.75 for a GPU" in price.how
    assert "profiles.placement.dcloud.attributes (line 57)" in left
    assert "profiles.placement.dcloud.signedBy (line 59)" in left


def test_a_secret_goes_nowhere() -> None:
    draft = read(SDL)
    assert draft.secrets == ["HF_TOKEN"]
    assert "hf_secretsecret" not in repr(draft)


def test_a_token_that_is_no_dollar_gets_no_figure() -> None:
    draft = read(changed(("uact", "uakt")))
    (price,) = [remark for remark in draft.left_out if "a block" in remark.what]
    assert "an hour" not in price.how


def test_no_model_means_any_of_the_maker() -> None:
    text = SDL[: SDL.index("                - model: a100")] + SDL[SDL.index("  placement:") :]
    draft = read(text)
    assert draft.choices == ()
    assert draft.clauses == ["arch = x86_64", "vendor = nvidia"]
    assert draft.devices == 8


def test_a_model_that_nobody_knows_is_left_out_while_others_do() -> None:
    draft = read(changed(("model: rtx4090", "model: '4000'")))
    assert [model for _, model in draft.choices] == ["A100-80GB", "H100-SXM5"]
    assert "no GPU is known by this name" in next(r.how for r in draft.left_out if r.what == "4000")


@pytest.mark.parametrize(
    ("pairs", "line", "what"),
    [
        ([("deployment:\n  train:", "deployment:\n  web:")], "web:", "no service profile named web"),
        ([("profile: train", "profile: web")], "dcloud:", "no compute profile named web"),
        ([("  train:\n    dcloud:", "  train:\n    other:")], "other:", "no placement profile named other"),
        (
            [("        train:\n          denom", "        web:\n          denom")],
            "dcloud:",
            "no pricing for profile train",
        ),
        ([("mount: /data", "mount: data")], "mount: data", "must be an absolute path"),
        ([("mount: /data", "mount: /dev/shm")], "shm:", "/dev/shm is already in use by data"),
        ([("        data:\n", "        other:\n")], "other:", "there is no volume named other"),
        ([("name: data", "name: shm")], "- name: shm", "a second volume is named shm"),
        ([("persistent: false", "persistent: true")], "class: ram", "in memory cannot be persistent"),
        ([("interface: sxm", "interface: agp")], "interface: agp", '"agp" is no interface'),
        ([("amount: 10000", "amount: 0")], "amount: 0", "more than nothing"),
        ([('version: "2.0"', 'version: "1.0"')], "version:", "no version of the SDL"),
        ([("deployment:\n", "extra: 1\ndeployment:\n")], "extra: 1", "is no field of an SDL"),
        ([("vendor:", "maker:")], "attributes:", "at least one vendor must be set"),
        ([("units: 8", "units: 8\n          model: a100")], "model: a100", "is no field of gpu"),
        ([("size: 64Gi", "size: 64Gb")], "size: 64Gb", "has an unknown unit"),
        ([("units: 16", "units: many")], "units: many", "is no number of CPU cores"),
        ([("count: 2", "count: 0")], "count: 0", "outside 1 .. 1024"),
    ],
)
def test_what_akash_refuses_is_refused_at_its_place(pairs: list[tuple[str, str]], line: str, what: str) -> None:
    text = changed(*pairs)
    fault = refusal(text)
    assert what in fault.what
    match = re.match(r"deploy\.yaml:([0-9]+): ", fault.what)
    assert match is not None
    assert line in text.splitlines()[int(match[1]) - 1]


def test_the_hint_on_a_size_names_only_units_that_are_taken_there() -> None:
    fault = refusal(changed(("size: 64Gi", "size: 64GB")))
    assert "has an unknown unit" in fault.what
    assert "16Gi" in fault.hint
    assert "16GB" not in fault.hint, "which is what was just refused"


def test_gpus_without_attributes_are_refused_as_akash_does() -> None:
    text = SDL[: SDL.index("          attributes:\n            vendor:")] + SDL[SDL.index("  placement:") :]
    assert "attributes must be present" in refusal(text).what


def test_a_persistent_volume_needs_some_mount() -> None:
    begin, end = SDL.index("    params:"), SDL.index("profiles:")
    assert "is persistent, which needs a mount" in refusal(SDL[:begin] + SDL[end:]).what


def test_a_persistent_volume_beside_another_mount_passes_as_it_does_at_akash() -> None:
    text = changed(
        ("          - size: 100Gi\n", "          - size: 100Gi\n            attributes: {persistent: true}\n")
    )
    assert read(text).disk_bytes == 150 * GIB


WEB = "    web:\n      resources: {cpu: {units: 100m}, memory: {size: 128Mi}}\n"
TWO = changed(
    ("  train:\n    image", "  web:\n    image: nginx\n  train:\n    image"),
    ("deployment:\n", "deployment:\n  web:\n    dcloud: {profile: web, count: 1}\n"),
    ("  compute:\n", f"  compute:\n{WEB}"),
    ("      pricing:\n", "      pricing:\n        web: {denom: uakt, amount: 5}\n"),
)


def test_of_several_services_the_one_with_gpus_is_the_job() -> None:
    draft = read(TWO)
    assert draft.name == "train"
    assert any(remark.what == "web" and "another program" in remark.how for remark in draft.left_out)
    assert read(TWO, part="web").cores_milli == 100


def test_several_services_are_a_question() -> None:
    gpu = "gpu: {units: 1, attributes: {vendor: {nvidia: }}}"
    both = TWO.replace("cpu: {units: 100m}", f"cpu: {{units: 1}}, {gpu}")
    assert refusal(both).hint == "choose one with --part web"
    assert read(both, part="train").name == "train"
    with pytest.raises(ConfigError, match="deploys no service other"):
        read(both, part="other")


def test_endpoints_are_checked() -> None:
    ip = changed(("- global: true", '- global: true\n            ip: "meow"'))
    assert "there is no endpoint named meow" in refusal(ip).what
    named = ip + 'endpoints:\n  meow:\n    kind: "ip"\n'
    assert any("no address of its own" in remark.how for remark in read(named).left_out)
    assert "is declared but never used" in refusal(SDL + 'endpoints:\n  meow:\n    kind: "ip"\n').what
    assert "is no kind of endpoint" in refusal(named.replace('"ip"\n', '"dns"\n')).what


def test_a_field_that_nobody_knows_is_told() -> None:
    draft = read(changed(("    command:", "    restart: always\n    command:")))
    assert any(remark.place.startswith("services.train.restart") for remark in draft.left_out)
