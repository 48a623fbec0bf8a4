"""What a gang's other machines left in their output directories, brought to the head, from where results are sent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hansa.proto.frames import MAX_CHUNK_BYTES, is_safe_path
from hansa.proto.gang import Gang

PIECES = 64
"""Chunks in one answer of another machine."""


def bring_outputs(ray: Any, actors: list[Any], gang: Gang, directory: Path, say: Callable[[str], None]) -> None:
    """Copy every file of the other places into the head's directory; what cannot be is said and left out.

    Args:
        ray: connected to the gang's cluster.
        actors: the run's workers, in the order of their numbers.
        gang: which of them are where.
        directory: the head's.
        say: puts a line into the run's log.
    """
    for place in range(1, len(gang.workers)):
        actor = actors[sum(gang.workers[:place])]
        for name, size_bytes in ray.get(actor.list_outputs.remote()):
            target = directory / name
            if not is_safe_path(name) or target.exists():
                say(f"output left out: {name[:200]} of another machine, since there is one of that name\n")
                continue
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    while file.tell() < size_bytes:
                        wanted = min(PIECES * MAX_CHUNK_BYTES, size_bytes - file.tell())
                        piece = ray.get(actor.read_output.remote(name, file.tell(), wanted))
                        if not piece:
                            break
                        file.write(piece)
            except OSError as error:
                target.unlink(missing_ok=True)
                say(f"output left out: {name[:200]} of another machine: {error.strerror}\n")
