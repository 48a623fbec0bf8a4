"""A daemon's side of several machines for the tests: a gate and a fleet on loopback, and agents that dial it."""

import os
import socket
import time
from contextlib import asynccontextmanager

import trio

from hansa.node.agents.agent import Agent, AgentSettings
from hansa.node.agents.agent_config import DaemonPlace
from hansa.node.agents.agent_fleet import Fleet
from hansa.node.agents.agent_gate import Gate
from hansa.node.agents.agent_keys import Enrolled, Register, load_identity
from hansa.node.agents.agent_machine import FleetSettings
from hansa.node.agents.agent_messages import Report
from hansa.node.agents.agent_trees import TreeStore
from hansa.proto.market_documents import Device

ACCOUNT = b"a" * 20


def a_report(*numbers, **changes):
    devices = tuple(
        Device(id=bytes([number]) * 32, kind="cpu", model="m", memory_bytes=1 << 30, cores_milli=1000, facts=())
        for number in numbers
    )
    facts = {"devices": devices, "gpus": (), "tier": "sandbox", "features": (), "overlay": False}
    return Report(**{**facts, "note": f"lends {len(numbers)}", "reason": "", **changes})


class Ear:
    """Hears what the launchers of other machines say."""

    def __init__(self):
        self.said, self.lost_machines = [], []

    async def heard(self, machine, message, descriptors, packets):
        self.said.append((machine, message, descriptors, packets))

    async def lost(self, machine, why):
        self.lost_machines.append((machine, why))


class House:
    """A daemon's side of it, listening on loopback."""

    def __init__(self, tmp_path, **settings):
        self.identity = load_identity(tmp_path / "cluster")
        self.register = Register(tmp_path / "cluster")
        self.log, self.ear, self.changes = [], Ear(), 0
        self.fleet = Fleet(
            register=self.register,
            account=ACCOUNT,
            tier="sandbox",
            objection=lambda report: None if report.tier == "sandbox" else "its sandbox is too weak",
            changed=self.count,
            log=self.log.append,
            settings=FleetSettings(**settings),
        )
        self.fleet.ear = self.ear
        self.gate = Gate(
            register=self.register,
            identity=self.identity,
            now_ms=lambda: time.time_ns() // 1_000_000,
            serve_control=self.fleet.serve_control,
            serve_stream=self.fleet.serve_stream,
        )
        self.tmp_path = tmp_path

    def count(self):
        self.changes += 1

    def place(self, name="a"):
        return DaemonPlace(name=name, host="127.0.0.1", port=self.port, pin=self.identity.pin)

    def enrol(self, name):
        """As if it had joined already; gives the machine's key."""
        identity = load_identity(self.tmp_path / name)
        self.register.invite(os.urandom(32), time.time_ns() // 1_000_000 + 60_000)
        (pin,) = self.register.invitations(0)
        assert self.register.enrol(pin, Enrolled(name=name, certificate=identity.certificate, since_ms=1)) is None
        return identity

    def agent(self, name, identity, report, launches=None, launch=None, **settings):
        """An agent whose launcher the test plays; its sockets are put into ``launches``."""

        def play():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            (launches if launches is not None else self.spare).append(trio.socket.from_stdlib_socket(ours))
            return None, theirs

        return Agent(
            identity=identity,
            daemon=self.place(name),
            trees=TreeStore(self.tmp_path / f"trees-{name}", quota_bytes=1 << 30),
            sockets=self.tmp_path / f"sockets-{name}",
            launch=launch or play,
            report=lambda _welcome: report,
            log=self.log.append,
            settings=AgentSettings(**settings),
        )

    async def until(self, true):
        with trio.fail_after(20):
            while not true():  # noqa: ASYNC110 - nothing tells it
                await trio.sleep(0.01)


@asynccontextmanager
async def a_house(tmp_path, **settings):
    house = House(tmp_path, **settings)
    house.spare = []
    async with trio.open_nursery() as nursery:
        await nursery.start(house.fleet.serve)
        house.port = await nursery.start(house.gate.serve, "127.0.0.1", 0)
        house.nursery = nursery
        try:
            yield house
        finally:
            nursery.cancel_scope.cancel()
    for control in house.spare:
        control.close()
