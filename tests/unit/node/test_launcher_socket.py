"""Whom a launcher that listens serves."""

import os
import socket

import pytest

from hansa.node.isolation import launcher_socket
from hansa.node.isolation.launcher_protocol import receive
from hansa.node.isolation.launcher_socket import is_served, peer_uid, turn_away

STRANGER = os.getuid() + 4242


class User:
    """As far as it is asked for here."""

    def __init__(self, gid):
        self.pw_gid = gid


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "launcher.sock"
    place.touch()
    return place


def test_root_and_the_launchers_own_user_are_served(path):
    assert is_served(0, str(path))
    assert is_served(os.getuid(), str(path))


def test_a_stranger_is_not_whatever_the_sockets_mode(path):
    path.chmod(0o666)
    assert not is_served(STRANGER, str(path))


def test_nobody_else_is_served_where_the_socket_is_gone(path):
    path.unlink()
    assert not is_served(STRANGER, str(path))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_whom_the_socket_was_given_to_is_served(path):
    os.chown(path, STRANGER, -1)
    assert is_served(STRANGER, str(path))
    assert not is_served(STRANGER + 1, str(path))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_the_user_whose_own_group_the_socket_has_is_served_and_not_each_member_of_it(path, monkeypatch):
    users = {STRANGER: User(777), STRANGER + 1: User(100)}
    monkeypatch.setattr(launcher_socket.pwd, "getpwuid", users.__getitem__)
    os.chown(path, 0, 777)
    assert is_served(STRANGER, str(path))
    assert not is_served(STRANGER + 1, str(path))
    assert not is_served(STRANGER + 2, str(path)), "nobody whom the machine does not know"


def test_roots_group_is_nobodys(path, monkeypatch):
    monkeypatch.setattr(launcher_socket.pwd, "getpwuid", lambda _uid: User(path.stat().st_gid))
    assert is_served(STRANGER, str(path)) == (path.stat().st_gid != 0)


def test_the_kernel_says_who_connected():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert peer_uid(ours) == os.getuid()


@pytest.mark.parametrize("said", [0, 1, 3])
def test_whoever_is_turned_away_hears_why_however_much_they_had_said(said):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        for _ in range(said):
            ours.send(b"an order")
        with theirs:
            turn_away(theirs, STRANGER)
        refused, _ = receive(ours)
        assert f"does not serve uid {STRANGER}" in refused.reason
        assert receive(ours) == (None, [])
