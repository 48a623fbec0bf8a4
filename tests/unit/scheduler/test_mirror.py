"""A provider keeps another shard's checkpoint: within its limit, never less than it has, no longer than its lease."""

from kit.playbook import Playbook, ignored, some
from kit.trading import BUYER, LEASE, NOW_MS, OTHER, THIRD

from hansa.market.effects import Send
from hansa.proto.blob import blob_ref
from hansa.proto.messages import MirrorHeld, MirrorRefused
from hansa.scheduler import mirror
from hansa.scheduler.mirror import (
    MOST_COPIES,
    MOST_GRANTS,
    CopyCame,
    CopyUnwanted,
    CopyWanted,
    FetchCopy,
    Grant,
    Granted,
    LeaseEnded,
    Mirror,
    SourcesNamed,
    advance,
)

OLD, NEW = blob_ref(b"old"), blob_ref(b"newer")
NEW_MIRROR = Mirror(lease=LEASE, buyer=BUYER)


def wanted(blob=OLD, shard=1, most_bytes=1 << 20):
    return CopyWanted(shard=shard, checkpoint=blob, holder=OTHER, most_bytes=most_bytes, at_ms=NOW_MS)


def here(blob=OLD):
    return CopyCame(checkpoint=blob, at_ms=NOW_MS)


def held(blob=OLD, shard=1):
    return some(Send, to=BUYER, message=MirrorHeld(lease=LEASE, shard=shard, checkpoint=blob))


def fetched(blob=OLD, like=None, shard=1):
    return FetchCopy(lease=LEASE, shard=shard, buyer=BUYER, holder=OTHER, checkpoint=blob, like=like)


def mirroring():
    """A mirror that holds the old one."""
    return Playbook(advance, NEW_MIRROR) >> wanted() << fetched() >> here() << held()


def test_a_copy_is_fetched_and_the_buyer_is_told():
    state = mirroring().reaches("mirroring")
    assert state.copy_of(1).held == OLD


def test_the_copy_that_is_here_stays_until_the_next_one_is():
    playbook = mirroring() >> wanted(NEW) << fetched(NEW, like=OLD)
    assert playbook.reaches("mirroring").copy_of(1).blobs == {OLD, NEW}
    state = (playbook >> here(NEW) << held(NEW)).reaches("mirroring")
    assert state.copy_of(1).blobs == {NEW}


def test_what_is_said_twice_changes_nothing_and_is_answered_again():
    playbook = mirroring() >> wanted() << held() >> here() << ignored("a copy that nobody waits for")
    playbook >> wanted(NEW) << fetched(NEW, like=OLD) >> wanted(NEW) << ignored("a copy that is on its way")
    # A buyer that went back to the old one gets what is here, and the newer one is not waited for.
    state = (playbook >> wanted() << held()).reaches("mirroring")
    assert state.copy_of(1).blobs == {OLD}


def test_what_is_over_the_limit_is_refused_and_what_is_here_stays():
    refused = some(Send, to=BUYER, message=some(MirrorRefused, lease=LEASE, shard=1, checkpoint=NEW))
    room_bytes = OLD.size_bytes + NEW.size_bytes
    playbook = mirroring() >> wanted(NEW, most_bytes=room_bytes - 1) << refused
    assert playbook.reaches("mirroring").copy_of(1).blobs == {OLD}
    playbook >> wanted(NEW, most_bytes=room_bytes) << fetched(NEW, like=OLD)


def test_so_many_shards_are_mirrored_under_one_lease_and_no_more():
    playbook = Playbook(advance, NEW_MIRROR)
    for shard in range(MOST_COPIES):
        playbook >> wanted(shard=shard) << some(FetchCopy)
    playbook >> wanted(shard=MOST_COPIES) << some(Send, message=some(MirrorRefused))


def test_a_copy_that_is_released_and_everything_after_the_lease_is_forgotten():
    grant = Granted(grant=Grant(account=THIRD, checkpoint=OLD), at_ms=NOW_MS)
    playbook = mirroring() >> grant >> CopyUnwanted(shard=1, at_ms=NOW_MS)
    assert playbook.reaches("mirroring").copies == ()
    playbook = mirroring() >> grant >> LeaseEnded(at_ms=NOW_MS)
    assert playbook.reaches("released", copies=(), grants=()).size_bytes == 0
    playbook >> wanted() << ignored("CopyWanted while released")


def test_what_is_on_its_way_is_fetched_again_after_a_restart():
    state = (mirroring() >> wanted(NEW) << some(FetchCopy)).reaches("mirroring")
    assert mirror.outstanding(state) == (fetched(NEW, like=OLD),)
    assert mirror.outstanding(mirroring().reaches("mirroring")) == ()


def test_only_the_newest_grants_are_remembered():
    playbook = Playbook(advance, NEW_MIRROR)
    grants = [Grant(account=THIRD, checkpoint=blob_ref(bytes([number]))) for number in range(MOST_GRANTS + 1)]
    for grant in (*grants, grants[-1]):
        playbook >> Granted(grant=grant, at_ms=NOW_MS)
    assert playbook.reaches("mirroring").grants == tuple(grants[1:])


def test_who_else_has_the_checkpoint_of_the_run_here_is_remembered():
    playbook = Playbook(advance, NEW_MIRROR) >> SourcesNamed(accounts=(THIRD,), at_ms=NOW_MS)
    assert playbook.reaches("mirroring").sources == (THIRD,)
