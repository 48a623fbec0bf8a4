"""How what a program saw inside is judged, and what is said of tiers that nobody can have."""

import os

import pytest

from hansa.node.isolation import gvisor, preflight
from hansa.node.isolation.preflight import SOUND, SandboxReport, _hint_for, check_tiers

OURS = f"{os.uname().release} {os.uname().version}"


@pytest.mark.parametrize("tier", SOUND)
def test_a_program_that_saw_what_it_must_finds_no_fault(tier):
    assert preflight._faults_in({**SOUND[tier], "kernel": "another"}, tier) == []


@pytest.mark.parametrize("tier", SOUND)
def test_every_single_difference_is_a_fault(tier):
    for name in SOUND[tier]:
        seen = {**SOUND[tier], "kernel": "another", name: "something else"}
        assert preflight._faults_in(seen, tier) == [f"{name} is 'something else'"]
        del seen[name]
        assert preflight._faults_in(seen, tier) == [f"{name} is None"]


def test_a_second_kernel_that_is_this_machines_own_is_none():
    assert preflight._faults_in({**SOUND["gvisor"], "kernel": OURS}, "gvisor") == ["the kernel is this machine's own"]
    assert preflight._faults_in({**SOUND["sandbox"], "kernel": OURS}, "sandbox") == []


def test_every_tier_is_reported_on_and_only_what_was_tried_can_be_had(monkeypatch):
    def refuse():
        raise OSError("no launcher here")

    found = SandboxReport(available=True, tier="sandbox", reason="bubblewrap works")
    reports = {report.tier: report for report in check_tiers(found, launch=refuse)}
    assert list(reports) == ["none", "sandbox", "gvisor", "microvm", "tee"]
    assert [tier for tier, report in reports.items() if report.available] == ["none", "sandbox"]
    assert "no launcher here" in reports["gvisor"].reason
    reports = {
        report.tier: report
        for report in check_tiers(SandboxReport(available=False, tier="none", reason="broken"), launch=refuse)
    }
    assert reports["sandbox"].reason == "broken"


def test_what_a_virtual_machine_would_need_is_looked_for(tmp_path):
    (tmp_path / "kvm").touch()
    words = preflight._microvm(tmp_path / "kvm", lambda name: name if name == "firecracker" else None)
    assert "can be used" in words
    assert "firecracker is here" in words
    words = preflight._microvm(tmp_path / "absent", lambda _name: None)
    assert "cannot be used" in words
    assert "no monitor" in words


def test_a_machine_that_could_give_quotes_is_told_from_others(tmp_path):
    assert "gives quotes" in preflight._tee(tmp_path)
    assert "`hansa node status --json`" in preflight._tee(tmp_path), "a command that there is"
    assert "no trusted execution environment" in preflight._tee(tmp_path / "absent")


def test_a_machine_without_runsc_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(gvisor.shutil, "which", lambda *_args, **_kwargs: None)
    with pytest.raises(gvisor.SandboxUnavailable, match="gVisor is missing"):
        gvisor.run_command("/bundle", with_egress=False)


@pytest.mark.parametrize(("uid", "told"), [(0, "CAP_SYS_ADMIN"), (1000, "user namespaces")])
def test_the_hint_is_for_whoever_lacks_the_right(monkeypatch: pytest.MonkeyPatch, uid: int, told: str) -> None:
    """Root in a container may not make namespaces however freely ordinary users may."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert told in _hint_for("a mount namespace of its own: Operation not permitted")
