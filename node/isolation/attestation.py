"""What a machine with a trusted execution environment says of itself: a quote over the binding of this node.

The kernel's configfs-tsm (Linux 6.7 and later) is one interface to AMD SEV-SNP, Intel TDX and their kin: make a
directory, write what is to be quoted into ``inblob``, read the quote from ``outblob``. What is quoted is the digest of
the node's binding, so that a quote says: *this* node, for *this* account, runs on such a machine.

Nobody verifies quotes yet: they are shown as they come. A buyer who wants to rely on one must check its certificate
chain and measurements with the maker's tools.
"""

import base64
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPORTS: Final = Path("/sys/kernel/config/tsm/report")
REPORT_DATA_BYTES: Final = 64
LARGEST_QUOTE_BYTES: Final = 32 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """Evidence about this machine.

    Attributes:
        provider: who made it, in the kernel's word: ``sev_guest``, ``tdx_guest`` …
        report_data: the 64 bytes that it is about; the binding's digest and zeros.
        quote: the evidence itself, in its maker's format.
        certificates: what the platform gives beside it, if anything.
    """

    provider: str
    report_data: bytes
    quote: bytes
    certificates: bytes

    def view(self) -> dict[str, str]:
        """As the local API shows it."""
        return {
            "provider": self.provider,
            "report_data": self.report_data.hex(),
            "quote": base64.b64encode(self.quote).decode(),
            "certificates": base64.b64encode(self.certificates).decode(),
            "verified": "by nobody: check it with the maker's tools",
        }


class NoQuote(Exception):
    """There is no quote to be had, and why."""


class ReportsDirectory:
    """The kernel's directory: one that is made in it has files at once, and goes with them."""

    def __init__(self, path: Path = REPORTS) -> None:
        """Use the directory at ``path``."""
        self.path = path

    def open_entry(self, name: str) -> Path:
        """Make an entry."""
        entry = self.path / name
        entry.mkdir()
        return entry

    def close_entry(self, entry: Path) -> None:
        """Take it away; the kernel takes its files."""
        entry.rmdir()


def request_quote(binding_digest: bytes, reports: ReportsDirectory | None = None) -> Quote:
    """Have the platform sign for the binding.

    Raises:
        NoQuote: this is no such machine, or it gives none now.
    """
    reports = reports or ReportsDirectory()
    if not reports.path.is_dir():
        raise NoQuote(f"the kernel has no {reports.path}")
    report_data = binding_digest.ljust(REPORT_DATA_BYTES, b"\0")
    if len(report_data) != REPORT_DATA_BYTES:
        raise ValueError("report data has 64 bytes")
    try:
        entry = reports.open_entry(f"hansa-{os.getpid()}")
        try:
            return _ask(entry, report_data)
        finally:
            reports.close_entry(entry)
    except OSError as error:
        raise NoQuote(f"the platform gives no quote: {error.strerror}") from error


def attest(binding_digest: bytes) -> dict[str, str]:
    """What this machine can prove of itself about this node, or why it cannot; as the local API shows it."""
    try:
        return request_quote(binding_digest).view()
    except NoQuote as error:
        return {"none": str(error)}


def _ask(entry: Path, report_data: bytes) -> Quote:
    (entry / "inblob").write_bytes(report_data)
    before = (entry / "generation").read_text().strip()
    quote = _read(entry / "outblob")
    certificates = b""
    with contextlib.suppress(OSError):  # not every provider has it
        certificates = _read(entry / "auxblob")
    provider = (entry / "provider").read_text().strip()
    # The count rises with every write to the entry: were it another's request by now, this would be another's quote.
    if (entry / "generation").read_text().strip() != before:
        raise NoQuote("somebody else wrote to the same entry")
    if not quote or len(quote) > LARGEST_QUOTE_BYTES:
        raise NoQuote(f"the platform gave {len(quote)} bytes")
    return Quote(provider=provider, report_data=report_data, quote=quote, certificates=certificates)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST_QUOTE_BYTES + 1)
