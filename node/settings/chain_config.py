"""The owner's ``[chain]`` in ``config.toml``: on which chain, in which escrow and token this node settles, and how."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from hansa.node.settings.evm_limits import FeeLimits
from hansa.node.toml_reader import TomlTable
from hansa.proto.currency import Currency, currency_of, escrow_currency
from hansa.proto.errors import Malformed
from hansa.proto.signing import ZERO_ADDRESS, parse_address
from hansa.proto.units import Amount, DurationMs

COIN_DECIMALS: Final = 18
GWEI: Final = 10**9
MOST_NODES: Final = 8
_COINS = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,18}))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainConfig:
    """How this node settles on a chain.

    Attributes:
        rpc: addresses of the chain's nodes. They may hold keys: never shown.
        currency: chain, escrow and token.
        confirmations: blocks that make one final; 0 takes the chain's own word for it.
        limits: what may be spent on fees.
        claim_at_least: vouchers for less than this on a channel are not worth a fee.
        claim_above: with more than this vouched for and not claimed on a channel, it is claimed at once.
        withdraw_above: with more than this credited to the account it is taken out.
        poll_ms: how often the chain is looked at.
    """

    rpc: tuple[str, ...]
    currency: Currency
    confirmations: int
    limits: FeeLimits
    claim_at_least: Amount
    claim_above: Amount
    withdraw_above: Amount
    poll_ms: DurationMs


def read_chain(table: TomlTable, *, wanted: bool) -> ChainConfig | None:
    """Read and check the table. It is read where it is not wanted, too: a mistake in it should not wait.

    Raises:
        ConfigError: anything in it is wrong, or it is wanted and says nothing.
    """
    rpc = table.texts("rpc", (), most=MOST_NODES)
    for url in rpc:
        if not _is_url(url):
            raise table.fault("rpc", "holds something that is no address of a node", 'rpc = ["http://127.0.0.1:8545"]')
    chain_id = table.integer("chain_id", 1, least=1, most=10**18 - 1)
    escrow, token = _contract(table, "escrow"), _contract(table, "token")
    config = ChainConfig(
        rpc=rpc,
        currency=currency_of(escrow_currency(chain_id, escrow, token)),
        confirmations=table.integer("confirmations", 0, least=0, most=100_000),
        limits=FeeLimits(
            most_per_gas=table.integer("max_fee_per_gas_gwei", 100, least=1, most=10**6) * GWEI,
            most_per_day=table.quantity("max_fee_per_day", "0.02", _coins, '"0.02"', bits=96),
        ),
        claim_at_least=table.amount("claim_at_least", "0.05", least=1),
        claim_above=table.amount("claim_above", "5.00", least=1),
        withdraw_above=table.amount("withdraw_above", "5.00", least=1),
        poll_ms=table.duration_ms("poll", "4 s", least=100),
    )
    if wanted and not rpc:
        raise table.fault("rpc", 'names no node, and settlement.backend is "evm"', 'rpc = ["http://127.0.0.1:8545"]')
    for key, address in (("escrow", escrow), ("token", token)):
        if wanted and address == ZERO_ADDRESS:
            raise table.fault(
                key, 'must be a contract\'s address while settlement.backend is "evm"', f'{key} = "0x..."'
            )
    table.finish()
    return config if wanted else None


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _contract(table: TomlTable, key: str) -> bytes:
    text = table.text(key, "", empty=True)
    try:
        return parse_address(text) if text else ZERO_ADDRESS
    except Malformed as fault:
        raise table.fault(key, f"is no address: it {fault.why}", f'{key} = "0x" and 40 hex digits') from None


def _coins(text: str) -> int:
    """An amount of the chain's own coin, in its smallest unit."""
    found = _COINS.fullmatch(text.strip())
    if found is None:
        raise ValueError("must be a number of coins with at most 18 decimals")
    return int(found[1]) * 10**COIN_DECIMALS + int((found[2] or "").ljust(COIN_DECIMALS, "0"))


def format_coins(amount: int) -> str:
    """An amount of the chain's own coin as people read it: six decimals, rounded down."""
    whole, rest = divmod(amount, 10**COIN_DECIMALS)
    return f"{whole}.{rest // 10 ** (COIN_DECIMALS - 6):06}"
