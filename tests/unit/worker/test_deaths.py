"""Ends of processes that are not ours to wait for."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from hansa.worker.deaths import UNKNOWN, Deaths, words_for

GRANDCHILD = """
import os, signal, sys
if sys.argv[1] == "ignore":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)   # as raylet does it: the kernel reaps at once
pid = os.fork()
if pid == 0:
    sys.stdin.close()
    signal.pause()
print(pid, flush=True)
sys.stdin.read()
"""


def kernel_tells_status():
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)))) >= (6, 15)


@pytest.fixture(params=["ignore", "leave"])
def grandchild(request):
    parent = subprocess.Popen(
        [sys.executable, "-c", GRANDCHILD, request.param], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(parent.stdout.readline())
    try:
        yield request.param, pid
    finally:
        parent.communicate(b"")


class Told:
    """What the thread told, as it tells it."""

    def __init__(self):
        self.names = []
        self.told = threading.Event()

    def __call__(self, name, how):
        self.names.append((name, how))
        self.told.set()


def test_a_process_that_is_killed_is_told_with_the_signal(grandchild):
    reaped_by, pid = grandchild
    told = Told()
    deaths = Deaths(told)
    deaths.watch("worker 0", pid)
    assert deaths.how("worker 0", within_s=0.2) is None
    os.kill(pid, signal.SIGSEGV)
    assert told.told.wait(5)
    known = reaped_by == "leave" or kernel_tells_status()
    assert told.names == [("worker 0", "was killed by SIGSEGV" if known else UNKNOWN)]
    assert deaths.how("worker 0") == told.names[0][1]


def test_a_process_that_is_gone_already_is_told_at_once():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    told = Told()
    Deaths(told).watch("worker 0", process.pid)
    assert told.names == [("worker 0", UNKNOWN)]


def test_where_there_are_no_descriptors_of_processes_they_are_looked_at(monkeypatch):
    monkeypatch.setattr(os, "pidfd_open", raise_not_implemented)
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(3)"], stdin=subprocess.PIPE
    )
    told = Told()
    Deaths(told).watch("worker 0", process.pid)
    process.stdin.close()
    assert told.told.wait(5)
    assert told.names == [("worker 0", "exited with status 3")]
    process.wait()


def test_a_status_has_words():
    assert words_for(3 << 8) == "exited with status 3"
    assert words_for(9) == "was killed by SIGKILL"
    assert words_for(11 | 128) == "was killed by SIGSEGV"
    assert words_for(50) == "was killed by signal 50"


def raise_not_implemented(_pid):
    raise OSError("no such system call")
