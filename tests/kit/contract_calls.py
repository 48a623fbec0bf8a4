"""Calls, answers and logs of a compiled contract, as its artefact's ABI says them; encoded by eth-abi."""

from dataclasses import dataclass
from typing import Any

from eth_abi import decode, encode

from hansa.node.chain.escrow_artefact import Artefact
from hansa.proto.keccak import keccak256

ERROR_SELECTOR = keccak256(b"Error(string)")[:4]


class Reverted(Exception):
    """A contract refused: the reason that it gave, empty for none."""


def abi_type(member: dict[str, Any]) -> str:
    """A parameter's type with tuples written out."""
    kind: str = member["type"]
    if kind.startswith("tuple"):
        inner = ",".join(abi_type(part) for part in member["components"])
        return f"({inner}){kind.removeprefix('tuple')}"
    return kind


def revert_reason(returned: bytes) -> str:
    """What a failed call's bytes say in words."""
    if returned[:4] == ERROR_SELECTOR:
        return str(decode(["string"], returned[4:])[0])
    return returned.hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """One event that a contract wrote."""

    name: str
    values: dict[str, Any]


class Contract:
    """A compiled contract's calls."""

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self._functions: dict[str, tuple[bytes, list[str], list[str]]] = {}
        self._events: dict[bytes, tuple[str, list[tuple[str, str, bool]]]] = {}
        self._made_with: list[str] = []
        for entry in artefact.abi:
            types = [abi_type(member) for member in entry.get("inputs", ())]
            if entry["type"] == "function":
                selector = keccak256(f"{entry['name']}({','.join(types)})".encode())[:4]
                outputs = [abi_type(member) for member in entry["outputs"]]
                self._functions[entry["name"]] = (selector, types, outputs)
            elif entry["type"] == "constructor":
                self._made_with = types
            elif entry["type"] == "event":
                topic = keccak256(f"{entry['name']}({','.join(types)})".encode())
                names = [member["name"] for member in entry["inputs"]]
                indexed = [member["indexed"] for member in entry["inputs"]]
                self._events[topic] = (entry["name"], list(zip(names, types, indexed, strict=True)))

    def creation(self, *arguments: Any) -> bytes:
        """What a deploying transaction carries."""
        return self.artefact.creation_code + encode(self._made_with, arguments)

    def call(self, name: str, *arguments: Any) -> bytes:
        """The bytes of a call."""
        selector, types, _ = self._functions[name]
        return selector + encode(types, arguments)

    def answer(self, name: str, returned: bytes) -> Any:
        """What a call answered: one value, or several, or none."""
        outputs = self._functions[name][2]
        values = decode(outputs, returned)
        return values[0] if len(values) == 1 else values

    def event(self, topics: list[bytes], data: bytes) -> EventLog | None:
        """What a log says; nothing when it is not one of this contract's."""
        if topics[0] not in self._events:
            return None
        name, members = self._events[topics[0]]
        plain = iter(decode([kind for _, kind, indexed in members if not indexed], data))
        marked = iter(topics[1:])
        values = {
            label: decode([kind], next(marked))[0] if indexed else next(plain) for label, kind, indexed in members
        }
        return EventLog(name=name, values=values)
