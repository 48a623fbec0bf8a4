"""How the sandboxes of one run on several machines find each other: who is who, and how much of the run is where.

Each of them finds this in a file, put there by its launcher. It is no message to strangers: it goes from the daemon
over the machines' own connections, and what a sandbox makes of it harms nobody but its run.
"""

import json
from dataclasses import dataclass

from hansa.proto.errors import Malformed

GANG_FILE = "/etc/hansa-gang.json"
INTERFACE = "gang0"
MOST_MEMBERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Gang:
    """One sandbox's place among those of its run.

    Attributes:
        place: which of them it is, from 0; the first is the head.
        workers: Ray workers at each place.
        gpus: GPUs at each place.
        token: keeps everybody else out of the run's Ray cluster; 32 bytes as hexadecimal digits.
    """

    place: int
    workers: tuple[int, ...]
    gpus: tuple[int, ...]
    token: str

    def place_of(self, worker: int) -> int:
        """Where a worker is: they are numbered through, place after place."""
        for place, count in enumerate(self.workers):
            if worker < count:
                return place
            worker -= count
        raise ValueError("the gang has no such worker")


def address_of(place: int) -> str:
    """The address of the member at this place, in the network that only the run's sandboxes are in."""
    return f"10.77.0.{place + 1}"


def gang_text(gang: Gang) -> str:
    """The file."""
    value = {"place": gang.place, "workers": gang.workers, "gpus": gang.gpus, "token": gang.token}
    return json.dumps(value)


def read_gang(value: object) -> Gang:
    """A gang out of plain values.

    Raises:
        Malformed: it is none.
    """
    try:
        gang = Gang(
            place=value["place"],  # type: ignore[index]
            workers=tuple(value["workers"]),  # type: ignore[index]
            gpus=tuple(value["gpus"]),  # type: ignore[index]
            token=value["token"],  # type: ignore[index]
        )
    except (TypeError, KeyError) as error:
        raise Malformed("gang", "is none") from error
    members = len(gang.workers)
    counts = (*gang.workers, *gang.gpus)
    if not all(type(count) is int and 0 <= count <= 4096 for count in counts) or 0 in gang.workers:
        raise Malformed("gang", "a count out of range")
    if not 1 < members <= MOST_MEMBERS or len(gang.gpus) != members:
        raise Malformed("gang", "too few or too many members")
    if type(gang.place) is not int or not 0 <= gang.place < members:
        raise Malformed("gang", "a place that there is not")
    if type(gang.token) is not str or len(gang.token) != 64 or set(gang.token) - set("0123456789abcdef"):
        raise Malformed("gang", "no token")
    return gang


def read_gang_text(text: str) -> Gang:
    """What the file says."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Malformed("gang", "no JSON") from error
    return read_gang(value)
