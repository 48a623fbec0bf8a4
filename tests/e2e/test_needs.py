"""What a job needs and what an owner accepts, with real daemons: one sentence on each side, and an answer to both."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.market import await_that, providers_known

from hansa.node.commands.demo_nodes import DemoNode, DemoNodes
from hansa.node.settings.config import FILE_NAME

pytestmark = pytest.mark.slow
JOB = """\
name = "greeting"
entry = "greet.py:greet"

[resources]
memory = "600 MiB"
shared_memory = "128 MiB"

[limits]
wall = "3 min"

[policy]
licence = "{licence}"

[tender]
bids = "2 s"
meter = "1 s"
"""
CODE = """
def greet(ctx):
    print("hello from a market")
"""
FITS = "kind = cpu and cores >= 0.5 and disk in 64MiB..1TB and download >= 500 Mbit/s and region = de and price <= 1"


@pytest.fixture(scope="module")
def nodes() -> Iterator[DemoNodes]:
    """A buyer, and a provider with rules and facts of its owner's."""
    with DemoNodes(prices=("0.40",)) as made:
        made.make()
        file = made.providers[0].made.config.data_dir / FILE_NAME
        text = file.read_text()
        for before, after in (
            ('accepts = ""', 'accepts = "wall <= 1 h and network = none and licence in (mit, bsd)"'),
            ('# download = "900 Mbit/s"', 'download = "900 Mbit/s"'),
            ('region = "loopback"', 'region = "Frankfurt, DE"'),
        ):
            assert before in text, before
            text = text.replace(before, after, 1)
        file.write_text(text)
        made.start()
        await_that(lambda: len(providers_known(made)) == 1, 90, "the buyer knows the provider")
        yield made


def hansa(node: DemoNode, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "hansa", *arguments, "--data", str(node.made.config.data_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def job_in(directory: Path, licence: str) -> Path:
    directory.mkdir()
    (directory / "job.toml").write_text(JOB.format(licence=licence))
    (directory / "greet.py").write_text(CODE)
    return directory


def test_a_slip_on_the_command_line_is_pointed_at(nodes: DemoNodes, tmp_path: Path) -> None:
    told = hansa(nodes.buyer, "submit", str(job_in(tmp_path / "job", "mit")), "--needs", "kind = cpu and regoin = de")
    assert told.returncode == 2
    assert told.stderr.splitlines() == [
        "hansa: --needs: 'regoin' is no word of the vocabulary",
        "    kind = cpu and regoin = de",
        "                   ^^^^^^",
        "hint: did you mean region?",
    ]


def test_an_advert_says_what_the_owner_states_and_the_node_found_out(nodes: DemoNodes) -> None:
    (advert,) = providers_known(nodes)
    facts = advert["facts"] | advert["devices"][0]["facts"]
    assert facts["download"] == "900 Mbit/s"
    assert "download" in facts["stated"].split(",")
    assert facts["arch"]


def test_a_rule_that_fails_is_named_beside_everything_else_that_is_lacking(nodes: DemoNodes, tmp_path: Path) -> None:
    directory = job_in(tmp_path / "job", "gpl")
    told = hansa(nodes.buyer, "submit", str(directory), "--watch", "--needs", "cuda >= 12 and region in (us)")
    assert told.returncode == 1
    assert "this provider takes only jobs with licence in (bsd, mit), and the job's licence is gpl" in told.stdout
    jobs = json.loads(hansa(nodes.buyer, "jobs", "--json").stdout)["jobs"]
    why = hansa(nodes.buyer, "why", jobs[0]["job"]).stdout
    assert "1 more provider if cuda has no limit" in why
    for lacking in ("cuda >= 12", "licence = gpl", "region = us"):
        assert lacking in why


def test_with_needs_that_are_met_on_both_sides_the_job_succeeds(nodes: DemoNodes, tmp_path: Path) -> None:
    told = hansa(nodes.buyer, "submit", str(job_in(tmp_path / "job", "MIT")), "--watch", "--needs", FITS)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "job succeeded" in told.stdout
