"""What an owner lets this node spend on a chain's fees."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FeeLimits:
    """In the coin's smallest unit.

    Attributes:
        most_per_gas: for one unit of gas.
        most_per_day: in any 24 hours, what is on its way counted in full.
    """

    most_per_gas: int
    most_per_day: int
