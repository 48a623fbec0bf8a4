"""MIG: the slices that an NVIDIA GPU can be cut into, what they are called, and which device nodes open them.

A process may use a slice if it can open the card's own node and those of the slice's two capabilities: its GPU instance
and its compute instance. Which minor number belongs to which capability, the kernel module lists in a file.
"""

import re
from collections.abc import Mapping
from pathlib import Path

CAPABILITIES = Path("nvidia-caps/mig-minors")
"""Below /proc/driver."""
_LINE = re.compile(r"(gpu[0-9]{1,4}/gi[0-9]{1,4}/(?:ci[0-9]{1,4}/)?access) ([0-9]{1,8})")

_NAMED = re.compile(r"MIG ((?:[0-9]c\.)?[0-9]g\.[0-9]{1,4}gb\S{0,16})")


def read_capability_minors(file: Path) -> dict[str, int]:
    """Minor numbers by the capability's name, e.g. ``"gpu0/gi7/ci0/access"``; empty without the file."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    return {found[1]: int(found[2]) for line in lines if (found := _LINE.fullmatch(line.strip()))}


def slice_nodes(card_minor: int, ids: tuple[int, int], capability_minors: Mapping[str, int]) -> tuple[str, ...]:
    """The device nodes of a slice's two capabilities.

    Args:
        card_minor: the N of the card's ``/dev/nvidiaN``.
        ids: the slice's GPU instance and compute instance.
        capability_minors: as ``read_capability_minors`` gives it.

    Raises:
        LookupError: the kernel module does not list one of them.
    """
    names = (f"gpu{card_minor}/gi{ids[0]}/access", f"gpu{card_minor}/gi{ids[0]}/ci{ids[1]}/access")
    return tuple(f"/dev/nvidia-caps/nvidia-cap{capability_minors[name]}" for name in names)


def slice_profile(name: str, gpu_slices: int, compute_slices: int) -> str:
    """A slice's profile: as the driver's own name for it ends, ``"1g.10gb"``, or ``"1c.3g.40gb"`` for a part of one.

    Where the driver names only the card, the slices are counted and no memory is said: what the profiles are called
    does not follow from their memory (a 1g.18gb has 16 GiB).
    """
    if named := _NAMED.search(name):
        return named[1]
    return f"{gpu_slices}g" if compute_slices in (0, gpu_slices) else f"{compute_slices}c.{gpu_slices}g"
