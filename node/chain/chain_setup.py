"""The lines of ``config.toml`` that put a node on a chain, and how they get into a file beside all that is in it."""

import json
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hansa.node.chain.chain_dev import Deployed
from hansa.node.faults import ConfigError
from hansa.node.settings.config import FILE_NAME, parse_config
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


def with_values(text: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    """A config's text with other values for some keys. Lines stay where they are; missing ones come to their table."""
    lines = text.splitlines()
    for table, keys in values.items():
        start = next((at for at, line in enumerate(lines) if line.strip() == f"[{table}]"), None)
        if start is None:
            lines += ["", f"[{table}]"]
            start = len(lines) - 1
        for key, value in keys.items():
            end = next((at for at in range(start + 1, len(lines)) if lines[at].startswith("[")), len(lines))
            known = next((at for at in range(start + 1, end) if re.match(rf"{key}\s*=", lines[at])), None)
            line = f"{key} = {json.dumps(value)}"
            if known is not None:
                lines[known] = line
            else:
                while end > start + 1 and not lines[end - 1].strip():
                    end -= 1
                lines.insert(end, line)
    return "\n".join(lines) + "\n"


def put_on_chain(data_dir: Path, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the values into a data directory's config, whole or not at all, and only if the result reads well.

    Raises:
        ConfigError: there is no config, it cannot be written, or what would come of it does not read well.
    """
    file = data_dir / FILE_NAME
    try:
        text = with_values(file.read_text(encoding="utf-8"), values)
        parse_config(text, file)
        partial = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as fault:
        hint = f"make a node there first: hansa init --data {data_dir}"
        raise ConfigError(f"cannot write {file}: {fault.strerror}", hint) from None
