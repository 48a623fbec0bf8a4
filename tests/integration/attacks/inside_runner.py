"""What a runner that was taken over says to the daemon. Runs in the runner's process."""

import array
import contextlib
import gc
import io
import json
import os
import pickle
import socket
import struct
import sys
import time
import zipfile

import msgpack

MIB = 1 << 20


def wire():
    """The runner's own, with its lock, so that its heartbeat does not come into the middle of ours."""
    return next(found for found in gc.get_objects() if type(found).__name__ == "Wire")


def say(*payloads):
    """Maps as frames, bytes as they are."""
    packed = b""
    for payload in payloads:
        packed += payload if isinstance(payload, bytes) else _framed(payload)
    mine = wire()
    with mine._frame_lock:
        mine._connection.sendall(packed)


def frame(name, **fields):
    return {"frame": name, **fields}


def whole(name, data, **fields):
    """A header and its chunks."""
    pieces = [frame("Chunk", data=data[at : at + MIB // 2]) for at in range(0, len(data), MIB // 2)]
    say(frame(name, size_bytes=len(data), **fields), *pieces)


def for_ever():
    """Nothing more comes from the runner's own code, but its heartbeat."""
    while True:
        time.sleep(1)


# What ends a run.


def garbage():
    say(b"\0\0\0\x10" + bytes(range(200, 216)))
    for_ever()


def two_gigabytes():
    say(b"\x7f\xff\xff\xff" + bytes(MIB))
    for_ever()


def array_without_end():
    say(b"\0\0\0\x20" + b"\xdd\xff\xff\xff\xff" * 6 + b"\xdd\xff")
    for_ever()


def nesting_without_end():
    say(struct.pack(">I", MIB) + b"\x91" * MIB)
    for_ever()


def path_outside():
    whole("Output", b"root::0:0::/:/bin/sh", path="../../../../etc/passwd")
    for_ever()


def thousand_and_one_files():
    for number in range(1002):
        say(frame("Output", path=f"f{number}", size_bytes=0))
    for_ever()


def daemons_own_words():
    say(frame("CheckpointStored", round=0, step=0))
    for_ever()


def end_of_another_kind():
    say(frame("Failed", kind="provider-owes-you", message="x"))
    for_ever()


# What ends it in the runner's own words.


def words():
    """As long as a message may be, in the widest characters, with everything that a terminal obeys."""
    controls = "\x1b[2J\x1b]52;c;aGFuc2E=\x07\x1b]8;;http://evil.example\x07\x9b31m\u202e\u2066\r\x00\b\x7f"
    say(frame("Failed", kind="user-exception", message=controls + "\U0001f4a9" * 2000))
    for_ever()


def finished_and_more():
    """It is over, and says so often, and then goes on to send results and noise."""
    say(frame("Started"), frame("Finished"), frame("Finished"))
    try:
        for number in range(2000):
            whole("Output", bytes(1000), path=f"late{number}")
            whole("Checkpoint", bytes(1000), round=number, step=number)
            say(frame("Failed", kind="user-exception", message="late"), b"\xff" * 1000)
    except OSError:
        os._exit(0)
    for_ever()


# What a run outlives.


def floods():
    """Much of everything that is allowed, and file descriptors with it; then a proper end."""
    say(*[frame("Heartbeat", progress=number, waiting=bool(number % 2)) for number in range(5000)])
    say(*[frame("Started") for _ in range(1000)], *[frame("Ready") for _ in range(1000)])
    many = [[f"{number:03}" + "m" * 60, 1.7e308] for number in range(32)]
    say(*[frame("Progress", step=2**63 - 1 - number, metrics=many) for number in range(1000)])
    say(frame("Progress", step=0, metrics=[["\u00e9" * 100, -0.0]]))
    log = ("\x1b[31m\x1b]0;owned\x07\u202eABC\u2028\r\x9b0m" + "\\" * 50 + "\n").encode() + b"\xff\xfe\xc3"
    say(*[frame("Log", stream="stderr", data=(log * 1000)[: 64 << 10]) for _ in range(100)])
    descriptors = array.array("i", [os.open("/dev/null", os.O_RDONLY)] * 200)
    beat = msgpack.packb(frame("Heartbeat", progress=1, waiting=False))
    mine = wire()
    for _ in range(50):
        # Kernels since 6.16 refuse them on the daemon's behalf.
        with mine._frame_lock, contextlib.suppress(PermissionError):
            mine._connection.sendmsg(
                [len(beat).to_bytes(4, "big") + beat], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
            )
    whole("Output", b"sound", path="sound.txt")
    whole("Output", b"sound again", path="sound.txt")
    say(frame("Finished"))
    for_ever()


class Touch:
    """Leaves a file wherever it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch /tmp/hansa-was-unpickled $HOME/hansa-was-unpickled",)


def poisons():
    """States, checkpoints and results that hurt whoever believes in their form."""
    pickled = pickle.dumps(Touch())
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", pickled)
        archive.writestr("zeros", bytes(64 * MIB))
    header = {"w": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    absurd = len(text).to_bytes(8, "little") + text + bytes(8)
    whole("Output", pickled, path="model.pkl")
    whole("Output", zipped.getvalue(), path="model.pt")
    whole("Output", absurd, path="model.safetensors")
    whole("Output", b"#!/bin/sh\ntouch /tmp/hansa-was-unpickled\n", path=".bashrc")
    whole("Output", b"cos\nsystem\n(S'touch /tmp/hansa-was-unpickled'\ntR.", path="__init__.py")
    whole("Sync", zipped.getvalue(), round=0, weight=1e9)
    whole("Checkpoint", pickled, round=2**40, step=2**63 - 1)
    say(frame("Finished"))
    for_ever()


def deaf():
    """Become a program that gives to a round, says that it lives, and never reads its socket again."""
    os.set_inheritable(int(sys.argv[1]), True)
    state = _state()
    first = b"".join(
        _framed(f) for f in (frame("Sync", round=0, weight=1.0, size_bytes=len(state)), frame("Chunk", data=state))
    )
    beat = _framed(frame("Heartbeat", progress=0, waiting=True))
    program = (
        "import socket, sys, time; s = socket.socket(fileno=int(sys.argv[1]));"
        "s.sendall(bytes.fromhex(sys.argv[2]));"
        "exec('while True:\\n s.sendall(bytes.fromhex(sys.argv[3])); time.sleep(0.3)')"
    )
    with wire()._frame_lock:
        os.execv(sys.executable, [sys.executable, "-c", program, sys.argv[1], first.hex(), beat.hex()])


def _framed(payload):
    data = msgpack.packb(payload)
    return len(data).to_bytes(4, "big") + data


def _state():
    from hansa.proto.tensors import encode_state

    return encode_state({"w": 1.0})
