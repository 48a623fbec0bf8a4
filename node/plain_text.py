"""Text from elsewhere, made fit for a terminal: peers choose names, reasons and log lines, and may mean harm with them.

Escape sequences can repaint a screen, set a title or, in some terminals, type commands; direction marks can make one
account look like another. So everything that is not plainly printable is replaced before it is shown.
"""

from collections.abc import Mapping
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_SHOWN = 4096
TRACEBACK = "Traceback (most recent call last):"


def plain(text: object, limit: int = LONGEST_SHOWN) -> str:
    """One line of printable text of at most ``limit`` characters. Tabs become spaces, all other controls a mark."""
    shown = "".join(
        character if character.isprintable() else " " if character == "\t" else REPLACEMENT
        for character in str(text)[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def summary(reason: object, limit: int) -> str:
    """A reason of many lines in one: how it begins, and its last line, which in a traceback says what went wrong."""
    lines = [line.strip() for line in str(reason)[: 64 * LONGEST_SHOWN].splitlines() if line.strip(" \t^~")]
    if len(lines) < 2:
        return plain("".join(lines), limit)
    begin = plain(lines[0].removesuffix(TRACEBACK).rstrip(" :"), limit // 2)
    return f"{begin}: {plain(lines[-1], limit // 2)}" if begin else plain(lines[-1], limit)


def short_account(account: object) -> str:
    """An account for a narrow column: ``0x5290…9EE7``. Both ends, since people compare the ends."""
    text = plain(account, 64)
    return text if len(text) <= 13 else f"{text[:6]}\N{HORIZONTAL ELLIPSIS}{text[-4:]}"


def number(value: Any, digits: int = 4) -> str:
    """A measured number for the eye; anything else as plain text."""
    return f"{value:.{digits}g}" if isinstance(value, int | float) else plain(value, 20)


def fields_of(view: Any) -> Mapping[str, Any]:
    """A JSON object, or an empty one where something else stands."""
    return view if isinstance(view, Mapping) else {}
