"""What is handed over as a checkpoint takes the place of the last good one only if a shard could go on from it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hansa.node.daemon import checkpoint_check
from hansa.node.daemon.checkpoint_check import fault_of
from hansa.proto.blob import blob_ref
from hansa.proto.tensors import encode_state
from hansa.scheduler.job_state import Checkpoint

WEIGHTS = np.arange(8.0)
SPOILT = np.array([1.0, np.nan] * 4)


def kept(state: Any, **changes: Any) -> bytes:
    return encode_state({"round": 2, "step": 7, "state": state, **changes})


def fault(directory: Path, data: bytes, before: bytes | None = None) -> str:
    path, earlier = directory / "new", directory / "before"
    path.write_bytes(data)
    if before is not None:
        earlier.write_bytes(before)
    announced = Checkpoint(round=2, step=7, blob=blob_ref(data))
    return fault_of(path, announced, earlier if before is not None else None)


def test_a_sound_checkpoint_has_no_fault(tmp_path: Path) -> None:
    assert fault(tmp_path, kept({"w": WEIGHTS})) == ""
    assert fault(tmp_path, kept(None, tasks={"done": [1, 2]}), kept({"w": WEIGHTS})) == ""


class Touch:
    """Would leave a file wherever it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/hansa-was-unpickled"),)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pickle.dumps(Touch()),
        b"\xff" * 4096,
        kept({"w": WEIGHTS})[:-1],
        kept({"w": WEIGHTS}) + b"x",
        kept({"w": WEIGHTS}).replace(b'"F64"', b'"OBJ"'),
        kept({"w": WEIGHTS}).replace(b'"F64"', b'"F32"'),
        (1 << 62).to_bytes(8, "little") + b"{}",
    ],
    ids=["empty", "pickle", "noise", "short", "long", "dtype", "other dtype", "absurd size"],
)
def test_what_is_no_state_is_refused_in_words(tmp_path: Path, data: bytes) -> None:
    assert fault(tmp_path, data).startswith("it cannot be read")
    assert not Path("/tmp/hansa-was-unpickled").exists()


def test_a_state_that_is_no_checkpoint_or_of_another_step_is_refused(tmp_path: Path) -> None:
    assert fault(tmp_path, encode_state({"w": WEIGHTS})) == "it is no checkpoint of a run"
    assert fault(tmp_path, encode_state([1, 2])) == "it is no checkpoint of a run"
    for lie in ({"step": 8}, {"round": 3}, {"step": "7"}, {"step": None}):
        assert fault(tmp_path, kept({"w": WEIGHTS}, **lie)).startswith("it is of another step")


@pytest.mark.parametrize("name", ["round", "step"])
@pytest.mark.parametrize("size", [0, 1, 2])
def test_an_array_where_a_number_belongs_is_refused_and_ends_nothing(tmp_path: Path, name: str, size: int) -> None:
    lie = {name: np.full(size, {"round": 2, "step": 7}[name])}
    assert fault(tmp_path, kept({"w": WEIGHTS}, **lie)).startswith("it is of another step")


@pytest.mark.parametrize("lie", [True, 2.0])
def test_what_only_equals_a_number_is_none(tmp_path: Path, lie: object) -> None:
    path = tmp_path / "new"
    path.write_bytes(encode_state({"round": lie, "step": lie, "state": None}))
    announced = Checkpoint(round=int(lie == 2) + 1, step=int(lie == 2) + 1, blob=blob_ref(b""))
    assert fault_of(path, announced, None).startswith("it is of another step")


def test_whatever_goes_wrong_while_bytes_are_judged_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(_tensors: object) -> None:
        raise KeyError("something nobody thought of")

    monkeypatch.setattr(checkpoint_check, "put_together", breaks)
    assert fault(tmp_path, kept({"w": WEIGHTS})) == "it cannot be read: KeyError"


def test_weights_that_became_nan_are_refused_and_what_always_held_nan_is_not(tmp_path: Path) -> None:
    spoilt, sound = kept({"w": SPOILT}), kept({"w": WEIGHTS})
    assert fault(tmp_path, spoilt, sound) == "state/w holds NaN, and in the checkpoint before it held numbers"
    assert fault(tmp_path, spoilt, spoilt) == "", "a job may mark what is missing so"
    assert fault(tmp_path, spoilt) == "", "there is nothing better to keep"
    assert fault(tmp_path, kept({"w": SPOILT.astype("<f2")}), sound) != ""
    assert fault(tmp_path, kept({"v": SPOILT}), sound) == ""
    assert fault(tmp_path, spoilt, b"the one before is gone") == ""


def test_a_nan_far_into_a_large_array_is_found(tmp_path: Path) -> None:
    large = np.zeros(3 << 20, dtype="<f4")
    before = kept({"w": large})
    large[-1] = np.nan
    assert "holds NaN" in fault(tmp_path, kept({"w": large}), before)
