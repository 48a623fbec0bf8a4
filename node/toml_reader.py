"""A TOML file read key by key, so that every complaint names the file, the line and the key, and no key goes unread.

``tomllib`` knows no line numbers once it has parsed. They are found again by looking for the key in its table's part of
the text; where that fails (an inline table, a quoted header) the complaint simply has no line.
"""

import difflib
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hansa.market import value_forms
from hansa.market.requirements import MOST_CORES_MILLI
from hansa.node.faults import ConfigError
from hansa.proto.errors import Malformed
from hansa.proto.signing import parse_address
from hansa.proto.units import Address

_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_.\-\s]+?)\s*\]\s*(?:#.*)?")
_ENTRY = re.compile(r"""\s*(?:"([^"\\]+)"|'([^']+)'|([A-Za-z0-9_\-]+))\s*[.=]""")
LEAST_CORES_MILLI = 100
LARGEST_FILE_BYTES = 1 << 20
"""A file that people write is never larger; a slip such as naming a data file is told apart at once."""


def _line_numbers(text: str) -> dict[tuple[str, str], int]:
    """Where each ``(table, key)`` stands, counted from 1; a table's own header is under the empty key."""
    found: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            table = ".".join(part.strip() for part in header[1].split("."))
            found.setdefault((table, ""), number)
        elif entry := _ENTRY.match(line):
            found.setdefault((table, entry[1] or entry[2] or entry[3]), number)
    return found


class TomlTable:
    """One table of a TOML file. Every read marks its key as known; ``finish`` complains about the others."""

    def __init__(self, file: Path, name: str, values: dict[str, Any], lines: dict[tuple[str, str], int]) -> None:
        """Made by ``read_toml`` and ``table``."""
        self.file = file
        self.name = name
        self.values = values
        self.known: set[str] = set()
        self._lines = lines

    def fault(self, key: str, what: str, hint: str, quote: str = "") -> ConfigError:
        """A complaint about one key, with the place where it stands."""
        dotted = ".".join(part for part in (self.name, key) if part)
        places = ((self.name, key), (dotted, ""), (self.name, ""))  # of a key, of a table, of the table around it
        line = next((self._lines[place] for place in places if place in self._lines), None)
        place = f"{self.file}:{line}" if line else f"{self.file}"
        return ConfigError(f"{place}: {dotted}: {what}", hint, quote)

    def has(self, key: str) -> bool:
        """Whether the file sets the key."""
        self.known.add(key)
        return key in self.values

    def raw(self, key: str) -> Any:
        """The value as TOML has it; the key must be there."""
        self.known.add(key)
        if key not in self.values:
            raise self.fault(key, "is missing", f'add a line such as {key} = "..."')
        return self.values[key]

    def table(self, key: str) -> "TomlTable":
        """A table below this one; absent means empty."""
        self.known.add(key)
        values = self.values.get(key, {})
        if not isinstance(values, dict):
            raise self.fault(key, "must be a table", f"write a line [{key}] and its keys below it")
        return TomlTable(self.file, f"{self.name}.{key}" if self.name else key, values, self._lines)

    def finish(self) -> None:
        """Complain about the first key that nothing has read."""
        for key in self.values:
            if key not in self.known:
                near = difflib.get_close_matches(key, sorted(self.known), n=1)
                hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(self.known))}"
                raise self.fault(key, "unknown key", hint)

    def text(self, key: str, default: str | None = None, *, most: int = 256, empty: bool = False) -> str:
        """A line of text of at most ``most`` bytes."""
        if default is not None and not self.has(key):
            return default
        value = self.raw(key)
        if not isinstance(value, str):
            raise self.fault(key, "must be text", f'write it in quotes: {key} = "{_shown(value)}"')
        if not empty and not value.strip():
            raise self.fault(key, "must not be empty", f"give {key} a value or remove the line")
        if not value.isprintable():
            raise self.fault(key, "must be one line of printable text", "remove line breaks and control characters")
        if len(value.encode()) > most:
            raise self.fault(key, f"is longer than {most} bytes", "shorten it")
        return value

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of a few words."""
        value = self.text(key, default)
        if value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1)
            listed = ", ".join(f'"{word}"' for word in allowed)
            hint = f'did you mean "{near[0]}"? allowed: {listed}' if near else f"allowed: {listed}"
            raise self.fault(key, f'"{_shown(value)}" is not one of the allowed words', hint)
        return value

    def integer(self, key: str, default: int | None = None, *, least: int, most: int) -> int:
        """A whole number from ``least`` to ``most``."""
        if default is not None and not self.has(key):
            return default
        value = self.raw(key)
        if type(value) is not int:
            raise self.fault(key, "must be a whole number", f"write it without quotes or decimals: {key} = {least}")
        if not least <= value <= most:
            raise self.fault(key, f"is {value}, outside {least} .. {most}", f"choose a number from {least} to {most}")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        if not self.has(key):
            return default
        value = self.raw(key)
        if type(value) is not bool:
            raise self.fault(key, "must be true or false", f"write it without quotes: {key} = true")
        return value

    def texts(self, key: str, default: tuple[str, ...], *, most: int = 256) -> tuple[str, ...]:
        """A list of lines of text."""
        if not self.has(key):
            return default
        value = self.raw(key)
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            raise self.fault(key, "must be a list of texts", f'write {key} = ["...", "..."]')
        if len(value) > most:
            raise self.fault(key, f"has more than {most} items", "shorten the list")
        return tuple(value)

    def quantity(
        self, key: str, default: str, parse: Callable[[str], int], example: str, *, least: int = 0, bits: int = 64
    ) -> int:
        """A text that ``parse`` turns into an integer; its ``ValueError`` becomes the complaint."""
        value = self.values.get(key, default)
        self.known.add(key)
        if type(value) in (int, float):
            if value < 0:
                raise self.fault(key, "must not be negative", f"write for example {key} = {example}")
            raise self.fault(key, "must be text in quotes", f"write for example {key} = {example}")
        if not isinstance(value, str):
            raise self.fault(key, "must be text", f"write for example {key} = {example}")
        if value.strip().startswith("-"):
            raise self.fault(key, "must not be negative", f"write for example {key} = {example}")
        try:
            number = parse(value)
        except ValueError as fault:
            raise self.fault(key, str(fault), f"write for example {key} = {example}") from None
        if number < least or number >= 1 << bits:
            raise self.fault(key, "is too small" if number < least else "is too large", f"for example {example}")
        return number

    def size_bytes(self, key: str, default: str, *, least: int = 0) -> int:
        """A size such as ``"512 MiB"``."""
        return self.quantity(key, default, value_forms.size_bytes, '"512 MiB"', least=least)

    def duration_ms(self, key: str, default: str, *, least: int = 1) -> int:
        """A length of time such as ``"90 s"``."""
        return self.quantity(key, default, value_forms.duration_ms, '"90 s"', least=least)

    def amount(self, key: str, default: str, *, least: int = 0) -> int:
        """An amount of money in the currency, e.g. ``"1.25"``, as smallest units."""
        return self.quantity(key, default, value_forms.amount, '"1.25"', least=least, bits=128)

    def price_e18(self, key: str, default: str, *, least: int = 0) -> int:
        """A price for one device-hour, e.g. ``"0.40"``, as ``PriceE18``."""
        return self.quantity(key, default, value_forms.price_e18, '"0.40"', least=least, bits=128)

    def account(self, key: str) -> Address | None:
        """An account's address; ``None`` where there is none."""
        text = self.text(key, "", empty=True)
        if not text:
            return None
        hint = f'{key} = "0x..." as `hansa wallet address` shows it, or leave it out'
        try:
            account = parse_address(text)
        except Malformed as fault:
            raise self.fault(key, fault.why, hint) from None
        if not any(account):
            raise self.fault(key, "is the zero address, which nobody holds", hint)
        return account

    def cores_milli(self, key: str, default: int) -> int:
        """CPU cores in thousandths. A number of at most three decimals is exact once it is written as text."""
        value = self.raw(key) if self.has(key) else default
        try:
            milli = value_forms.thousandths(str(value) if type(value) in (int, float, str) else "")
        except ValueError:
            hint = "for example 2 or 0.5"
            raise self.fault(key, "must be a number of cores with at most three decimals", hint) from None
        if not LEAST_CORES_MILLI <= milli <= MOST_CORES_MILLI:
            raise self.fault(key, "must be at least 0.1, and at most 10000", "for example 2 or 0.5")
        return milli


def _shown(value: object) -> str:
    """A user's own value, short enough for one line."""
    shown = "".join(character if character.isprintable() else "?" for character in str(value))
    return shown if len(shown) <= 40 else shown[:37] + "..."


def read_toml(file: Path) -> TomlTable:
    """Read a TOML file's top table.

    Raises:
        ConfigError: the file cannot be read, is no UTF-8 or no TOML; it names the line where it can.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file", "check the path") from None
    except OSError as fault:
        raise ConfigError(f"{file}: cannot be read: {fault.strerror}", "check the path and its permissions") from None
    if len(data) > LARGEST_FILE_BYTES:
        raise ConfigError(f"{file}: is larger than 1 MiB", "name the TOML file, not a data file")
    try:
        text = data.decode("utf-8-sig")  # some editors begin a text with a mark that nobody sees
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text", "save it as UTF-8") from None
    if "\0" in text:
        raise ConfigError(f"{file}: holds zero bytes, as a power cut leaves them", "put a copy of the file back")
    return parse_toml(text, file)


def parse_toml(text: str, file: Path) -> TomlTable:
    """The top table of a text that stands in, or is meant for, a file.

    Raises:
        ConfigError: it is no TOML.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise ConfigError(f"{file}: is no valid TOML: {fault}", "see https://toml.io for the syntax") from None
    except RecursionError:
        raise ConfigError(f"{file}: is no valid TOML: lists within lists without end", "write it plainer") from None
    return TomlTable(file, "", values, _line_numbers(text))
