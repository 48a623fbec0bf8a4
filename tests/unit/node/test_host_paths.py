"""What strangers are told of this machine's directories: nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.isolation.host_paths import HIDDEN, without_host_paths

TOLD = [
    ("bwrap: Can't find source path /var/lib/hansa/runs/ab/code: No such file", f"{HIDDEN}: No such file"),
    ("[Errno 28] No space left on device: '/home/My Name/.hansa/trees/x'", f"device: {HIDDEN}"),
    ('open "/root/.config/containers/auth.json": denied', f"open {HIDDEN}: denied"),
    ("FATA[0000] loading /srv/h/policy.json (from /tmp/input-1/x)", f"loading {HIDDEN} (from {HIDDEN})"),
    ("no wheel at file:///srv/wheels/simple/one/", f"at {HIDDEN}"),
    ("/jobs-of-mine/x and /optional/x", f"{HIDDEN} and {HIDDEN}"),
    ("cp /data/a:/data/b", f"cp {HIDDEN}:{HIDDEN}"),
]
KEPT = [
    'File "/job/code/train.py", line 3, in main',
    "No such file: '/opt/wheels/requirements.txt'",
    "writing /work/rootfs/etc/passwd; /usr/bin/umoci; /proc/self; /dev/shm",
    "docker.io/library/python@sha256:ab and and/or 1/2 https://example.org/a/b",
    "a / b",
]


@pytest.mark.parametrize(("words", "told"), TOLD)
def test_a_path_of_the_host_is_left_out(words, told):
    shown = without_host_paths(words)
    assert told in shown
    for secret in ("/var/lib", "Name", "/root", "/srv", "/tmp", "jobs-of", "optional", "/data/a"):
        assert secret not in shown


@pytest.mark.parametrize("words", KEPT)
def test_what_is_the_same_everywhere_stays(words):
    assert without_host_paths(words) == words


@given(st.text(max_size=40), st.sampled_from([" ", "\n", "'", '"', "(", "=", "\t", ""]))
def test_whatever_stands_around_it_a_directory_is_not_told(around, before):
    assert "/home/owner" not in without_host_paths(f" {before}/home/owner/secret {around}")
