"""The lines of ``config.toml`` that put a node on a chain, and how they get into a file beside all that is in it."""

import json
import os
import secrets
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from hansa.node.chain.chain_dev import Deployed
from hansa.node.faults import ConfigError
from hansa.node.secret_files import sync_directory
from hansa.node.settings.config import FILE_NAME, parse_config
from hansa.node.toml_reader import parse_toml
from hansa.proto.signing import checksum_address


def chain_values(url: str, deployed: Deployed) -> dict[str, dict[str, Any]]:
    """What a node's config must say to settle there, by table and key. A local chain is looked at often."""
    return {
        "settlement": {"backend": "evm"},
        "chain": {
            "rpc": [url],
            "chain_id": deployed.chain_id,
            "escrow": checksum_address(deployed.escrow),
            "token": checksum_address(deployed.token),
            "poll": "1 s",
        },
    }


def as_toml(values: Mapping[str, Mapping[str, Any]]) -> str:
    """The same as text, ready to paste."""
    blocks = []
    for table, keys in values.items():
        blocks.append("\n".join([f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]))
    return "\n\n".join(blocks) + "\n"


def with_values(text: str, values: Mapping[str, Mapping[str, Any]], file: Path) -> str:
    """A config's text with other values for some keys. Everything else stays: comments, layout, other keys.

    Args:
        text: as it stands in the file.
        values: by table and key.
        file: whose text it is, for complaints.

    Raises:
        ConfigError: it is no TOML, or cannot be changed without changing more.
    """
    parse_toml(text, file)
    wanted = tomllib.loads(text)
    try:
        # Behind a last line without an end the library would go on in that very line.
        document = tomlkit.parse(text if text.endswith("\n") else text + "\n")
        for table, keys in values.items():
            place, there = document.setdefault(table, tomlkit.table()), wanted.setdefault(table, {})
            for key, value in keys.items():
                # What says so already keeps its layout, and the comments inside of it.
                if there.get(key) != value:
                    place[key] = there[key] = value
        changed = _ended_alike(tomlkit.dumps(document), text)
        # The library edits, and Python's own reader judges: nothing is written that says anything else.
        is_right = tomllib.loads(changed) == wanted
    except (TOMLKitError, tomllib.TOMLDecodeError, TypeError, ValueError, KeyError, AttributeError):
        is_right = False
    if not is_right:
        lines = "; ".join(f"under [{table}]: {', '.join(keys)}" for table, keys in values.items())
        hint = f"edit it yourself ({lines}), or write those tables as [table] and a line for each key"
        raise ConfigError(f"{file}: is written in a way that this cannot change", hint)
    return changed


def _ended_alike(changed: str, before: str) -> str:
    """With lines that end as all lines ended before."""
    if before.count("\n") and before.count("\n") == before.count("\r\n"):
        return changed.replace("\r\n", "\n").replace("\n", "\r\n")
    return changed


def put_on_chain(data_dir: Path, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the values into a data directory's config, whole or not at all, and only if the result reads well.

    Raises:
        ConfigError: there is no config, it cannot be written, or what would come of it does not read well.
    """
    file = data_dir / FILE_NAME
    try:
        text = with_values(file.read_bytes().decode(), values, file)
        parse_config(text, file)
        # The owner may keep the file elsewhere; a link stays one.
        _replace(file.resolve(), text.encode())
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text", "save it as UTF-8") from None
    except OSError as fault:
        hint = f"make a node there first: hansa init --data {data_dir}"
        if file.exists():
            hint = "check the directory, the disk and the user"
        raise ConfigError(f"cannot write {file}: {fault.strerror}", hint) from None


def _replace(file: Path, content: bytes) -> None:
    """Put other content in a file's place, in one instant, with the owner, mode and attributes that it has."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            found, made = file.stat(), os.fstat(handle)
            if (found.st_uid, found.st_gid) != (made.st_uid, made.st_gid):
                os.fchown(handle, found.st_uid, found.st_gid)
            shutil.copystat(file, partial)
            stream.write(content)
            stream.flush()
            os.fsync(handle)
        partial.replace(file)
        sync_directory(file.parent)
    finally:
        partial.unlink(missing_ok=True)
