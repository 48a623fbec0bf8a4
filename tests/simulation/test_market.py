"""Whole markets from a fixed list of seeds; ``python tests/simulation/simulate.py --seeds 1000`` plays many more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulation.market import Market
from simulation.simulate import play
from simulation.world import NONE, Faults, World

SEEDS = range(100)


@pytest.mark.parametrize("seed", SEEDS)
def test_chaos_breaks_no_promise_and_everything_ends_once_it_is_over(seed):
    play(seed)


@pytest.mark.parametrize("seed", range(900, 904))
def test_a_market_without_any_trouble_serves_every_job_that_fits(seed):
    market = Market(seed, NONE)
    market.play()
    for buyer, _ in market.auditor.jobs.values():
        for _, of in buyer.engine.state.jobs.all():
            assert of.phase == "succeeded" or of.reason.startswith("unfilled"), f"seed {seed}: {of.reason}"
    assert market.auditor.unpaid_between_honest == 0


@pytest.mark.parametrize("seed", [7, 31])
def test_two_runs_of_one_seed_agree_to_the_byte(seed):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r});"
        f"from simulation.simulate import play; print(play({seed}).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert digests == {f"{play(seed).digest}\n"}


def test_a_world_that_fails_says_how_to_see_it_again(monkeypatch):
    monkeypatch.setattr(World, "heal", lambda _: (_ for _ in ()).throw(AssertionError("as if")))
    with pytest.raises(AssertionError) as found:
        play(3)
    assert "simulate.py --first 3 --seeds 1" in "".join(found.value.__notes__)


def test_worlds_differ_in_their_troubles():
    assert len({Market(seed).world.faults for seed in range(20)}) > 10
    assert Faults() == NONE
