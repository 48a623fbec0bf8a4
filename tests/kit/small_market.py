"""A few engines whose messages reach each other at once: enough for a test to bring them where it wants them."""

from collections.abc import Callable
from typing import Any

from kit.trading import DEVICE, JOB, NOW_MS, PRICE, spec, tender

from hansa.market.effects import Send, sealed
from hansa.market.ledger import Post
from hansa.market.ledger_records import File
from hansa.market.pricing import ITSELF, ProviderTerms
from hansa.node.engine import events
from hansa.node.engine.engine import Engine
from hansa.node.engine.journal import MemoryJournal
from hansa.proto.blob import blob_ref
from hansa.proto.codec import decode, encode
from hansa.proto.market_documents import Device
from hansa.proto.messages import Direct
from hansa.proto.signing import SigningKey
from hansa.scheduler.job_spec import JobSpec


def terms_of(key: SigningKey, **changes: Any) -> ProviderTerms:
    """An owner's rules."""
    rules: dict[str, Any] = {
        "account": key.address,
        "currency": "USD",
        "tier": "sandbox",
        "price_e18_per_device_ms": PRICE,
        "voucher_timeout_ms": 5_000,
        "max_unpaid": 3_000,
        "grace_ms": 10_000,
        "credit_limit": 10**9,
        "bid_ms": 10_000,
        "reclaim_notice_ms": 1_000,
    }
    return ProviderTerms(**{**rules, **changes})


def device(number: int) -> Device:
    """One of many devices."""
    return Device(
        id=bytes([number]) * 32, kind=DEVICE.kind, model="Xeon", memory_bytes=4 << 30, cores_milli=2_000, facts=()
    )


class SmallMarket:
    """Engines by account. What is not a message stays in ``effects``, and what ledgers get in ``booked``, in order."""

    def __init__(self) -> None:
        """Nobody yet."""
        self.engines: dict[bytes, Engine] = {}
        self.journals: dict[bytes, MemoryJournal] = {}
        self.keys: dict[bytes, SigningKey] = {}
        self.effects: list[tuple[bytes, Any]] = []
        self.booked: list[tuple[bytes, Post | File]] = []
        self.said: list[tuple[bytes, bytes, Any]] = []
        self.lost: Callable[[bytes, Any], bool] = lambda _to, _message: False
        self.now_ms = NOW_MS

    def add(self, key: SigningKey, *, devices: int = 0, **rules: Any) -> Engine:
        """A node that begins."""
        self.keys[key.address] = key
        self.journals[key.address] = MemoryJournal()
        self.engines[key.address] = Engine(self.journals[key.address])
        self.start(key.address, devices=devices, **rules)
        return self.engines[key.address]

    def start(self, account: bytes, *, devices: int = 0, **rules: Any) -> None:
        """The daemon of that account says that it began."""
        owned = tuple(device(account[0] + number & 0xFF) for number in range(devices))
        terms = terms_of(self.keys[account], **rules) if devices else None
        started = events.Started(
            account=account,
            peer_id="p",
            terms=terms,
            devices=owned,
            at_ms=self.now_ms,
            currency=rules.get("currency", "USD"),
            payer=rules.get("payer", ITSELF),
        )
        self.take(account, started)

    def restart(self, account: bytes, *, devices: int = 0) -> Engine:
        """Kill the daemon and start it again on its journal."""
        self.engines[account] = Engine(self.journals[account])
        self.start(account, devices=devices)
        return self.engines[account]

    def take(self, account: bytes, event: Any) -> None:
        """Something happens to a node, and everything that it says arrives."""
        for effect in self.engines[account].take([event]):
            if isinstance(effect, Post | File):
                self.booked.append((account, effect))
            if isinstance(effect, Send):
                message = sealed(effect.message, self.keys[account])
                self.said.append((account, effect.to, message))
                if effect.to in self.engines and not self.lost(effect.to, message):
                    self.tell(account, effect.to, message)
            elif not isinstance(effect, File):
                self.effects.append((account, effect))

    def tell(self, sender: bytes, to: bytes, message: Any) -> None:
        """A message arrives, as bytes."""
        read = decode(encode(message), Direct, limit_bytes=1 << 18)
        self.take(to, events.MessageArrived(sender=sender, message=read, at_ms=self.now_ms))

    def submit(self, buyer: bytes, *, job: bytes = JOB, of: JobSpec | None = None) -> None:
        """A user submits a job."""
        self.take(
            buyer, events.JobSubmitted(job=job, spec=of or spec(), package=blob_ref(b"package"), at_ms=self.now_ms)
        )

    def tender(self, buyer: bytes, invited: tuple[bytes, ...], **changes: Any) -> None:
        """The buyer's daemon has written a tender."""
        made = tender(signer=buyer, bids_close_ms=self.now_ms + 2_000, expires_ms=self.now_ms + 60_000, **changes)
        self.take(buyer, events.TenderPrepared(tender=made, invited=invited, at_ms=self.now_ms))

    def pass_time(self, after_ms: int, *accounts: bytes) -> None:
        """The clock goes on, and whose deadline came is woken."""
        self.now_ms += after_ms
        for account in accounts or tuple(self.engines):
            due_ms = self.engines[account].deadline_ms()
            if due_ms is not None and due_ms <= self.now_ms:
                self.take(account, events.TimeCame(at_ms=self.now_ms))

    def heard(self, kind: type) -> list[Any]:
        """Every message of a kind that was said."""
        return [message for _, _, message in self.said if isinstance(message, kind)]
