"""Uids of sandboxes, claimed by one launcher at a time, where no stranger has a say; processes that end with others."""

import contextlib
import ctypes
import os
import signal
import socket
import stat
import subprocess
import sys

import pytest

from hansa.node.isolation import confine
from hansa.node.isolation.build_room import Tool, make_work, run_tool
from hansa.node.isolation.confine import ClaimedUid

CLONE_NEWUSER = 0x10000000


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


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_no_uid_is_claimed_in_what_another_user_owns(tmp_path):
    ClaimedUid([tmp_path]).release()
    for place in (tmp_path, tmp_path / confine.CLAIMS):
        os.chown(place, 4242, -1)
        with pytest.raises(PermissionError, match="others may write there"):
            ClaimedUid([tmp_path])
        os.chown(place, 0, -1)
    ClaimedUid([tmp_path]).release()


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


FEW = "         0          0          1\n"
"""As ``unshare --map-root-user`` has it."""
MANY = "         0       1000          1\n         1     100000      65536\n"


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """Has this process be in a user namespace with these uids and gids, as far as it looks."""

    def be(uids, gids):
        for name, text in (("UID_MAP", uids), ("GID_MAP", gids)):
            (tmp_path / name).write_text(text)
            monkeypatch.setattr(confine, name, tmp_path / name)

    return be


@pytest.mark.parametrize(("uids", "gids"), [(FEW, FEW), (MANY, FEW), (FEW, MANY), ("", "")])
def test_where_a_user_namespace_has_few_users_it_is_said_which_is_missing(mapped, uids, gids):
    mapped(uids, gids)
    assert confine.why_not_become(0, 65_000) == (
        f"root here is that of a user namespace without uid {65_000 if uids else 0}"
    )


def test_where_there_are_enough_nothing_is_said(mapped):
    mapped(MANY, MANY)
    assert confine.why_not_become(0, confine.FIRST_UID, confine.LAST_UID, 65_000) == ""
    assert confine.why_not_become(65_537) != ""


def test_of_a_kernel_without_user_namespaces_root_may_be_anybody(tmp_path, monkeypatch):
    """There these files are not, and for want of them neither tools nor sandboxes were started."""
    monkeypatch.setattr(confine, "UID_MAP", tmp_path / "uid_map")
    monkeypatch.setattr(confine, "GID_MAP", tmp_path / "gid_map")
    assert confine.why_not_become(confine.FIRST_UID, 65_000) == ""


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user's tools run as that user")
def test_a_tool_is_refused_in_words_where_there_is_no_user_for_it(mapped, tmp_path):
    """The directory could not be given away, and `hansa doctor` ended in a traceback."""
    mapped(FEW, FEW)
    make_work(tmp_path / "work")
    outcome = run_tool(Tool(command=("/bin/true",), work=str(tmp_path / "work"), most_bytes=1 << 20, most_s=30.0))
    assert not outcome.ok
    assert "without uid 65000; map 65536 uids" in outcome.words


@pytest.mark.skipif(os.getuid() != 0, reason="only a launcher that is root gives each sandbox a user")
def test_the_doctor_speaks_in_a_user_namespace_with_one_user(tmp_path):
    data = tmp_path / "node"
    base = [sys.executable, "-P", "-m", "hansa"]
    init = [*base, "init", "--data", str(data), "--provider", "--cpu-slots", "1", "--metrics-port", "0"]
    subprocess.run(init, check=True, capture_output=True, timeout=120)
    inside = ["unshare", "--user", "--map-root-user", *base, "doctor", "--data", str(data)]
    found = subprocess.run(inside, check=False, capture_output=True, text=True, timeout=120)
    if "unshare failed" in found.stderr:
        pytest.skip(f"no user namespaces here: {found.stderr.strip()[:200]}")
    assert "Traceback" not in found.stderr
    assert "without uid 64000" in found.stdout
    assert "without uid 65000" in found.stdout
    assert all("map 65536 uids" in line for line in found.stdout.splitlines() if "without uid" in line)


def said_by_a_fork(say):
    """What a forked process makes of it, after it was told to."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.write(writing, say().encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes process namespaces outside of user namespaces")
def test_only_who_is_forked_in_there_is_the_first_of_a_namespace():
    def say():
        with confine.own_processes() as had:
            inside = said_by_a_fork(lambda: str(os.getpid()))
        return f"{had} {inside} {said_by_a_fork(lambda: 'ours' if os.getppid() else 'another')}"

    assert said_by_a_fork(say) == "True 1 ours"


def test_an_ordinary_user_forks_as_ever():
    def say():
        if os.getuid() == 0:
            confine.drop_to(65_534)
        with confine.own_processes() as had:
            inside = said_by_a_fork(lambda: "ours" if os.getppid() else "another")
        return f"{had} {inside}"

    assert said_by_a_fork(say) == "False ours"


def test_who_could_not_fork_into_the_own_namespace_again_leaves_it_at_that():
    """As root of a user namespace which has its processes among all others."""

    def say():
        if ctypes.CDLL(None).unshare(CLONE_NEWUSER) != 0:
            return "no user namespace"
        with confine.own_processes() as had:
            pass
        return f"{had} {said_by_a_fork(lambda: 'ours' if os.getppid() else 'another')}"

    said = said_by_a_fork(say)
    if said == "no user namespace":
        pytest.skip("this system makes no user namespaces")
    assert said == "False ours"


@pytest.mark.parametrize("room", [contextlib.nullcontext, confine.own_processes])
def test_an_orphan_ends_also_where_it_cannot_ask_who_its_parent_is(room):
    def live_with(parent):
        def say():
            confine.die_with(parent, stat_fd=confine.open_stat())
            return "lives"

        return say

    for parent, said in ((confine.own_number(), "lives"), (os.getppid(), "")):
        with room():
            assert said_by_a_fork(live_with(parent)) == said


def test_where_no_namespace_can_be_named_all_is_as_ever(monkeypatch):
    """As inside gVisor, or where a security module hides them."""

    def hidden(*_anything):
        raise FileNotFoundError("/proc/self/ns/pid")

    monkeypatch.setattr(confine.os, "open", hidden)
    with confine.own_processes() as had:
        assert not had
