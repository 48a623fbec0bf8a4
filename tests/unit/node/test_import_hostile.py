"""Files that mean harm: whatever ``hansa import`` is given, it answers within bounds, with a job or with a reason."""

import resource
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.node.faults import ConfigError
from hansa.node.jobs.import_formats import FORMATS, read_spec
from hansa.node.jobs.import_writer import write_job
from hansa.node.jobs.import_yaml import LARGEST_BYTES

MOST_CPU_S = 60
"""For one file of the largest size; the slowest of these take three seconds of a slow core."""
MOST_MEMORY_BYTES = 512 << 20
SKYPILOT = "resources: {cpus: 1}\nrun: |\n"
HOSTILE = {
    "a billion laughs": "a0: &a0 [x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 7)}]\n" for n in range(1, 9)),
    "merges of merges": "a0: &a0 {" + ",".join(f"k{n}: 1" for n in range(150)) + "}\n"
    + "".join(f"a{n}: &a{n}\n  <<: [*a{n - 1}]\n" for n in range(1, 60)),
    "a cycle of lists": "&a [*a]",
    "a cycle of mappings": "resources: &a {b: *a}\nrun: x\n",
    "a cycle of merges": "resources: &a\n  <<: *a\nrun: x\n",
    "brackets": "[" * LARGEST_BYTES,
    "dashes": "- " * LARGEST_BYTES,
    "question marks": "?\n" * LARGEST_BYTES,
    "flow values": "[" + "1," * LARGEST_BYTES,
    "anchors": "".join(f"a{n}: &a{n} 1\n" for n in range(30_000)),
    "one long anchor": "a: &" + "a" * LARGEST_BYTES,
    "a tag of escapes": "a: !" + "%41" * LARGEST_BYTES,
    "tag directives": "".join(f"%TAG !a{n}! tag:x,2000:\n" for n in range(20_000)) + "---\na: 1",
    "a version of many digits": "%YAML " + "1" * LARGEST_BYTES + ".1\n---\na: 1",
    "documents": "---\n" * LARGEST_BYTES,
    "one key again and again": "a: 1\n" * LARGEST_BYTES,
    "lines of one scalar": "a: " + "b\n c " * LARGEST_BYTES,
    "folded lines": "a: >\n" + " b\n\n" * LARGEST_BYTES,
    "keys that nobody reads": "resources: {}\nrun: x\n" + "".join(f"k{n}: 1\n" for n in range(6_000)),
    "a command of many words": SKYPILOT + "  pip install a" + " x" * 60_000,
    "a command of quotes": SKYPILOT + "  " + "'\"\\" * 80_000,
    "a command of lines": SKYPILOT + "  x\n" * 60_000,
    "a command that goes on": SKYPILOT + "  " + "\\\n  " * 50_000,
    "whitespace": SKYPILOT + "  a" + " " * 200_000 + "b",
    "open templates": "tasks: [{}]\ntype: batch\nname: " + "{{" * 100_000,
    "templates of spaces": "tasks: [{}]\ntype: batch\nname: {{" + " " * 200_000,
    "templates": "tasks: [{}]\nname: " + "{{ .a }}" * 30_000,
    "a number of many digits": "resources: {cpus: " + "9" * 100_000 + "}\nrun: x",
    "numbers of many digits": "resources: {memory: 1}\nrun: x\nnum_nodes: " + "9" * 100_000,
    "a query of many words": "vastai search offers '" + "gpu_name=A " * 20_000 + "'",
    "a query of many digits": "num_gpus>=" + "9" * 200_000,
    "a list in a query": "gpu_name in [" + "A," * 100_000 + "]",
    "a requirement of many parts": "gpu:count=1;" * 20_000,
    "JSON": '{"a":' * 20_000,
    "halves of characters": '{"tasks": [{"a":"' + "\\ud83d" * 30_000 + '"}]}',
    "an object of Python's": "resources: !!python/object/apply:os.system ['exit 3']\nrun: !!python/name:os.system x\n",
}  # fmt: skip


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_S, MOST_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))


def imported(file: str, *more: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, which dies when it takes more than it may."""
    command = [sys.executable, "-m", "hansa", "import", file, *more]
    return subprocess.run(command, input=data, capture_output=True, check=False, timeout=300, preexec_fn=limited)


SOON = (
    "a billion laughs", "merges of merges", "a cycle of lists", "a cycle of mappings", "a cycle of merges", "dashes",
    "brackets", "documents", "a number of many digits", "JSON", "an object of Python's",
)  # fmt: skip
TEXTS = [
    pytest.param(text[:LARGEST_BYTES], id=name, marks=() if name in SOON else pytest.mark.long)
    for name, text in HOSTILE.items()
]


@pytest.mark.parametrize("text", TEXTS)
def test_no_file_takes_more_time_or_memory_than_it_may(text: str, tmp_path: Path) -> None:
    file = tmp_path / "any.yaml"
    file.write_text(text)
    done = imported(str(file))
    words = done.stderr.decode()
    assert done.returncode in (0, 2), (done.returncode, words[-500:])
    assert "Traceback" not in words
    if done.returncode == 2:
        assert words.startswith("hansa: ")
        assert "\nhint: " in words
        assert len(words) < 10_000
    else:
        tomllib.loads(done.stdout.decode())
    for shown in (done.stdout.decode(), words):
        assert all(character.isprintable() or character == "\n" for character in shown)


def test_of_a_file_without_an_end_no_more_is_read_than_could_be_a_job(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    with large.open("wb") as stream:
        stream.truncate(100 << 20)  # 100 MB of zeros, on no disk
    for done in (imported(str(large)), imported("/dev/zero"), imported("-", data=b"a: 1\n" * (1 << 21))):
        assert done.returncode == 2
        assert b"larger than 256 KiB" in done.stderr


SAMPLES = (
    (
        "version: '2.0'\nservices:\n  web:\n    image: a:1\n    command: [sh, -c, run]\n    env: [A=1]\n    expose:\n"
        "      - port: 80\n        to: [{global: true}]\nprofiles:\n  compute:\n    web:\n      resources:\n"
        "        cpu: {units: 1}\n        memory: {size: 1Gi}\n        storage: {size: 1Gi}\n        gpu: {units: 1,"
        " attributes: {vendor: {nvidia: [{model: a100}]}}}\n  placement:\n    any:\n"
        "      pricing: {web: {denom: uakt, amount: 100}}\n"
        "deployment:\n  web:\n    any: {profile: web, count: 1}\n"
    ),
    (
        "name: t\nresources:\n  accelerators: {A100: 8}\n  cpus: 4+\n  memory: 32\n  any_of: [{use_spot: true}]\n"
        "num_nodes: 2\nenvs: {A: b}\nsetup: pip install torch==2.1\nrun: |\n  python train.py --lr 0.1\n"
    ),
    (
        "type: task\nname: t\npython: '3.11'\nenv: [A=b]\ncommands: [pip install x, python a.py]\nresources:\n  gpu: {"
        "name: [A100], count: 1..2, memory: 40GB..}\n  disk: 100GB..\nmax_duration: 2h\n"
    ),
    (
        "Name: j\nType: batch\nCount: 2\nTasks:\n  - Name: m\n"
        "    Engine: {Type: docker, Params: {Image: 'a:1', Entrypoint: [x]}}\n"
        "    Resources: {CPU: '1', Memory: 1Gb, GPU: '1'}\n    Timeouts: {ExecutionTimeout: 3600}\n"
    ),
)
HARM = st.sampled_from(
    [
        *(
            "&a ",
            "*a",
            "<<: *a",
            "!!int ",
            "!x!y ",
            "- ",
            "? ",
            ": ",
            "{",
            "}",
            "[",
            "]",
            "|\n",
            ">-\n",
            "'",
            '"',
            "\\",
            "#",
        ),
        *(
            "%",
            "@",
            "\x00",
            "\x1b[2J",
            "\u202e",
            "\ufeff",
            "\ud7ff",
            "~",
            "null",
            "true",
            "9" * 40,
            "-1",
            "1e999",
            ".inf",
        ),
        *(
            ".nan",
            "0x10",
            "{{.a}}",
            "{{",
            "\n---\n",
            "\n...\n",
            "\t",
            "\r",
            "\n",
            "  ",
            "..",
            "${A}",
            "$(x)",
            "`x`",
            "A100:8",
        ),
    ]
)


@st.composite
def harmed(draw: st.DrawFn) -> str:
    """A sound file into which something was put, or of which something was cut."""
    text = draw(st.sampled_from(SAMPLES))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.sampled_from([0, 0, 0, 1, 5, 40]))
        text = text[:at] + draw(HARM) + text[at + cut :]
    return text


@given(harmed(), st.sampled_from(["", "", "", *FORMATS]), st.sampled_from(["", "web", "2", "\x1b"]))
@settings(max_examples=200, deadline=None)
def test_a_sound_file_that_was_tampered_with_is_a_job_or_refused_with_a_hint(text: str, named: str, part: str) -> None:
    try:
        draft = read_spec(text.encode("utf-8", "replace"), Path("any.yaml"), named=named, part=part, values={"a": "9"})
    except ConfigError as refused:
        assert refused.hint  # noqa: PT017 - to be refused is one of two ways that are well
        return
    with suppress(ConfigError):
        made = write_job(draft, "any.yaml")
        tomllib.loads(made.text)
        assert all(character.isprintable() or character == "\n" for character in made.text)


def test_the_samples_are_sound() -> None:
    for text in SAMPLES:
        tomllib.loads(write_job(read_spec(text.encode(), Path("any.yaml")), "any.yaml").text)
