"""Which system a file is from, and the reader for it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hansa.node.faults import ConfigError
from hansa.node.jobs.import_akash import read_akash
from hansa.node.jobs.import_bacalhau import read_bacalhau, templates_in
from hansa.node.jobs.import_dstack import KINDS, read_dstack
from hansa.node.jobs.import_job import Draft
from hansa.node.jobs.import_prime import read_prime
from hansa.node.jobs.import_skypilot import read_skypilot
from hansa.node.jobs.import_vast import read_vast
from hansa.node.jobs.import_yaml import LONGEST_SHOWN, Value, read_documents, read_text

FORMATS = ("akash", "skypilot", "dstack", "bacalhau", "prime", "vast")
_LINES = ("prime", "vast")
"""Formats of one line, of which a file may hold several."""
_PRIME = re.compile(r"(?:^|;|\s)(?:gpu:[a-z_]+|cpu:cores|ram_mb|storage_gb)\s*=", re.ASCII)
_VAST = re.compile(
    r"^\s*(?:\$ *)?vast(?:ai|\.py)?\s+search\s|(?:^|\s)(?:gpu_name|gpu_ram|num_gpus|reliability|dph|compute_cap"
    r"|cuda_vers|disk_space|geolocation|inet_down|machine_id|cpu_arch|verified|rentable|datacenter|cpu_ram|driver_version|inet_up"
    r"|total_flops|direct_port_count|duration)\s*(?:[=<>!]|(?:not ?)?in\s)",
    re.ASCII | re.MULTILINE,
)
_SKYPILOT = ("resources", "run", "setup", "num_nodes", "workdir", "file_mounts", "envs")
_KNOWN = (
    "known are Akash's SDL, tasks of SkyPilot and dstack, jobs of Bacalhau, and what Prime Intellect and Vast.ai ask by"
)


def read_spec(
    data: bytes, source: Path, *, named: str = "", part: str = "", values: Mapping[str, str] | None = None
) -> Draft:
    """Read a file of any of the systems.

    Args:
        data: what the file holds.
        source: its name, for complaints.
        named: one of ``FORMATS``; empty to find out.
        part: which service, task or line of it is meant; empty if there is one only.
        values: what stands for ``{{.name}}`` in Bacalhau's.

    Raises:
        ConfigError: it is none of them, invalid there, or no job.
    """
    text = read_text(data, source)
    if named in _LINES or (not named and _is_lines(text, source)):
        value = _line(text, source, part)
        system = named or ("prime" if _PRIME.search(value.text()) else "vast")
        draft = read_prime(value) if system == "prime" else read_vast(value)
        draft.name = f"{source.stem}-{value.line}" if part else ""
        return draft
    templates = templates_in(text)
    try:
        documents = read_documents(text, source, values=(values or {}) if templates else None)
    except ConfigError as fault:
        if named:
            raise
        raise ConfigError(fault.what, f"{fault.hint}; if it is a file for hansa import at all: {_KNOWN}") from None
    if not documents or not documents[0].is_mapping:
        raise ConfigError(f"{source}: is of no known system", f"{_KNOWN}; name yours with --format")
    name = named or _system_of(documents, source)
    for given in values or {}:
        if given not in templates:
            raise ConfigError(f"{source}: has no template {{{{.{given}}}}}", f"it has {', '.join(templates) or 'none'}")
    if name == "skypilot":
        return read_skypilot(documents, part)
    if len(documents) > 1:
        raise documents[1].fault("is a second document, and one file is one job", "put it into a file of its own")
    if part and name != "akash":
        raise documents[0].fault("has no parts to choose from", "leave out --part")
    if name == "akash":
        return read_akash(documents[0], part)
    return read_dstack(documents[0]) if name == "dstack" else read_bacalhau(documents[0])


def _is_lines(text: str, source: Path) -> bool:
    """Whether most of its lines look like a query or a requirement string, and it is no mapping in YAML."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if 2 * sum(bool(_PRIME.search(line) or _VAST.search(line)) for line in lines) < max(len(lines), 1):
        return False
    try:
        documents = read_documents(text, source)
    except ConfigError:
        return True
    return not any(document.is_mapping for document in documents)


def _line(text: str, source: Path, part: str) -> Value:
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), start=1)}
    told = {number: line for number, line in lines.items() if line and not line.startswith("#")}
    if part:
        chosen = int(part) if part.isascii() and part.isdigit() and len(part) < 7 else 0
        if chosen not in told:
            raise ConfigError(
                f"{source}: has nothing in line {part[:LONGEST_SHOWN]}", "name a line by its number: --part 3"
            )
    elif len(told) == 1:
        chosen = next(iter(told))
    elif told:
        raise ConfigError(
            f"{source}: holds {len(told)} lines, and one query or requirement string is one job",
            f"choose one by its number: --part {next(iter(told))}",
        )
    else:
        raise ConfigError(f"{source}: holds comments only", "there is nothing in it to import")
    return Value(source, "", chosen, told[chosen])


def _system_of(documents: Sequence[Value], source: Path) -> str:
    keys = set(documents[0].mapping())
    folded = {key.casefold() for key in keys}
    if "tasks" in folded and folded & {"type", "name", "count"}:
        return "bacalhau"
    if {"services", "profiles"} <= keys or {"deployment", "profiles"} <= keys:
        return "akash"
    kind = documents[0].mapping().get("type")
    if kind is not None and isinstance(kind.content, str) and kind.content in KINDS:
        return "dstack"
    if any(set(document.mapping()) & set(_SKYPILOT) for document in documents):
        return "skypilot"
    raise ConfigError(f"{source}: is of no known system", f"{_KNOWN}; name yours with --format")
