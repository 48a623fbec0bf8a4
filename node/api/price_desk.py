"""What a bid would cost now or at another time, as the local API tells it: rule, factors, and the owner's program."""

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.market.pricing_rule import RulePrice
from hansa.node.api.http_api import Json
from hansa.node.engine.answering import PriceWanted
from hansa.node.faults import OperatorError
from hansa.node.pricing.price_process import ProgramFailed
from hansa.node.pricing.price_program import program_of, question_about
from hansa.node.settings.config import Config
from hansa.node.settings.pricing_config import moment_ms
from hansa.proto.gpu_models import matches
from hansa.proto.market_documents import LEASE_FIRM, LEASE_SPOT, Device, Requirements, Tender
from hansa.proto.units import e18_to_price_per_hour

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

BIDDING_MS = 10_000


class PriceDesk:
    """Answers over a running daemon."""

    def __init__(self, daemon: "Daemon") -> None:
        """Speak of this daemon's prices."""
        self._daemon = daemon

    async def price(self, *, devices: int, model: str, at: str, lease: str) -> Json:
        """What so many devices, of a model if one is named, cost at a moment, as things stand now."""
        daemon = self._daemon
        state, now_ms = daemon.state, daemon.now_ms()
        if state.terms is None:
            raise OperatorError("this node lends nothing, so it has no price", "provider.enabled = true lends devices")
        try:
            at_ms = moment_ms(at, daemon.config.rules.utc_offset_s, now_ms) if at else now_ms
        except (ValueError, OverflowError):
            raise OperatorError("that is no time", 'for example --at 19:30 or --at "2026-12-24 19:30"') from None
        chosen = self._choose(devices, model)
        share_ppm = state.capacity.leased_ppm
        found = state.terms.price(chosen, lease=lease, share_ppm=share_ppm, at_ms=at_ms)
        view = price_view(found, chosen, lease=lease, at_ms=at_ms)
        view["currency"] = daemon.config.currency
        view["floor_per_hour"] = e18_to_price_per_hour(state.terms.rule.floor_e18)
        view["program"] = await self._ask(chosen, found, lease=lease, share_ppm=share_ppm, at_ms=at_ms)
        return view

    def _choose(self, devices: int, model: str) -> tuple[Device, ...]:
        """Free devices first: those are what a bid would be made with."""
        capacity = self._daemon.state.capacity
        free = {device.id for device in capacity.free}
        fitting = sorted(
            (one for one in capacity.devices if not model or matches(model, one.model, one.memory_bytes)),
            key=lambda one: (one.id not in free, one.memory_bytes, one.id),
        )
        if not 1 <= devices <= len(fitting):
            of = f" of model {model}" if model else ""
            raise OperatorError(f"this node has {len(fitting)} devices{of}", "hansa node status lists them")
        return tuple(fitting[:devices])

    async def _ask(
        self, chosen: tuple[Device, ...], found: RulePrice, *, lease: str, share_ppm: int, at_ms: int
    ) -> Json | None:
        """What the owner's program says of a tender that this node might have sent itself; None where there is none."""
        daemon = self._daemon
        program = daemon.price_program
        if program is None:
            return None
        wanted = PriceWanted(
            tender=sample_tender(
                daemon.config,
                account=daemon.state.account,
                peer_id=daemon.state.peer_id,
                devices=len(chosen),
                lease=lease,
                now_ms=daemon.now_ms(),
            ),
            lease=lease,
            sets=(tuple(device.id for device in chosen),),
            rule_e18=(found.price_e18,),
            share_ppm=share_ppm,
            tries=1,
        )
        owned = {device.id: device for device in daemon.state.capacity.devices}
        leased = sum(daemon.state.capacity.phase_of(device) == "leased" for device in owned)
        view: Json = {"price_per_hour": None, "decline": "", "fault": "", "hint": ""}
        try:
            answer = await program.ask(question_about(wanted, owned, leased=leased, owned=len(owned), at_ms=at_ms), 1)
        except ProgramFailed as fault:
            view["fault"] = str(fault)
            view["hint"] = what_to_do(fault, daemon.config)
        else:
            view["decline"] = answer.refusal
            assert daemon.state.terms is not None
            for price in answer.prices_e18:
                named = found.price_e18 if price is None else max(price, daemon.state.terms.rule.floor_e18)
                view["price_per_hour"] = e18_to_price_per_hour(named)
        view["counted"] = dict(program.counters)
        return view


def sample_tender(config: Config, *, account: bytes, peer_id: str, devices: int, lease: str, now_ms: int) -> Tender:
    """A tender that this node might have sent itself."""
    needs = Requirements(
        kind="any",
        choices=(),
        devices=devices,
        device_memory_bytes=0,
        cores_milli=0,
        memory_bytes=0,
        scratch_bytes=0,
        tier=config.provider.tier,
        features=(),
        egress=(),
        wall_ms=3_600_000,
        clauses=(),
    )
    return Tender(
        signer=account,
        peer_id=peer_id,
        job=bytes(32),
        shards=(0,),
        requirements=needs,
        currency=config.currency,
        price_ceiling_e18_per_device_ms=(1 << 128) - 1,
        meter_interval_ms=config.provider.meter_interval_ms,
        splits=(),
        facts=(),
        lease=lease,
        deadline_ms=0,
        bids_close_ms=now_ms + BIDDING_MS,
        expires_ms=now_ms + BIDDING_MS,
        nonce=secrets.token_bytes(32),
    )


async def ask_without_daemon(config: Config, account: bytes, devices: Sequence[Device], now_ms: int) -> Json:
    """What the program says of one device, asked by this very process.

    Raises:
        OperatorError: it cannot be asked.
    """
    program = program_of(config, lambda: time.time_ns() // 1_000_000)
    assert program is not None, "the owner names one"
    lease, device = config.provider.leases[0], devices[0]
    found = config.provider.price_e18_per_device_ms
    wanted = PriceWanted(
        tender=sample_tender(config, account=account, peer_id="", devices=1, lease=lease, now_ms=now_ms),
        lease=lease,
        sets=((device.id,),),
        rule_e18=(found,),
        share_ppm=0,
        tries=1,
    )
    question = question_about(wanted, {device.id: device}, leased=0, owned=len(devices), at_ms=now_ms)
    try:
        answer = await program.ask(question, 1)
    except ProgramFailed as fault:
        return {"fault": str(fault), "hint": what_to_do(fault, config)}
    if answer.refusal:
        return {"decline": answer.refusal}
    price = answer.prices_e18[0]
    return {"price_per_hour": e18_to_price_per_hour(found if price is None else price)}


def what_to_do(fault: ProgramFailed, config: Config) -> str:
    """The owner's next step after the program named no price."""
    if fault.outcome == "no-room" and config.environments.builder is not None:
        return "see whether hansa-builder.service runs, and may read the program: systemctl status hansa-builder"
    if fault.outcome == "no-room":
        return "a daemon that may make no sandbox has a builder make it: environments.builder and hansa-builder.service"
    if fault.outcome == "too-long":
        return "make it faster, or raise provider.pricing.program_timeout"
    if fault.outcome == "refused":
        return "ask again"
    return "run it by hand: it reads one JSON object from its standard input and prints another"


def price_view(found: RulePrice, devices: tuple[Device, ...], *, lease: str, at_ms: int) -> Json:
    """What the rule says, with each factor."""
    return {
        "at_ms": at_ms,
        "lease": lease,
        "price_per_hour": e18_to_price_per_hour(found.price_e18),
        "rates": [
            {"device": device.id.hex(), "model": device.model, "rate_per_hour": e18_to_price_per_hour(rate_e18)}
            for device, rate_e18 in zip(devices, found.rates_e18, strict=True)
        ],
        "minute_of_week": found.minute_of_week,
        "hours_ppm": found.hours_ppm,
        "leased_ppm": found.share_ppm,
        "utilisation_ppm": found.utilisation_ppm,
        "lease_ppm": found.lease_ppm,
        "at_floor": found.at_floor,
    }


def price_routes(desk: PriceDesk) -> list[Route]:
    """The routes, for ``hansa.node.api.http_api.build_api``."""

    async def price(request: Request) -> Response:
        wish = request.query_params
        devices, lease = wish.get("devices", "1"), wish.get("lease", LEASE_SPOT)
        if not (devices.isascii() and devices.isdigit() and len(devices) < 6):
            raise OperatorError("devices is no number", "for example --devices 2")
        if lease not in (LEASE_FIRM, LEASE_SPOT):
            raise OperatorError("a lease is firm or spot", "for example --lease spot")
        view = await desk.price(devices=int(devices), model=wish.get("model", ""), at=wish.get("at", ""), lease=lease)
        return JSONResponse(view)

    return [Route("/v1/price", price)]
