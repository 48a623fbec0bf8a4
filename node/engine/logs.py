"""What the daemon writes to its log: one line for each thing that an operator would want to find again.

Lines for people by default, JSON with ``hansa node run --json``. What strangers can cause as often as they like is
counted in the metrics and not logged, so nobody can fill a disk.
"""

import contextlib
import copy
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, TextIO

from hansa.node.engine.state import Turn
from hansa.node.plain_text import plain, summary

LOGGER: Final = logging.getLogger("hansa")
KEY_DIGITS: Final = 12
LONGEST_REASON: Final = 300
SELDOM_S: Final = 60.0
MOST_SENTENCES: Final = 64
"""So many different sentences of libraries are said in that time at most."""


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


class LibraryLines(logging.StreamHandler[TextIO]):
    """What libraries warn of: each of their sentences once in a while, with how often it was said since.

    Strangers can bring most of it about, as often as they like. Where the system failed a library, its words say all
    that there is to say, and the trace is left out.
    """

    def __init__(self, stream: TextIO, clock_s: Callable[[], float] = time.monotonic) -> None:
        """Nothing was said yet."""
        super().__init__(stream)
        self.setLevel(logging.WARNING)
        self._clock_s = clock_s
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        sentence, now_s = (record.name, _words(lambda: str(record.msg), record)[:LONGEST_REASON]), self._clock_s()
        said_s, held_back = self._said.get(sentence, (-math.inf, 0))
        if now_s - said_s < SELDOM_S:
            self._said[sentence] = (said_s, held_back + 1)
            return
        if sentence not in self._said and len(self._said) >= MOST_SENTENCES:
            self._said = {key: (at_s, more) for key, (at_s, more) in self._said.items() if now_s - at_s < SELDOM_S}
            if len(self._said) >= MOST_SENTENCES:
                return
        self._said[sentence] = (now_s, 0)
        shown = copy.copy(record)
        shown.msg, shown.args = _words(record.getMessage, record), ()
        if held_back:
            shown.msg += f" (and {held_back} more like it since)"
        if record.exc_info and isinstance(record.exc_info[1], OSError):
            shown.exc_info = shown.exc_text = None
        super().emit(shown)


def _words(say: Callable[[], str], record: logging.LogRecord) -> str:
    """What a record says, or what can be said of it: a library's mistake here would be raised where it warns."""
    for each in (say, lambda: str(record.msg)):
        with contextlib.suppress(Exception):
            return plain(each())
    return type(record.msg).__name__


def start_logging(*, as_json: bool) -> None:
    """Send the daemon's own log, and what libraries warn of, to standard error. Called once, when the daemon starts."""
    handler, theirs = logging.StreamHandler(sys.stderr), LibraryLines(sys.stderr)
    for each in (handler, theirs):
        if as_json:
            each.setFormatter(JsonLines())
        else:
            each.setFormatter(PlainLines("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    # Without a handler there, Python itself prints what libraries say: whole, in no form, and every time.
    logging.getLogger().addHandler(theirs)
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
