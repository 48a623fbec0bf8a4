"""What the daemon writes to its log: one line for each thing that an operator would want to find again.

Lines for people by default, JSON with ``hansa node run --json``. What strangers can cause as often as they like is
counted in the metrics and not logged, so nobody can fill a disk.
"""

import json
import logging
import sys
import time
from collections.abc import Iterable
from typing import Any, Final

from hansa.node.engine.state import Turn
from hansa.node.plain_text import plain, summary

LOGGER: Final = logging.getLogger("hansa")
KEY_DIGITS: Final = 12
LONGEST_REASON: Final = 300


class JsonLines(logging.Formatter):
    """One JSON object for each line: ``at`` (UTC), ``level``, ``name``, ``message``, and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        line: dict[str, Any] = {
            "at": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "name": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


class PlainLines(logging.Formatter):
    """Lines for people. Whatever is logged, by whomever, is one line, and an exception's lines cannot pass for ours.

    A library's exceptions may quote what peers sent.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's own name
        """See ``logging.Formatter``."""
        record.message = plain(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the library's own name
        """See ``logging.Formatter``."""
        return "\n".join(f"    | {plain(line)}" for line in super().formatException(ei).splitlines())


def start_logging(*, as_json: bool) -> None:
    """Send the daemon's own log to standard error. Called once, when the daemon starts."""
    handler = logging.StreamHandler(sys.stderr)
    if as_json:
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(PlainLines("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def log_line(text: str) -> None:
    """One line for the owner."""
    LOGGER.info("%s", plain(text))


def warn(text: str) -> None:
    """One line for the owner about what is wrong and will not mend itself."""
    LOGGER.warning("%s", plain(text))


def log_turns(turns: Iterable[Turn]) -> None:
    """One line for each machine that went from one phase to another."""
    for turn in turns:
        reason = summary(turn.reason, LONGEST_REASON)
        words = f"{turn.machine} {turn.key.hex()[:KEY_DIGITS]}: {turn.before} → {turn.after}"
        facts = {
            "machine": turn.machine,
            "key": turn.key.hex(),
            "before": turn.before,
            "after": turn.after,
            "reason": reason,
        }
        LOGGER.info("%s%s", words, f" ({reason})" if reason else "", extra={"facts": facts})
