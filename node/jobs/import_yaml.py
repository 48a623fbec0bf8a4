"""A stranger's YAML or JSON as a tree that knows where everything stood, read within bounds.

Nothing is constructed from tags: a scalar stays the text that was written, so ``3.10`` is no float and ``no`` is no
boolean until a reader asks for one. Size, depth, number of values and aliases are bounded before a tree is made of it,
and an alias is paid for each time that it is followed.

Every value notes whether somebody read it. What nobody did is told to the user: nothing is dropped in silence.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from hansa.node.faults import ConfigError

LARGEST_BYTES = 256 << 10
DEEPEST = 40
MOST_ALIASES = 64
MOST_VALUES = 20_000
MOST_DOCUMENTS = 64
LONGEST_SHOWN = 60
_TRUE = ("true", "yes", "on")
_FALSE = ("false", "no", "off")
_TEMPLATE = re.compile(r"\{\{\s*\.?([A-Za-z_][A-Za-z0-9_.]{0,60})\s*\}\}", re.ASCII)
_HELD = re.compile("\ue000([A-Za-z0-9_.]+)\ue001")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,12})?", re.ASCII)


def shown(text: object) -> str:
    """Somebody's value in one short line."""
    line = "".join(character if character.isprintable() else " " for character in str(text))
    return line if len(line) <= LONGEST_SHOWN else f"{line[: LONGEST_SHOWN - 1]}…"


class Value:
    """One value of the file: a mapping, a list, a scalar as its text, or nothing.

    Attributes:
        source: the file.
        path: the keys that lead here, with dots.
        line: where it stands, from 1; 0 if that is not known.
        content: children by key, children in order, the text, or ``None`` for nothing.
        folded: whether keys are looked up in any case.
        was_read: whether somebody asked for it.
        is_settled: whether somebody said what becomes of all of it.
    """

    def __init__(
        self, source: Path, path: str, line: int, content: "dict[str, Value] | list[Value] | str | None"
    ) -> None:
        """Made by ``read_documents``."""
        self.source = source
        self.path = path
        self.line = line
        self.content = content
        self.folded = False
        self.was_read = False
        self.is_settled = False

    @property
    def place(self) -> str:
        """Where this stands, for the reader of a table."""
        return f"{self.path or 'the file'} (line {self.line})" if self.line else self.path or "the file"

    def fault(self, what: str, hint: str) -> ConfigError:
        """A complaint about this value."""
        where = f"{self.source}:{self.line}" if self.line else f"{self.source}"
        return ConfigError(f"{where}: {self.path + ': ' if self.path else ''}{what}", hint)

    def get(self, key: str) -> "Value | None":
        """The child of that key, which now counts as read; ``None`` where there is none, or nothing in it."""
        child = self.child(key)
        return None if child is None or child.content is None else child

    def child(self, key: str) -> "Value | None":
        """The same, where "nothing" has a meaning of its own."""
        for name, child in self.mapping().items():
            if name == key or (self.folded and name.casefold() == key.casefold()):
                child.was_read = True
                return child
        return None

    def need(self, key: str, hint: str) -> "Value":
        """The child of that key, which must be there."""
        found = self.get(key)
        if found is None:
            raise self.fault(f"{key} is missing", hint)
        return found

    def mapping(self) -> "Mapping[str, Value]":
        """All children by key, without reading them. Nothing is an empty mapping."""
        if self.content is None:
            return {}
        if not isinstance(self.content, dict):
            raise self.fault("must be a mapping of keys to values", "check its indentation")
        return self.content

    def entries(self) -> "Iterator[tuple[str, Value]]":
        """All children by key; they count as read."""
        for name, child in self.mapping().items():
            child.was_read = True
            yield name, child

    def items(self) -> "Sequence[Value]":
        """All children in order; they count as read. Nothing is an empty list, and a lone scalar a list of one."""
        if self.content is None:
            return ()
        if isinstance(self.content, str):
            return (self,)
        if not isinstance(self.content, list):
            raise self.fault("must be a list", "put a dash before each of its items")
        for child in self.content:
            child.was_read = True
        return self.content

    def text(self) -> str:
        """A scalar as it was written, without quotes."""
        if not isinstance(self.content, str):
            raise self.fault("must be a single value", "write it on one line, without dashes or keys below it")
        return self.content

    def number(self) -> Decimal:
        """A number, exactly as it was written."""
        text = self.text().strip()
        self._refuse_template(text)
        if _DECIMAL.fullmatch(text) is None:
            raise self.fault(f'"{shown(text)}" is no plain number', "write digits, such as 2 or 0.5")
        try:
            return Decimal(text)
        except InvalidOperation:
            raise self.fault(f'"{shown(text)}" is no number', "write digits, such as 2 or 0.5") from None

    def integer(self, least: int, most: int) -> int:
        """A whole number within bounds."""
        number = self.number()
        if number != number.to_integral_value():
            raise self.fault(f"{number} is no whole number", f"write one from {least} to {most}")
        if not least <= number <= most:
            raise self.fault(f"{int(number)} is outside {least} .. {most}", f"choose one from {least} to {most}")
        return int(number)

    def boolean(self) -> bool:
        """True or false, in the words that YAML has for them."""
        text = self.text().strip().lower()
        self._refuse_template(text)
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        raise self.fault(f'"{shown(text)}" is neither true nor false', "write true or false")

    def _refuse_template(self, text: str) -> None:
        if found := _TEMPLATE.search(text):
            name = found[1]
            raise self.fault(f"is still the template {{{{.{name}}}}}", f"give it a value: --set {name}=VALUE")

    @property
    def is_mapping(self) -> bool:
        """Whether it has keys."""
        return isinstance(self.content, dict)

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return isinstance(self.content, list)

    def skip(self) -> "Value":
        """Count all of it as read: somebody has said what becomes of it as a whole."""
        self.was_read = self.is_settled = True
        return self

    def unread(self) -> "Iterator[Value]":
        """The topmost values that nobody has read."""
        if self.is_settled:
            return
        children = self.content if isinstance(self.content, list) else ()
        if isinstance(self.content, dict):
            children = list(self.content.values())
        for child in children:
            if child.was_read:
                yield from child.unread()
            else:
                yield child


def read_text(data: bytes, source: Path) -> str:
    """The file's text.

    Raises:
        ConfigError: it is too large, empty, or no UTF-8.
    """
    if len(data) > LARGEST_BYTES:
        raise ConfigError(f"{source}: is larger than 256 KiB", "name the job's description, not its data")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise ConfigError(f"{source}: is not UTF-8 text (byte {fault.start})", "save it as UTF-8") from None
    if not text.strip():
        raise ConfigError(
            f"{source}: is empty", "there is nothing in it to import; name the file that says what to run"
        )
    return text


def read_documents(text: str, source: Path, *, values: Mapping[str, str] | None = None) -> tuple[Value, ...]:
    """All documents of a YAML or JSON text.

    Args:
        text: what the file holds.
        source: the file, for complaints.
        values: what stands for ``{{.name}}``; given at all, such marks are allowed where YAML would read a mapping.

    Raises:
        ConfigError: it is no YAML, a key stands twice, or it is larger than anybody writes.
    """
    if values is not None:
        text = _TEMPLATE.sub("\ue000\\1\ue001", text)
    if text.lstrip()[:1] == "{":
        # JSON may be indented by tabs and YAML may not; inside JSON's own strings they cannot stand.
        text = text.replace("\t", " ")
    try:
        _bound(text, source)
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        raise ConfigError(f"{source}{_line_of(fault)}: is no valid YAML: {_words_of(fault)}", _HINT) from None
    builder = _Builder(source, values or {})
    return tuple(builder.build(node, "", 0) for node in nodes if node is not None)


_HINT = "put it right there; indentation with spaces, and quotes around text that begins with a special character"


def _bound(text: str, source: Path) -> None:
    """Go once through what the parser sees, which keeps nothing, and stop where it gets too much."""
    depth = aliases = documents = 0
    for values, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader), start=1):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        for count, most, what in (
            (depth, DEEPEST, "levels deep"),
            (aliases, MOST_ALIASES, "aliases"),
            (values, MOST_VALUES, "values"),
            (documents, MOST_DOCUMENTS, "documents"),
        ):
            if count > most:
                where = f"{source}:{event.start_mark.line + 1}"
                raise ConfigError(f"{where}: more than {most} {what}", "no job's description needs so many")


def _line_of(fault: Exception) -> str:
    mark = getattr(fault, "problem_mark", None)
    return "" if mark is None else f":{mark.line + 1}"


def _words_of(fault: Exception) -> str:
    return shown(getattr(fault, "problem", None) or getattr(fault, "reason", None) or "it cannot be read")


class _Builder:
    """Makes values of the library's nodes. It counts what it makes, so that aliases cannot multiply it."""

    def __init__(self, source: Path, values: Mapping[str, str]) -> None:
        self.source = source
        self.values = values
        self.made = 0

    def build(self, node: Any, path: str, depth: int) -> Value:
        self.made += 1
        line = node.start_mark.line + 1
        here = Value(self.source, path, line, None)
        if self.made > MOST_VALUES or depth > DEEPEST:
            raise here.fault("aliases make it larger than anybody writes", "write out what is meant")
        if isinstance(node, yaml.ScalarNode):
            here.content = None if node.tag == "tag:yaml.org,2002:null" else self._text(node.value)
        elif isinstance(node, yaml.SequenceNode):
            here.content = [
                self.build(child, f"{path}[{number}]", depth + 1) for number, child in enumerate(node.value)
            ]
        else:
            here.content = self._mapping(here, node, path, depth)
        return here

    def _mapping(self, here: Value, node: Any, path: str, depth: int) -> dict[str, Value]:
        merged: dict[str, Value] = {}
        own: dict[str, Value] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise here.fault("a key is a single word", "quote values that begin with a brace or a bracket")
            name = self._text(key.value)
            made = self.build(child, f"{path}.{shown(name)}" if path else shown(name), depth + 1)
            made.line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                for below in made.items() if made.is_list else (made,):
                    merged = {**below.mapping(), **merged}
            elif name in own:
                raise made.fault("stands twice", "remove one of the two")
            else:
                own[name] = made
        return {**merged, **own}

    def _text(self, text: str) -> str:
        """A scalar's text: templates filled in, and halves of characters that JSON may hold made whole or replaced."""
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return _HELD.sub(lambda found: self.values.get(found[1], f"{{{{.{found[1]}}}}}"), whole)
