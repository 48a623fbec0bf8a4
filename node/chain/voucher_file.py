"""Vouchers in a file, for a watchtower: one line of JSON each, with all that a claim needs. There is no key in it.

Who has the file can claim the vouchers, which pays their payee; it can see who pays whom how much, and do no harm.
"""

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hansa.market.settlement import Claim
from hansa.node.faults import ConfigError
from hansa.proto.currency import currency_of
from hansa.proto.documents import ChannelConfig, Voucher, channel_id
from hansa.proto.errors import Malformed, ProtocolError
from hansa.proto.signing import Signed, check
from hansa.proto.typed_json import from_json, to_json, to_plain
from hansa.proto.units import Line, Signature

LARGEST_BYTES: Final = 32 << 20
SUFFIX: Final = ".vouchers"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldVoucher:
    """A voucher with its channel: what a claim needs, and nothing else.

    Attributes:
        currency: which chain, escrow and token.
        config: what the channel is.
        voucher: the best voucher on it.
        signature: of the payer's signer.
    """

    currency: Line
    config: ChannelConfig
    voucher: Voucher
    signature: Signature

    @property
    def claim(self) -> Claim:
        """The claim that can be made with it."""
        return Claim(config=self.config, voucher=Signed(document=self.voucher, signature=self.signature))


def voucher_view(currency: str, config: ChannelConfig, voucher: Signed[Voucher]) -> dict[str, Any]:
    """A voucher as the local API gives it."""
    return to_plain(
        HeldVoucher(currency=currency, config=config, voucher=voucher.document, signature=voucher.signature)
    )


def write_vouchers(file: Path, vouchers: Sequence[dict[str, Any]]) -> None:
    """Write vouchers in place of what the file had, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    lines = [to_json(_sound(from_json(HeldVoucher, each))) for each in vouchers]
    partial = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        with partial.open("x", encoding="utf-8") as stream:
            stream.write("".join(f"{line}\n" for line in lines))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as fault:
        raise ConfigError(f"cannot write {file}: {fault.strerror}", "check the directory and the disk") from None


def read_vouchers(file: Path, *, skip: Callable[[str], None] | None = None) -> list[HeldVoucher]:
    """The vouchers of a file. Each is what it says: its signature is its channel's payer's, in an escrow on a chain.

    Args:
        file: which.
        skip: is told what is wrong, if it is to be skipped, be it a line or the whole file.

    Raises:
        ConfigError: it cannot be read, or holds something else, and is not to be skipped.
    """
    skip = skip or _refuse
    try:
        if file.stat().st_size > LARGEST_BYTES:
            skip(f"{file} is larger than {LARGEST_BYTES >> 20} MiB: it is no file of vouchers")
            return []
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        skip(f"cannot read {file}: name files that `hansa chain export-vouchers` wrote")
        return []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_sound(from_json(HeldVoucher, line)))
        except ProtocolError as fault:
            skip(f"line {number} of {file} is no voucher: it {fault}")
    return found


def _refuse(words: str) -> None:
    raise ConfigError(words, "export them again: hansa chain export-vouchers FILE")


def _sound(held: HeldVoucher) -> HeldVoucher:
    currency = currency_of(held.currency)
    if not currency.is_on_chain:
        raise Malformed("currency", "is no token on a chain")
    if held.config.token != currency.token or channel_id(currency.domain, held.config) != held.voucher.channel_id:
        raise Malformed("voucher", "is not of this channel")
    check(currency.domain, held.claim.voucher, held.config.payer_signer)
    return held
