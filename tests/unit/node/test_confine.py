"""Uids of sandboxes: claimed by one launcher at a time, where no stranger has a say."""

import contextlib
import os
import signal
import socket
import stat
import subprocess

import pytest

from hansa.node.isolation import confine
from hansa.node.isolation.confine import ClaimedUid


def test_a_uid_is_claimed_by_one_at_a_time_and_is_nobodys(tmp_path):
    one, other = ClaimedUid([tmp_path]), ClaimedUid([tmp_path])
    assert one.uid != other.uid
    one.release()
    again = ClaimedUid([tmp_path])
    assert again.uid != other.uid
    other.release()
    again.release()
    again.release()


def test_a_uid_that_a_user_has_is_never_claimed(monkeypatch, tmp_path):
    monkeypatch.setattr(confine, "FIRST_UID", 1)
    monkeypatch.setattr(confine, "LAST_UID", 1)  # Debian's and everybody else's "daemon" or "bin"
    with pytest.raises(OSError, match="every uid for sandboxes is in use"):
        ClaimedUid([tmp_path])


def test_a_uid_under_which_something_lives_is_not_claimed_even_if_nobody_claims_it(tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can live under another uid")
    claim = ClaimedUid([tmp_path])
    claim.release()
    with subprocess.Popen(["/bin/sleep", "20"], user=claim.uid, group=claim.uid, extra_groups=()) as process:
        try:
            other = ClaimedUid([tmp_path])
            other.release()
        finally:
            process.kill()
    assert other.uid != claim.uid


def test_nobody_can_claim_uids_by_names_that_anybody_may_take(monkeypatch, tmp_path):
    """A stranger bound all of them, and no run could be begun."""
    monkeypatch.setattr(confine, "LAST_UID", confine.FIRST_UID + 20)
    with contextlib.ExitStack() as strangers:
        for uid in range(confine.FIRST_UID, confine.LAST_UID + 1):
            name = strangers.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            with contextlib.suppress(OSError):
                name.bind(f"\0hansa-uid-{uid}")
        ClaimedUid([tmp_path]).release()


def test_claims_lie_where_only_the_launchers_user_comes(tmp_path):
    claim = ClaimedUid([tmp_path])
    claim.release()
    folder = tmp_path / confine.CLAIMS
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert str(claim.uid) in {path.name for path in folder.iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_where_others_may_write_no_uid_is_claimed(tmp_path, mode):
    open_to_all, closed = tmp_path / "open", tmp_path / "closed"
    for folder in (open_to_all, closed):
        folder.mkdir()
    open_to_all.chmod(mode)
    with pytest.raises(PermissionError, match="nowhere to claim uids"):
        ClaimedUid([open_to_all])
    assert list(open_to_all.iterdir()) == []
    ClaimedUid([open_to_all, closed]).release()
    (closed / confine.CLAIMS).chmod(mode)
    with pytest.raises(PermissionError, match="others may write there"):
        ClaimedUid([closed])


def test_no_uid_is_claimed_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / confine.CLAIMS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="no directory"):
        ClaimedUid([tmp_path])
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_claim_ends_with_whoever_made_it_however_that_ends(tmp_path):
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(theirs, str(ClaimedUid([tmp_path]).uid).encode())
        signal.pause()
    uid = int(os.read(ours, 100))
    other = ClaimedUid([tmp_path])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    again = ClaimedUid([tmp_path])
    assert other.uid != uid == again.uid
    for claim in (other, again):
        claim.release()
    os.close(ours)
    os.close(theirs)


def test_what_is_released_is_free_though_a_fork_of_ours_still_lives(tmp_path):
    claim = ClaimedUid([tmp_path])
    if (pid := os.fork()) == 0:
        signal.pause()
    try:
        claim.release()
        again = ClaimedUid([tmp_path])
        again.release()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert again.uid == claim.uid
