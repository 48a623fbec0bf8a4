"""What the members of a gang are told of each other is read to the letter, since a job's code can see it."""

import json
from dataclasses import asdict, replace

import pytest

from hansa.proto.errors import Malformed
from hansa.proto.gang import MOST_MEMBERS, Gang, read_gang, read_gang_text

GANG = Gang(place=1, workers=(2, 1), gpus=(1, 0), token="0f" * 32)


def test_a_gang_is_read_as_it_was_written() -> None:
    assert read_gang_text(json.dumps(asdict(GANG))) == GANG
    most = replace(GANG, workers=(1,) * MOST_MEMBERS, gpus=(0,) * MOST_MEMBERS)
    assert read_gang(asdict(most)) == most


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": (), "gpus": (), "place": 0},
        {"workers": (1,), "gpus": (1,), "place": 0},
        {"workers": (1,) * (MOST_MEMBERS + 1), "gpus": (0,) * (MOST_MEMBERS + 1)},
        {"gpus": (1,)},
        {"workers": (0, 1)},
        {"workers": (1, 4097)},
        {"gpus": (-1, 0)},
        {"gpus": (True, 0)},
        {"workers": ("1", 1)},
        {"workers": (1.0, 1)},
        {"place": 2},
        {"place": -1},
        {"place": True},
        {"token": "0F" * 32},
        {"token": "0f" * 31},
        {"token": None},
        {"workers": None},
    ],
)
def test_a_gang_that_cannot_be_is_none(changes: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        read_gang({**asdict(GANG), **changes})
