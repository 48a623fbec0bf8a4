"""The owner's word on devices, as the local API takes it: have them back, lend them again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.market.effects import clipped
from hansa.node.api.http_api import Json, json_body
from hansa.node.engine.events import DevicesReturned, DevicesWithdrawn
from hansa.node.faults import OperatorError
from hansa.proto.errors import Malformed
from hansa.proto.typed_json import read_exact_keys

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

LONGEST_WHY_BYTES = 500
LONGEST_NOTICE_MS = 30 * 24 * 3_600_000
LEAST_DIGITS = 4
OWN_WORDS = "their owner wants them back"


class DeviceDesk:
    """Answers over a running daemon."""

    def __init__(self, daemon: "Daemon") -> None:
        """Speak of this daemon's devices."""
        self._daemon = daemon

    async def withdraw(self, named: Sequence[str], notice_ms: int | None, why: str) -> Json:
        """Take devices back, all if none is named, and answer once that is in the journal. No notice: as promised."""
        devices = self._named(named)
        terms = self._daemon.state.terms
        if notice_ms is None:
            notice_ms = terms.reclaim_notice_ms if terms else 0
        await self._daemon.take(
            DevicesWithdrawn(
                devices=devices,
                notice_ms=notice_ms,
                why=clipped(why, LONGEST_WHY_BYTES) or OWN_WORDS,
                by_owner=True,
                at_ms=self._daemon.now_ms(),
            )
        )
        return self._answer(devices)

    async def give_back(self, named: Sequence[str]) -> Json:
        """Lend devices again, all if none is named."""
        devices = self._named(named)
        await self._daemon.take(DevicesReturned(devices=devices, by_owner=True, at_ms=self._daemon.now_ms()))
        return self._answer(devices)

    def _named(self, named: Sequence[str]) -> tuple[bytes, ...]:
        owned = [device.id for device in self._daemon.state.capacity.devices]
        if not owned:
            raise OperatorError("this node lends no devices", "provider.enabled and provider.cpu_slots lend some")
        if not named:
            return tuple(owned)
        return tuple(dict.fromkeys(_one(begin, owned) for begin in named))

    def _answer(self, devices: Sequence[bytes]) -> Json:
        state = self._daemon.state
        withheld, chosen = state.capacity.withheld, set(devices)
        leaving = [
            entry
            for entry in state.sales.live.values()
            if entry.phase == "running" and entry.reclaim_by_ms and chosen & set(entry.bid.devices)
        ]
        return {
            "devices": [
                {
                    "id": device.hex(),
                    "state": state.capacity.phase_of(device),
                    "withheld": withheld[device].why if device in withheld else "",
                }
                for device in devices
            ],
            "leaving": [
                {"lease": entry.lease.hex(), "by_ms": entry.reclaim_by_ms, "early": entry.reclaim_early}
                for entry in leaving
            ],
        }


def _one(begin: str, owned: Sequence[bytes]) -> bytes:
    """The one device that the beginning of an id means."""
    found = [device for device in owned if len(begin) >= LEAST_DIGITS and device.hex().startswith(begin.lower())]
    if len(found) != 1:
        what = f"{len(found)} devices begin with {begin:.64}" if found else f"no device here begins with {begin:.64}"
        raise OperatorError(what, f"hansa node status lists them; give at least {LEAST_DIGITS} digits")
    return found[0]


def device_routes(desk: DeviceDesk) -> list[Route]:
    """The routes, for ``hansa.node.api.http_api.build_api``."""

    async def withdraw(request: Request) -> Response:
        body = read_exact_keys(await json_body(request), ("devices", "notice_ms", "why"), "request")
        notice_ms, why = body["notice_ms"], body["why"]
        if notice_ms is not None and (type(notice_ms) is not int or not 0 <= notice_ms <= LONGEST_NOTICE_MS):
            raise Malformed("notice_ms", f"is not a number from 0 to {LONGEST_NOTICE_MS}")
        if type(why) is not str:
            raise Malformed("why", "is not a text")
        return JSONResponse(await desk.withdraw(_texts(body["devices"]), notice_ms, why))

    async def give_back(request: Request) -> Response:
        body = read_exact_keys(await json_body(request), ("devices",), "request")
        return JSONResponse(await desk.give_back(_texts(body["devices"])))

    return [
        Route("/v1/devices/withdraw", withdraw, methods=["POST"]),
        Route("/v1/devices/return", give_back, methods=["POST"]),
    ]


def _texts(raw: Any) -> list[str]:
    if type(raw) is not list or not all(type(one) is str for one in raw):
        raise Malformed("devices", "is not a list of texts")
    return list(raw)
