"""Every reader of strangers' bytes, on sound bytes with something wrong about them: none raises what nobody catches."""

import random

import pytest
from hostile.readers import READERS, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.peer_frames import bent

SEEDS = seeds()
EXAMPLES = 60


@pytest.mark.parametrize("name", READERS)
def test_bent_bytes_are_read_or_refused(name):
    @settings(max_examples=EXAMPLES, database=None)
    @given(st.sampled_from(SEEDS[name]), st.integers(0, (1 << 32) - 1))
    def read(seed: bytes, number: int) -> None:
        READERS[name](bent(seed, random.Random(number)))

    read()


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_are_read_or_refused(name):
    @settings(max_examples=EXAMPLES, database=None)
    @given(st.binary(max_size=300))
    def read(data: bytes) -> None:
        READERS[name](data)

    read()


@pytest.mark.parametrize("name", READERS)
def test_sound_bytes_are_read(name):
    for seed in SEEDS[name]:
        READERS[name](seed)
