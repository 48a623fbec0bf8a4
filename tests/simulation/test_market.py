"""Whole markets from a fixed list of seeds; ``python tests/simulation/simulate.py --seeds 1000`` plays many more."""

import collections
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
            # A round that starts slowly may take longer than what some providers let be unpaid: a few seconds' work.
            known = of.reason.startswith("unfilled") or "may be unpaid" in of.reason
            assert of.phase == "succeeded" or known, f"seed {seed}: {of.reason}"
    assert market.auditor.unpaid_between_honest == 0


def test_where_owners_take_devices_back_all_the_time_every_job_that_fits_is_still_served():
    """No retry is spent on it, whether the notice was kept or not, nor on scarce credit, and nobody goes unpaid.

    Only those may lose a run who wait for a moved shard's part of a round for longer than their providers wait unpaid.
    """
    moves = collections.Counter()
    for seed in range(963, 983):
        market = Market(seed, Faults(reclaim=0.6))
        moves.update(market.play().moves)
        assert market.auditor.unpaid_between_honest == 0
        for buyer, _ in market.auditor.jobs.values():
            for _, of in buyer.engine.state.jobs.all():
                lost = [shard.reason for shard in of.shards if shard.losses and "may be unpaid" not in shard.reason]
                assert not lost, f"seed {seed}: {lost}"
                known = ("may be unpaid", "no other provider", "unfilled")
                fitted = of.phase == "succeeded" or any(words in of.reason for words in known)
                assert fitted, f"seed {seed}: {of.reason}"
    assert moves["of these, reclaimed"] > 5
    assert moves["of these, reclaimed-early"] > 5
    assert moves["of these, from the newest checkpoint of the last lease"] > 5


class OfClocks(Market):
    """Half of all nodes have a provider's clock that jumps, or dispute as buyers what they are to pay."""

    def draws_liar(self) -> bool:
        return self.world.chance(0.5) or super().draws_liar()

    def draw_lie(self, *, provides: bool) -> str:
        return "jumps" if provides else "disputes"


@pytest.mark.parametrize("seed", range(8))
def test_clocks_that_jump_and_buyers_that_dispute_take_nothing_from_the_honest(seed):
    OfClocks(seed).play()


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
