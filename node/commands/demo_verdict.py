"""Whether a demo went as it should: every claim is checked against what each node says of itself, and told in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hansa.node.plain_text import fields_of
from hansa.proto.units import parse_amount

LEAST_ACCURACY = 0.93
View = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What one node's own books say.

    Attributes:
        name: which node it is.
        account: its account.
        balance: its answer to ``/v1/balance``.
    """

    name: str
    account: str
    balance: View


@dataclass(frozen=True, slots=True, kw_only=True)
class Earning:
    """One provider's share, from both sides.

    Attributes:
        provider: the provider's name in the demo.
        earned: by its own books.
        vouched: what the buyer says it vouched.
        metered: what the provider's receipts came to, by its own books.
        buyer_metered: the same receipts by the buyer's books.
    """

    provider: str
    account: str
    earned: str
    vouched: str
    metered: str
    buyer_metered: str

    @property
    def agrees(self) -> bool:
        """Whether paid = vouched = metered, and something was earned at all."""
        try:
            amounts = {parse_amount(text) for text in (self.earned, self.vouched, self.metered, self.buyer_metered)}
        except ValueError:
            return False
        return len(amounts) == 1 and amounts != {0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One claim and whether it holds."""

    claim: str
    holds: bool
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All claims about one demo.

    Attributes:
        accuracy: the last round's accuracy on held-out digits; ``None`` if none was reported.
    """

    accuracy: float | None
    earnings: tuple[Earning, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every claim holds."""
        return all(check.holds for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The result document of ``hansa demo --json``."""
        return {
            "passed": self.passed,
            "accuracy": self.accuracy,
            "earnings": [
                {name: getattr(earning, name) for name in ("provider", "account", "earned", "vouched", "metered")}
                for earning in self.earnings
            ],
            "checks": [{"claim": check.claim, "holds": check.holds, "found": check.found} for check in self.checks],
        }


def judge(job: View, providers: list[Account], buyer: Account) -> Verdict:
    """Hold a job's last view and every node's books against what was promised."""
    accuracy = _accuracy(job)
    earnings = tuple(_earning(job, provider, buyer) for provider in providers)
    finished = [shard.get("phase") == "finished" for shard in job.get("shards", [])]
    sums = {each.name: str(each.balance.get("sum")) for each in (*providers, buyer)}
    checks = (
        Check(claim="the job succeeded", holds=job.get("phase") == "succeeded", found=_phase_text(job)),
        Check(
            claim=f"held-out accuracy is at least {LEAST_ACCURACY}",
            holds=accuracy is not None and accuracy >= LEAST_ACCURACY,
            found="none was reported" if accuracy is None else f"{accuracy:.4f}",
        ),
        Check(
            claim="every shard finished",
            holds=bool(finished) and all(finished),
            found=f"{sum(finished)} of {len(finished)}",
        ),
        Check(
            claim="the sum over every ledger is zero",
            holds=all(_is_zero(amount) for amount in sums.values()),
            found=", ".join(f"{name} {amount}" for name, amount in sums.items()),
        ),
        Check(
            claim="paid = vouched = metered for every provider",
            holds=bool(earnings) and all(earning.agrees for earning in earnings),
            found=", ".join(f"{each.provider} {each.earned} / {each.vouched} / {each.metered}" for each in earnings),
        ),
        Check(
            claim="the buyer spent what the providers earned",
            holds=_same_total(str(buyer.balance.get("spent")), [earning.earned for earning in earnings]),
            found=f"spent {buyer.balance.get('spent')}",
        ),
    )
    return Verdict(accuracy=accuracy, earnings=earnings, checks=checks)


def _phase_text(job: View) -> str:
    reason = job.get("reason")
    return f"{job.get('phase')}: {reason}" if reason else str(job.get("phase"))


def _accuracy(job: View) -> float | None:
    for done in reversed(job.get("history", [])):
        value = fields_of(done.get("metrics")).get("accuracy")
        if isinstance(value, int | float):
            return float(value)
    return None


def _earning(job: View, provider: Account, buyer: Account) -> Earning:
    vouched = metered = buyer_metered = "0"
    for share in fields_of(job.get("spend")).get("by_provider", []):
        if share.get("provider") == provider.account:
            vouched, buyer_metered = str(share.get("vouched")), str(share.get("metered"))
    for channel in provider.balance.get("channels", []):
        if channel.get("role") == "payee" and channel.get("counterparty") == buyer.account:
            metered = str(channel.get("metered"))
    return Earning(
        provider=provider.name,
        account=provider.account,
        earned=str(provider.balance.get("earned")),
        vouched=vouched,
        metered=metered,
        buyer_metered=buyer_metered,
    )


def _is_zero(text: str) -> bool:
    try:
        return parse_amount(text) == 0
    except ValueError:
        return False


def _same_total(total: str, parts: list[str]) -> bool:
    try:
        return parse_amount(total) == sum(parse_amount(part) for part in parts)
    except ValueError:
        return False
