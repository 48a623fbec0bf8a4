"""The parties of a channel and what they sign, for tests of settlement; each party with keys of its own."""

from dataclasses import replace
from itertools import count
from typing import Any

from kit.settlement_house import House

from hansa.market.settlement import Backend, Claim
from hansa.proto.documents import ChannelConfig, CooperativeClose, Voucher, channel_id
from hansa.proto.keccak import keccak256
from hansa.proto.signing import CURVE_ORDER, Signed, SigningKey, sign
from hansa.proto.splits import Split, splits_hash

PAYER, PAYER_SIGNER, PAYEE, PAYEE_SIGNER, STRANGER = (SigningKey(bytes([number]) * 32) for number in range(11, 16))
OWNERS = tuple(sorted(SigningKey(bytes([number]) * 32).address for number in (21, 22, 23)))
ROYALTIES = tuple(Split(account=owner, bps=bps) for owner, bps in zip(OWNERS, (200, 333, 1_000), strict=True))
PERIOD_S = 3_600
DEPOSIT = 1_000_000
_salts = count(1)


class Scene:
    """A house with a payer who has money in it."""

    def __init__(self, house: House) -> None:
        self.house = house

    async def backend(self, key: SigningKey) -> Backend:
        """A party's own way to settle."""
        return await self.house.backend(key)

    def config(self, splits: tuple[Split, ...] = (), **changes: Any) -> ChannelConfig:
        """A channel between the parties, with a salt that no other has."""
        config = ChannelConfig(
            payer=PAYER.address,
            payer_signer=PAYER_SIGNER.address,
            payee=PAYEE.address,
            payee_signer=PAYEE_SIGNER.address,
            token=self.house.token,
            challenge_period=PERIOD_S,
            splits_hash=splits_hash(splits),
            salt=keccak256(next(_salts).to_bytes(32, "big")),
        )
        return replace(config, **changes)

    async def opened(self, splits: tuple[Split, ...] = (), *, deposit: int = DEPOSIT, **changes: Any) -> ChannelConfig:
        """A channel that is open."""
        config = self.config(splits, **changes)
        await self.house.fund(PAYER, deposit)
        id_ = await (await self.backend(PAYER)).open(config, splits, deposit)
        assert id_ == self.id(config)
        return config

    def id(self, config: ChannelConfig) -> bytes:
        """A channel's id here."""
        return channel_id(self.house.domain, config)

    def voucher(self, config: ChannelConfig, total: int, key: SigningKey = PAYER_SIGNER) -> Signed[Voucher]:
        """A voucher for a channel."""
        voucher = Voucher(channel_id=self.id(config), cumulative=total, statement=total.to_bytes(32, "little"))
        return sign(self.house.domain, voucher, key)

    def claim(self, config: ChannelConfig, total: int, key: SigningKey = PAYER_SIGNER) -> Claim:
        """A voucher with its channel."""
        return Claim(config=config, voucher=self.voucher(config, total, key))

    def close_signature(self, config: ChannelConfig, total: int, key: SigningKey) -> bytes:
        """One side's word that a channel ends with a total."""
        close = CooperativeClose(channel_id=self.id(config), cumulative=total)
        return sign(self.house.domain, close, key).signature

    def both_signatures(self, config: ChannelConfig, total: int) -> tuple[bytes, bytes]:
        """Both sides' word."""
        return (
            self.close_signature(config, total, PAYER_SIGNER),
            self.close_signature(config, total, PAYEE_SIGNER),
        )


def twins(signature: bytes) -> dict[str, bytes]:
    """Other spellings of a signature, by what is done to it."""
    r, s, v = signature[:32], int.from_bytes(signature[32:64], "big"), signature[64]
    return {
        "high s": r + (CURVE_ORDER - s).to_bytes(32, "big") + bytes([55 - v]),
        "flipped v": signature[:64] + bytes([55 - v]),
        "v 0": signature[:64] + bytes([v - 27]),
        "v 35": signature[:64] + bytes([v + 8]),
        "v 36": signature[:64] + bytes([v + 9]),
        "v 255": signature[:64] + b"\xff",
        "r zero": bytes(32) + signature[32:],
        "s zero": r + bytes(32) + signature[64:],
        "all zero": bytes(65),
        "s of n": r + CURVE_ORDER.to_bytes(32, "big") + signature[64:],
    }
