"""The shards of a job hold each other's checkpoints, if it asks for that; nobody's word replaces what is here."""

from kit.playbook import Playbook, ignored, some
from kit.trading import JOB, NOW_MS, OTHER, PROVIDER, THIRD, spec

from hansa.market.effects import Send
from hansa.proto.blob import blob_ref
from hansa.proto.messages import CheckpointGranted, MirrorReleased, MirrorWanted, RunOrdered, RunStopOrdered
from hansa.scheduler.job import advance, plan
from hansa.scheduler.job_events import (
    BlobArrived,
    BlobMissed,
    CheckpointAnnounced,
    FetchWanted,
    GangCame,
    Granted,
    LeaseOver,
    ReportArrived,
    RunEndArrived,
    TenderWanted,
)
from hansa.scheduler.job_mirrors import ANSWER_MS, MirrorAnswered, mirrors_of
from hansa.scheduler.rounds import MemberJoined, MemberLeft

STATE, NEWER, NEWEST = blob_ref(b"state"), blob_ref(b"newer"), blob_ref(b"newest")
WHO = (PROVIDER, OTHER, THIRD)


def lease(shard, attempt=0):
    return bytes([shard + 1, attempt]) * 16


def came(*places, at_ms=NOW_MS):
    """Each place is a shard, its provider and which attempt it is."""
    grants = tuple(
        Granted(shard=shard, lease=lease(shard, attempt), provider=who, ends_ms=NOW_MS + 900_000)
        for shard, who, attempt in places
    )
    return GangCame(granted=grants, at_ms=at_ms)


def running(*providers, mirror=True):
    begun = plan(job=JOB, spec=spec(shards=len(providers), mirror=mirror), package=blob_ref(b"package"), at_ms=NOW_MS)
    playbook = Playbook(advance, None, begin=begun) << some(TenderWanted)
    playbook >> came(*((shard, who, 0) for shard, who in enumerate(providers)))
    for _ in providers:
        playbook << some(MemberJoined) << some(Send, message=some(RunOrdered, mirrors=()))
    return playbook


def announced(blob, step, *, shard=0, attempt=0, at_ms=NOW_MS):
    return CheckpointAnnounced(lease=lease(shard, attempt), round=0, step=step, checkpoint=blob, at_ms=at_ms)


def arrived(blob, *, shard=0, attempt=0, at_ms=NOW_MS):
    return BlobArrived(lease=lease(shard, attempt), blob=blob, at_ms=at_ms)


def saved(playbook, blob, step, **where):
    """A checkpoint of a shard comes to be here."""
    playbook >> announced(blob, step, **where) << some(FetchWanted, blob=blob)
    return playbook >> arrived(blob, **where)


def asked(blob, *, at, to, holder=PROVIDER, shard=0):
    return some(Send, to=to, message=MirrorWanted(lease=lease(at), shard=shard, checkpoint=blob, holder=holder))


def granted(blob, *, lease_of, by, to):
    return some(Send, to=by, message=CheckpointGranted(lease=lease_of, checkpoint=blob, account=to))


def answered(blob=STATE, *, by=1, shard=0, refusal="", at_ms=NOW_MS):
    return MirrorAnswered(lease=lease(by), shard=shard, checkpoint=blob, refusal=refusal, at_ms=at_ms)


def mirrored():
    """Two shards on two providers; the first one's checkpoint is held by the second."""
    playbook = saved(running(PROVIDER, OTHER), STATE, 1)
    playbook << asked(STATE, at=1, to=OTHER) << granted(STATE, lease_of=lease(0), by=PROVIDER, to=OTHER)
    return playbook >> answered()


def shard_of(playbook, number=0):
    return playbook.reaches("running").shards[number]


def test_a_checkpoint_that_is_here_is_to_be_held_by_the_next_shards_provider():
    playbook = mirrored()
    assert mirrors_of(playbook.reaches("running"), shard_of(playbook)) == (OTHER,)


def test_a_job_that_does_not_ask_for_it_mirrors_nothing():
    assert shard_of(saved(running(PROVIDER, OTHER, mirror=False), STATE, 1)).mirror is None


def test_one_provider_alone_is_no_second_place():
    assert shard_of(saved(running(PROVIDER, PROVIDER), STATE, 1)).mirror is None


def test_the_mirror_is_the_next_in_the_circle_that_is_somebody_else():
    playbook = saved(running(PROVIDER, PROVIDER, THIRD), STATE, 1)
    playbook << asked(STATE, at=2, to=THIRD) << some(Send, message=some(CheckpointGranted))
    saved(playbook, NEWER, 1, shard=2) << asked(NEWER, at=0, to=PROVIDER, holder=THIRD, shard=2)
    playbook << some(Send, to=THIRD, message=some(CheckpointGranted))


def test_copies_are_asked_for_one_after_the_other():
    playbook = saved(running(PROVIDER, OTHER), STATE, 1)
    playbook << some(Send, message=some(MirrorWanted)) << some(Send, message=some(CheckpointGranted))
    saved(playbook, NEWER, 2)
    playbook >> answered() << asked(NEWER, at=1, to=OTHER) << some(Send, message=some(CheckpointGranted))
    shard = shard_of(playbook)
    assert (shard.mirror.held, shard.mirror.wanted) == (STATE, NEWER)
    assert mirrors_of(playbook.reaches("running"), shard) == (), "it holds an older one"


def test_a_mirror_that_says_nothing_is_asked_for_what_is_newest_by_then():
    playbook = saved(running(PROVIDER, OTHER), STATE, 1)
    playbook << some(Send, message=some(MirrorWanted)) << some(Send, message=some(CheckpointGranted))
    saved(playbook, NEWER, 2)
    news = ReportArrived(lease=lease(1), step=1, metrics=(), started=True, at_ms=NOW_MS + ANSWER_MS)
    playbook >> news << asked(NEWER, at=1, to=OTHER) << some(Send, message=some(CheckpointGranted))


def test_what_was_refused_is_not_asked_for_again_and_the_reason_is_kept():
    playbook = saved(running(PROVIDER, OTHER), STATE, 1)
    playbook << some(Send, message=some(MirrorWanted)) << some(Send, message=some(CheckpointGranted))
    playbook >> answered(refusal="no room")
    playbook >> ReportArrived(lease=lease(1), step=1, metrics=(), started=True, at_ms=NOW_MS + ANSWER_MS)
    assert shard_of(playbook).mirror.refusal == "no room"
    saved(playbook, NEWER, 2) << asked(NEWER, at=1, to=OTHER) << some(Send, message=some(CheckpointGranted))


def test_nobody_is_believed_who_was_not_asked_nor_about_anything_else():
    playbook = saved(running(PROVIDER, OTHER, THIRD), STATE, 1)
    playbook << asked(STATE, at=1, to=OTHER) << some(Send, message=some(CheckpointGranted))
    for lie in (answered(by=2), answered(NEWER), answered(shard=1), answered(shard=77)):
        playbook >> lie << ignored("the answer of a mirror that was not asked for this")
    shard = shard_of(playbook)
    assert shard.mirror.held is None
    assert shard.checkpoint.blob == STATE


def test_a_mirrors_word_never_takes_the_place_of_what_is_here():
    playbook = mirrored() >> announced(NEWER, 2) << some(FetchWanted, blob=NEWER)
    playbook >> answered(NEWER) << ignored("the answer of a mirror that was not asked for this")
    assert shard_of(playbook).checkpoint.blob == STATE


def test_a_shard_that_moves_is_told_who_has_its_checkpoint_and_they_may_give_it():
    playbook = mirrored() >> RunEndArrived(
        lease=lease(0), outcome="failed", kind="lost", reason="", outputs=0, at_ms=NOW_MS
    )
    playbook << some(MemberLeft) << some(Send, message=some(RunStopOrdered)) << some(LeaseOver) << some(TenderWanted)
    playbook >> came((0, THIRD, 1)) << some(MemberJoined) << granted(STATE, lease_of=lease(1), by=OTHER, to=THIRD)
    playbook << some(Send, to=THIRD, message=some(RunOrdered, checkpoint=STATE, mirrors=(OTHER,)))
    assert shard_of(playbook).mirror.held == STATE


def test_a_shard_that_moves_to_its_own_mirror_gets_another_one():
    playbook = saved(running(PROVIDER, OTHER, THIRD), STATE, 1)
    playbook << asked(STATE, at=1, to=OTHER) << some(Send, message=some(CheckpointGranted)) >> answered()
    playbook >> RunEndArrived(lease=lease(0), outcome="failed", kind="lost", reason="", outputs=0, at_ms=NOW_MS)
    playbook << some(MemberLeft) << some(Send, message=some(RunStopOrdered)) << some(LeaseOver) << some(TenderWanted)
    playbook >> came((0, OTHER, 1)) << some(MemberJoined) << some(Send, to=OTHER, message=some(RunOrdered, mirrors=()))
    playbook << some(Send, to=OTHER, message=MirrorReleased(lease=lease(1), shard=0))
    playbook << asked(STATE, at=2, to=THIRD, holder=OTHER)
    playbook << granted(STATE, lease_of=lease(0, 1), by=OTHER, to=THIRD)


def test_when_the_mirrors_own_lease_is_over_another_one_is_asked():
    playbook = saved(running(PROVIDER, OTHER, THIRD), STATE, 1)
    playbook << asked(STATE, at=1, to=OTHER) << some(Send, message=some(CheckpointGranted)) >> answered()
    over = RunEndArrived(lease=lease(1), outcome="failed", kind="lost", reason="", outputs=0, at_ms=NOW_MS)
    playbook >> over << some(MemberLeft) << some(Send, message=some(RunStopOrdered)) << some(LeaseOver)
    playbook << some(TenderWanted) << asked(STATE, at=2, to=THIRD) << some(Send, message=some(CheckpointGranted))


def test_a_shard_that_has_finished_needs_no_copy():
    playbook = mirrored() >> RunEndArrived(
        lease=lease(0), outcome="succeeded", kind="", reason="", outputs=0, at_ms=NOW_MS
    )
    playbook << some(MemberLeft, finished=True) << some(Send) << some(LeaseOver, well=True)
    playbook << some(Send, to=OTHER, message=MirrorReleased(lease=lease(1), shard=0))
    assert shard_of(playbook).mirror is None


# Copies to the buyer itself, one after the other.


def test_whoever_checkpoints_faster_than_the_line_carries_is_copied_one_after_the_other():
    playbook = running(PROVIDER, mirror=False) >> announced(STATE, 1) << some(FetchWanted, blob=STATE)
    playbook >> announced(NEWER, 2) >> announced(NEWEST, 3)
    playbook >> arrived(STATE) << some(FetchWanted, blob=NEWEST)
    assert shard_of(playbook).checkpoint.blob == STATE
    playbook >> arrived(NEWEST)
    shard = shard_of(playbook)
    assert (shard.checkpoint.blob, shard.copying, shard.announced) == (NEWEST, None, None)


def test_an_older_checkpoint_than_the_newest_that_was_announced_is_ignored():
    playbook = running(PROVIDER, mirror=False) >> announced(STATE, 1) << some(FetchWanted) >> announced(NEWEST, 3)
    playbook >> announced(NEWER, 2) << ignored("a checkpoint that is known or old")


def test_a_checkpoint_that_cannot_be_had_gives_way_to_a_newer_one_and_to_nothing_else():
    playbook = running(PROVIDER, mirror=False) >> announced(STATE, 1) << some(FetchWanted)
    missed = BlobMissed(lease=lease(0), blob=STATE, at_ms=NOW_MS)
    playbook >> missed << ignored("a blob that is waited for on") >> announced(NEWER, 2)
    playbook >> missed << some(FetchWanted, blob=NEWER) >> missed << ignored("a blob that is waited for on")
    playbook >> arrived(NEWER)
    assert shard_of(playbook).checkpoint.blob == NEWER


def test_a_run_that_ended_is_given_up_when_the_newest_that_it_announced_is_here():
    playbook = running(PROVIDER, mirror=False) >> announced(STATE, 1) << some(FetchWanted) >> announced(NEWER, 2)
    ended = RunEndArrived(lease=lease(0), outcome="failed", kind="lost", reason="", outputs=0, at_ms=NOW_MS)
    playbook >> ended << some(MemberLeft) >> arrived(STATE) << some(FetchWanted, blob=NEWER)
    assert shard_of(playbook).phase == "leaving"
    playbook >> arrived(NEWER) << some(Send) << some(LeaseOver) << some(TenderWanted)
    assert shard_of(playbook).checkpoint.blob == NEWER


def refused(blob, *, why="it cannot be read"):
    return BlobMissed(lease=lease(0), blob=blob, refusal=why, at_ms=NOW_MS)


def test_a_checkpoint_that_is_none_never_takes_the_place_of_the_last_good_one():
    playbook = saved(running(PROVIDER, mirror=False), STATE, 1) >> announced(NEWER, 2) << some(FetchWanted)
    playbook >> refused(NEWER)
    shard = shard_of(playbook)
    assert (shard.checkpoint.blob, shard.copying, shard.refusal) == (STATE, None, "it cannot be read")
    playbook >> refused(NEWER) << ignored("a blob that is waited for on")
    shard = shard_of(saved(playbook, NEWEST, 3))
    assert (shard.checkpoint.blob, shard.refusal) == (NEWEST, "")


def test_after_one_that_was_refused_the_next_one_is_copied():
    playbook = running(PROVIDER, mirror=False) >> announced(STATE, 1) << some(FetchWanted) >> announced(NEWER, 2)
    playbook >> refused(STATE) << some(FetchWanted, blob=NEWER) >> arrived(NEWER)
    assert shard_of(playbook).checkpoint.blob == NEWER


def test_a_run_that_ended_goes_on_elsewhere_from_the_last_good_one_when_its_last_was_refused():
    playbook = saved(running(PROVIDER, mirror=False), STATE, 1) >> announced(NEWER, 2) << some(FetchWanted)
    playbook >> RunEndArrived(lease=lease(0), outcome="failed", kind="lost", reason="", outputs=0, at_ms=NOW_MS)
    playbook << some(MemberLeft) >> refused(NEWER) << some(Send) << some(LeaseOver) << some(TenderWanted)
    assert shard_of(playbook).checkpoint.blob == STATE
