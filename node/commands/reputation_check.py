"""Work a reputation out again from a file, by its signatures alone, and compare. Needs no daemon, believes nobody."""

from pathlib import Path
from typing import Any

from hansa.market.reputation import newest, read_dealing, standing
from hansa.node.faults import OperatorError
from hansa.proto.codec import decode
from hansa.proto.errors import ProtocolError
from hansa.proto.history import MAX_HISTORY_BYTES, HistorySent
from hansa.proto.signing import parse_address
from hansa.proto.typed_json import parse_json
from hansa.proto.units import format_amount

LARGEST_FILE_BYTES = 64 << 20


def check_file(file: Path) -> list[tuple[str, bool, str]]:
    """For each figure in the file: its role, whether it holds, and what came out, in words.

    Raises:
        OperatorError: the file cannot be read or is not one of ``hansa reputation ACCOUNT --json``.
    """
    try:
        with file.open("rb") as content:
            text = content.read(LARGEST_FILE_BYTES + 1)
    except OSError as fault:
        raise OperatorError(f"{file} cannot be read: {fault.strerror}", "name another file") from None
    if len(text) > LARGEST_FILE_BYTES:
        raise OperatorError(f"{file} is larger than {LARGEST_FILE_BYTES >> 20} MiB", "name another file")
    try:
        return [_check(figure) for figure in parse_json(text)["figures"]]
    except (ProtocolError, ValueError, KeyError, TypeError, AttributeError):
        hint = "make one with hansa reputation ACCOUNT --json"
        raise OperatorError(f"{file} holds no figures", hint) from None


def _check(figure: dict[str, Any]) -> tuple[str, bool, str]:
    role = str(figure["role"])
    if figure["proven_false"]:
        return role, False, "it says that two documents contradict each other, and they are not in this file"
    try:
        sent = [decode(bytes.fromhex(text), HistorySent, limit_bytes=MAX_HISTORY_BYTES) for text in figure["documents"]]
        dealings = newest(read_dealing(dealing) for history in sent for dealing in history.dealings)
    except ProtocolError as fault:
        return role, False, f"a document is not what was signed: {fault.where} {fault.why}"
    found = standing(
        parse_address(figure["viewer"]),
        parse_address(figure["subject"]),
        role,
        dealings,
        currency=figure["currency"],
        at_ms=int(figure["at_ms"]),
    )
    told = (figure["ppm"], figure["good"], figure["bad"])
    worked_out = (found.ppm, format_amount(found.good), format_amount(found.bad))
    many = f"{len(dealings)} channel{'' if len(dealings) == 1 else 's'}"
    what = f"{found.ppm} millionths from {many}: good {worked_out[1]}, bad {worked_out[2]}"
    if told != worked_out:
        return role, False, f"the file says {told[0]!r} millionths; the signatures give {what}"
    return role, True, what
