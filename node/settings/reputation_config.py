"""``[reputation]`` in ``config.toml``: what signed dealings are used for, and whether this node shows its own."""

from dataclasses import dataclass

from hansa.node.toml_reader import TomlTable
from hansa.proto.units import Uint32

PPM_PER_PERCENT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReputationConfig:
    """The owner's choice.

    Attributes:
        share: show others, when they want to know, what this node and its counterparties signed.
        min_buyer_ppm: buyers below this figure are declined; 0 declines nobody for it.
    """

    share: bool
    min_buyer_ppm: Uint32


def read_reputation(table: TomlTable) -> ReputationConfig:
    """Read and check the table.

    Raises:
        ConfigError: anything in it is wrong.
    """
    config = ReputationConfig(
        share=table.boolean("share", True),
        min_buyer_ppm=table.integer("min_buyer", 0, least=0, most=99) * PPM_PER_PERCENT,
    )
    table.finish()
    return config
