"""Whose fault an exception out of a job's code is, in a word and in words."""

import pytest

from hansa.worker.shard_worker import fault_of


class OutOfMemoryError(RuntimeError):
    """What torch raises has this name."""


FAULTS = [
    (ValueError("no"), "user-exception", "ValueError: no"),
    (SystemExit(3), "user-exception", "exited with status 3"),
    (SystemExit("no data"), "user-exception", "exited with status 1: no data"),
    (SystemExit(), "user-exception", "exited with status 0"),
    (MemoryError("Unable to allocate 8 PiB"), "out-of-memory", "Unable to allocate 8 PiB"),
    (OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "out-of-memory", "Tried to allocate 20 GiB"),
    (RuntimeError("CUDA error: CUDA_ERROR_OUT_OF_MEMORY"), "out-of-memory", "a device had not the memory"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying"), "out-of-memory", "a device had not the memory"),
    (KeyboardInterrupt(), "user-exception", "KeyboardInterrupt"),
]


@pytest.mark.parametrize(("error", "kind", "words"), FAULTS, ids=[repr(fault[0])[:40] for fault in FAULTS])
def test_a_fault_has_a_kind_and_words(tmp_path, error, kind, words):
    told = fault_of(error, tmp_path)
    assert told[0] == kind
    assert words in told[1]
