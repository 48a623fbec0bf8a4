"""Whether what a provider hands over as a checkpoint is one: looked at before it takes the place of the last good one.

A state that nobody could go on from costs the shard all its work if it is believed. So it is decoded as strictly as in
a sandbox, must say of itself what its provider said of it, and may not hold NaN where the one before held numbers. What
a lie in plausible numbers does to a training nobody can see here.
"""

from pathlib import Path
from typing import Any

import numpy as np

from hansa.proto.errors import ProtocolError
from hansa.proto.tensors import Array, Tensors, put_together, read_tensors
from hansa.scheduler.job_state import Checkpoint

BLOCK = 1 << 20


def fault_of(path: Path, announced: Checkpoint, before: Path | None) -> str:
    """Why this file is no checkpoint to go on from, in words; empty if nothing is wrong with it.

    Args:
        path: the file, which is read where it lies and never whole.
        announced: what its provider said of it.
        before: the file of the checkpoint that is held now.

    Raises:
        OSError: this machine cannot read it now, which says nothing of the checkpoint.
    """
    try:
        return _fault_of(path, announced, before)
    except ProtocolError as fault:
        return f"it cannot be read: {fault.why}"
    except FileNotFoundError:
        return "it cannot be read: it was fetched and is gone again"
    except OSError:
        raise
    except Exception as fault:  # noqa: BLE001 - see below
        # Whatever a stranger's bytes bring about: they are to cost a checkpoint, not the daemon that looks at them.
        return f"it cannot be read: {type(fault).__name__}"


def _fault_of(path: Path, announced: Checkpoint, before: Path | None) -> str:
    tensors = _mapped(path)
    saved = put_together(tensors)
    if not isinstance(saved, dict) or "state" not in saved:
        return "it is no checkpoint of a run"
    said = saved.get("round"), saved.get("step")
    # An array in such a place can be compared with no number, and has no truth.
    if any(type(number) is not int for number in said) or said != (announced.round, announced.step):
        return "it is of another step or round than its provider said"
    spoilt = sorted(name for name, array in tensors.arrays.items() if _holds_nan(array))
    if spoilt and before is not None:
        earlier = _arrays_of(before)
        new = [name for name in spoilt if name in earlier and not _holds_nan(earlier[name])]
        if new:
            return f"{new[0][:100]} holds NaN, and in the checkpoint before it held numbers"
    return ""


def _mapped(path: Path) -> Tensors:
    if path.stat().st_size == 0:
        return read_tensors(b"")
    mapped: Any = np.memmap(path, dtype=np.uint8, mode="r")
    return read_tensors(memoryview(mapped))


def _arrays_of(path: Path) -> dict[str, Array]:
    try:
        return dict(_mapped(path).arrays)
    except (ProtocolError, OSError):
        return {}


def _holds_nan(array: Array) -> bool:
    if array.dtype.kind != "f":
        return False
    flat = array.reshape(-1)
    return any(bool(np.isnan(flat[at : at + BLOCK]).any()) for at in range(0, flat.size, BLOCK))
