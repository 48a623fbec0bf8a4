"""The requirements language as text: its tokens and terms, and complaints that point at the place.

A text is terms joined by ``and``, commas or new lines. A term is a set of devices (``8x H100``, several with ``or``
between them), or a word, an operator and a value: one, a list in brackets, or a range ``A..B``. What the words mean is
none of this module's business.
"""

import re
from dataclasses import dataclass
from typing import Final

LONGEST_TEXT: Final = 4_096
MOST_TERMS: Final = 64
MOST_VALUES: Final = 64
_TOKEN = re.compile(
    r"""(?P<newline>\n)|(?P<space>[^\S\n]+)|(?P<text>"[^"\n]*"|'[^'\n]*')|(?P<operator><=|>=|==|!=|[=<>≤≥≠])
    |(?P<mark>\.\.|[,()\[\]])|(?P<word>(?:(?!\.\.)[^\s,()\[\]<>=!≤≥≠"'])+)""",
    re.VERBOSE,
)
_OPERATORS: Final = {"==": "=", "≤": "<=", "≥": ">=", "≠": "!="}
_CLOSING: Final = {"(": ")", "[": "]"}
_JOINING: Final = ("and", "or")


class NeedsError(ValueError):
    """A text is no sentence of the requirements language.

    Attributes:
        token: what it is about; empty at the text's end.
        position: where that begins in the text, counted from 0.
        why: what is wrong, without the token.
        hint: what to write instead.
        text: the whole text.
    """

    def __init__(self, token: str, position: int, why: str, hint: str, text: str = "") -> None:
        """One complaint; the sentence of the exception names the token."""
        super().__init__(f"{token[:60]!r} {why}" if token else why)
        self.token = token
        self.position = position
        self.why = why
        self.hint = hint
        self.text = text

    @property
    def shown(self) -> str:
        """The line it stands in, and a line with a mark under it."""
        begin = self.text.rfind("\n", 0, self.position) + 1
        end = self.text.find("\n", begin)
        line = self.text[begin : end if end >= 0 else len(self.text)].replace("\t", " ")
        at = self.position - begin
        skipped = max(0, at - 60)
        line = ("…" if skipped else "") + line[skipped : skipped + 100]
        return f"{line}\n{' ' * (at - skipped + bool(skipped))}{'^' * max(1, min(len(self.token), 40))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A piece of the text.

    Attributes:
        sort: ``"word"``, ``"text"`` (without its quotes), ``"operator"``, ``"mark"``, ``"newline"`` or ``"end"``.
        value: what it is.
        position: where it begins.
    """

    sort: str
    value: str
    position: int

    @property
    def joins(self) -> str:
        """``"and"`` or ``"or"`` if it is one of these."""
        value = self.value.casefold()
        return value if self.sort == "word" and value in _JOINING else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value as it was written, and where."""

    text: str
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A word, an operator and its values.

    Attributes:
        name: the word; empty for sets of devices, whose texts are the values.
        operator: ``"="``, ``"!="``, ``"<"``, ``"<="``, ``">"``, ``">="``, ``"in"``, ``"not in"`` or ``".."``, a range.
        values: of a range its two ends, an empty text where one is open.
    """

    name: Value
    operator: str
    values: tuple[Value, ...]


def terms_of(text: str) -> tuple[Term, ...]:
    """The terms of a text in their order.

    Raises:
        NeedsError: it is no such text.
    """
    if len(text) > LONGEST_TEXT:
        raise NeedsError("", 0, f"the text is longer than {LONGEST_TEXT} characters", "say less", text[:200])
    return _Reader(text).terms()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._split())
        self.at = 0

    def _split(self) -> list[Token]:
        found: list[Token] = []
        position = 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                character = self.text[position]
                hint = "close the quotes" if character in "\"'" else "write != for is not"
                raise NeedsError(character, position, "cannot be read here", hint, self.text)
            sort = match.lastgroup or ""
            value = match[0][1:-1] if sort == "text" else _OPERATORS.get(match[0], match[0])
            if sort != "space":
                found.append(Token(sort=sort, value=value, position=position))
            position = match.end()
        found.append(Token(sort="end", value="", position=len(self.text)))
        return found

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def fault(self, token: Token, why: str, hint: str) -> NeedsError:
        return NeedsError(token.value, token.position, why, hint, self.text)

    def take(self) -> Token:
        token = self.tokens[self.at]
        self.at += token.sort != "end"
        return token

    def terms(self) -> tuple[Term, ...]:
        found: list[Term] = []
        while True:
            while self.next.sort == "newline" or self.next.joins == "and" or self.next.value == ",":
                self.take()
            if self.next.sort == "end":
                return tuple(found)
            if len(found) == MOST_TERMS:
                raise self.fault(self.next, f"comes after {MOST_TERMS} terms, and more are not read", "say less")
            found.append(self._term())
            self._end_of_term()

    def _end_of_term(self) -> None:
        token = self.next
        if token.sort in ("newline", "end") or token.joins == "and" or token.value == ",":
            return
        if token.joins == "or":
            hint = "for one word write a list: region in (de, fr)"
            raise self.fault(token, "can stand only between sets of devices", hint)
        raise self.fault(token, "is not expected here", "join terms with and, a comma or a new line")

    def _term(self) -> Term:
        token = self.next
        if token.sort not in ("word", "text") or token.joins:
            raise self.fault(token, "is not expected here", "a term begins with a word, such as vram, or with devices")
        operator = self._operator_at(self.at + 1) if token.sort == "word" else ""
        if not operator:
            return self._devices()
        name = self.take()
        operator = self._take_operator()
        return self._values(Value(text=name.value, position=name.position), operator)

    def _operator_at(self, at: int) -> str:
        token = self.tokens[min(at, len(self.tokens) - 1)]
        if token.sort == "operator":
            return token.value
        if token.sort != "word":
            return ""
        value = token.value.casefold()
        if value == "not":
            following = self.tokens[min(at + 1, len(self.tokens) - 1)]
            return "not in" if following.sort == "word" and following.value.casefold() == "in" else ""
        return {"in": "in", "notin": "not in"}.get(value, "")

    def _take_operator(self) -> str:
        operator = self._operator_at(self.at)
        token = self.take()
        if token.value.casefold() == "not":
            self.take()
        return operator

    def _devices(self) -> Term:
        sets = [self._value()]
        while True:
            ahead = self.at
            while self.tokens[ahead].sort == "newline":
                ahead += 1
            if self.tokens[ahead].joins != "or":
                break
            self.at = ahead + 1
            while self.next.sort == "newline":
                self.take()
            sets.append(self._value())
            if len(sets) > MOST_VALUES:
                raise self.fault(self.next, f"comes after {MOST_VALUES} sets of devices", "name families of models")
        return Term(name=Value(text="", position=sets[0].position), operator="in", values=tuple(sets))

    def _values(self, name: Value, operator: str) -> Term:
        token = self.next
        if token.value in _CLOSING and token.sort == "mark":
            if operator not in ("in", "not in"):
                raise self.fault(token, "begins a list, which needs in or not in", f"{name.text} in (...)")
            return Term(name=name, operator=operator, values=self._list())
        low = Value(text="", position=token.position) if self._at_range() else self._value()
        if not self._at_range():
            return Term(name=name, operator=operator, values=(low,))
        dots = self.take()
        if operator not in ("in", "="):
            raise self.fault(dots, "makes a range, which needs in", f"{name.text} in A..B")
        ends = self.next.sort in ("newline", "end") or self.next.value == "," or bool(self.next.joins)
        high = Value(text="", position=self.next.position) if ends else self._value()
        if not low.text and not high.text:
            raise self.fault(dots, "is a range without ends", f"{name.text} in A..B, A.. or ..B")
        return Term(name=name, operator="..", values=(low, high))

    def _at_range(self) -> bool:
        return self.next.sort == "mark" and self.next.value == ".."

    def _list(self) -> tuple[Value, ...]:
        opening = self.take()
        found: list[Value] = []
        while True:
            while self.next.sort == "newline" or self.next.value == ",":
                self.take()
            if self.next.sort == "mark" and self.next.value == _CLOSING[opening.value]:
                self.take()
                break
            if self.next.sort == "end":
                raise self.fault(opening, "is never closed", f"close the list with {_CLOSING[opening.value]}")
            if len(found) == MOST_VALUES:
                raise self.fault(self.next, f"comes after {MOST_VALUES} values", "shorten the list")
            found.append(self._value())
        if not found:
            raise self.fault(opening, "begins an empty list", "name what is wanted, or remove the term")
        return tuple(found)

    def _value(self) -> Value:
        """Words next to each other are one value: ``New York``, ``64 GiB``, ``RTX 4090``."""
        token = self.next
        if token.sort == "text":
            self.take()
            return Value(text=token.value, position=token.position)
        if token.sort != "word" or token.joins:
            raise self.fault(token, "stands where a value is missing", "a value follows, such as 24 GB or (de, fr)")
        words: list[str] = []
        while self.next.sort == "word" and not self.next.joins:
            if words and self._operator_at(self.at + 1):
                hint = "join terms with and, a comma or a new line"
                raise self.fault(self.next, "begins a new term, and nothing stands before it that joins", hint)
            words.append(self.take().value)
        if self.next.sort == "text":
            raise self.fault(self.next, "is not expected here", "put the whole value into the quotes")
        return Value(text=" ".join(words), position=token.position)
