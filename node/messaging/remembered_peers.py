"""Whom this node was connected with, on disk: so that it finds the network again though every bootstrap node is gone.

A file of hearsay: only addresses that are worth a dial. It is bounded, and one that is broken is as good as none.
"""

import contextlib
import json
from pathlib import Path

from hansa.node.network.peers import MAX_ADDR_CHARS, MAX_ADDRS
from hansa.proto.errors import ProtocolError
from hansa.proto.peer_id import parse_peer_id

FILE_NAME = "peers.json"
MOST_PEERS = 64
MAX_FILE_BYTES = 256 << 10

Peers = tuple[tuple[str, tuple[str, ...]], ...]


def load_peers(data_dir: Path) -> Peers:
    """Peers and their addresses, the best first; none where the file is missing or is not what it should be."""
    try:
        with (data_dir / FILE_NAME).open("rb") as file:
            told = json.loads(file.read(MAX_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return ()
    if not isinstance(told, list):
        return ()
    return tuple(entry for entry in map(_entry, told[:MOST_PEERS]) if entry is not None)


def _entry(told: object) -> tuple[str, tuple[str, ...]] | None:
    match told:
        case {"peer_id": str(peer_id), "addrs": list(addrs)}:
            sound = [addr for addr in addrs if isinstance(addr, str) and 0 < len(addr) <= MAX_ADDR_CHARS]
            with contextlib.suppress(ProtocolError):
                parse_peer_id(peer_id)
                return peer_id, tuple(sound[:MAX_ADDRS])
    return None


def save_peers(data_dir: Path, peers: Peers) -> None:
    """Write the file anew. Without any peers the old one stays: a node that is cut off must not forget its way back."""
    if not peers:
        return
    told = [{"peer_id": peer_id, "addrs": list(addrs[:MAX_ADDRS])} for peer_id, addrs in peers[:MOST_PEERS]]
    target = data_dir / FILE_NAME
    draft = target.with_suffix(".new")
    # A full disk costs the memory of some addresses and nothing else.
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(told, indent=1), encoding="utf-8")
        draft.replace(target)
