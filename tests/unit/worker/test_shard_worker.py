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


@pytest.mark.parametrize(("line", "times"), [("a frame of it\n", 2_000), ("x", 20_000)])
def test_of_a_long_fault_the_end_is_kept_behind_a_traceback_s_first_line(tmp_path, line, times):
    told = fault_of(ValueError(line * times + "the very end"), tmp_path)[1]
    assert told.startswith("Traceback (most recent call last):\n" + line.strip())
    assert told.endswith("the very end\n")
    assert len(told) < 8_000
