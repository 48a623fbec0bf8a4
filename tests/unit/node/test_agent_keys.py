"""Who belongs to a provider: join lines, and invitations that work once."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.agents import agent_keys
from hansa.node.agents.agent_keys import (
    Enrolled,
    Invitation,
    Register,
    check_name,
    load_identity,
    machine_naming,
    parse_line,
    write_invitation_key,
)
from hansa.node.faults import ConfigError
from hansa.node.storage.pinned_tls import check_certificate

SECRET = bytes(range(32))


@given(
    st.sampled_from(["192.0.2.7", "node.example", "fd00::1"]),
    st.integers(1, 65535),
    st.binary(min_size=32, max_size=32),
)
def test_a_join_line_says_what_went_into_it(host, port, secret):
    invitation = Invitation(host=host, port=port, pin=secret[::-1], secret=secret)
    assert parse_line(f"  {invitation.line}\n") == invitation


def test_the_join_line_is_found_among_what_else_was_printed_with_it():
    line = Invitation(host="fd00::1", port=7, pin=SECRET[::-1], secret=SECRET).line
    other = Invitation(host="192.0.2.7", port=7, pin=SECRET[::-1], secret=SECRET).line
    printed = f"It admits one machine.\n\n  {line}\nOn the other machine: hansa agent join, and then this line.\n"
    assert parse_line(printed).line == line
    assert parse_line(f"{line}\n{line}\n").line == line
    for several in (f"{line}\n{other}\n", f"to {line}\n"):
        with pytest.raises(ConfigError):
            parse_line(several)


@given(st.text(max_size=200))
def test_any_other_text_is_no_join_line(text):
    with pytest.raises(ConfigError):
        parse_line(text)


def test_a_key_is_made_once_and_read_by_its_owner_only(tmp_path):
    first = load_identity(tmp_path / "data")
    assert load_identity(tmp_path / "data") == first
    assert first.file.stat().st_mode & 0o777 == 0o600
    assert check_certificate(first.certificate, machine_naming) == first.certificate
    first.file.chmod(0o644)
    with pytest.raises(ConfigError):
        load_identity(tmp_path / "data")


def test_a_secret_always_stands_for_the_same_key(tmp_path):
    register = Register(tmp_path / "cluster")
    register.invite(SECRET, expires_ms=1000)
    made = write_invitation_key(SECRET, tmp_path / "invitation.pem")
    assert register.invitations(999) == {made.pin: made.certificate}
    assert SECRET.hex() not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))


def test_an_invitation_ends_with_its_time(tmp_path):
    register = Register(tmp_path)
    register.invite(SECRET, expires_ms=1000)
    assert register.invitations(1000) == {}
    assert register.invitations(0) == {}, "it does not come back with a clock that was set back"


def test_an_invitation_admits_one_machine_and_no_second(tmp_path):
    register = Register(tmp_path)
    register.invite(SECRET, expires_ms=1000)
    (pin,) = register.invitations(0)
    one, two = (
        Enrolled(name=name, certificate=load_identity(tmp_path / name).certificate, since_ms=1) for name in "ab"
    )
    assert register.enrol(pin, one) is None
    assert register.enrol(pin, two) == "the invitation was used already"
    assert register.machines() == {one.pin: one}
    assert register.remove("a")
    assert not register.remove("a")
    assert register.machines() == {}


def test_beyond_the_most_machines_none_is_enrolled_until_one_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(agent_keys, "MOST_MACHINES", 2)
    register = Register(tmp_path)
    machines = [
        Enrolled(name=name, certificate=load_identity(tmp_path / name).certificate, since_ms=1) for name in "abc"
    ]
    for number, machine in enumerate(machines):
        register.invite(bytes([number]) * len(SECRET), expires_ms=1000)
        (pin,) = register.invitations(0)
        said = register.enrol(pin, machine)
        assert said == (None if number < 2 else "2 machines are enrolled, and there is no room for more")
    assert register.remove("a")
    assert register.enrol(pin, machines[2]) is None, "the invitation was not used up"


@pytest.mark.parametrize(
    "damage",
    [
        {"name": "b"},
        {"name": "b", "certificate": 7, "since_ms": 1},
        {"name": "b", "certificate": "%%%", "since_ms": "x"},
        {"certificate": "", "expires_ms": None},
        {"certificate": 5, "expires_ms": 1 << 60},
        {"name": "b", "certificate": "", "since_ms": float("inf"), "expires_ms": float("inf")},
    ],
)
def test_a_damaged_entry_admits_nobody_and_takes_nothing_from_the_others(tmp_path, damage):
    register = Register(tmp_path)
    register.invite(SECRET, expires_ms=1000)
    (pin,) = register.invitations(0)
    machine = Enrolled(name="a", certificate=load_identity(tmp_path / "a").certificate, since_ms=1)
    assert register.enrol(pin, machine) is None
    register.invite(SECRET[::-1], expires_ms=1000)
    (open_one,) = register.invitations(0)
    for folder in (register._machines, register._invitations):
        (folder / "damaged.json").write_text(json.dumps(damage))
    assert register.machines() == {machine.pin: machine}
    assert set(register.invitations(0)) == {open_one}


def test_two_machines_cannot_share_a_name_and_the_invitation_stays(tmp_path):
    register = Register(tmp_path)
    machines = [Enrolled(name="a", certificate=load_identity(tmp_path / key).certificate, since_ms=1) for key in "xy"]
    for machine, secret in zip(machines, (SECRET, SECRET[::-1]), strict=True):
        register.invite(secret, expires_ms=1000)
        (pin,) = register.invitations(0)
        why = register.enrol(pin, machine)
    assert why == "another machine is called a"
    assert len(register.invitations(0)) == 1


@pytest.mark.parametrize("name", ["", "-", "a-", "A", "a" * 33, "a b", "ä", "../x", "a\n"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ConfigError):
        check_name(name)


def test_what_is_none_of_ours_in_the_register_is_passed_over(tmp_path):
    register = Register(tmp_path)
    (tmp_path / "machines" / "x.json").write_text("[1")
    (tmp_path / "machines" / "y.json").write_bytes(os.urandom(20000))
    assert register.machines() == {}


def test_an_entry_of_the_register_that_is_too_long_is_not_read(tmp_path):
    register = Register(tmp_path)
    register.invite(SECRET, expires_ms=1000)
    (pin,) = register.invitations(0)
    machine = Enrolled(name="a", certificate=load_identity(tmp_path / "a").certificate, since_ms=1)
    assert register.enrol(pin, machine) is None
    (entry,) = (tmp_path / "machines").iterdir()
    entry.write_text(entry.read_text() + " " * 20_000)
    assert register.machines() == {}
