"""Results are what lies below one directory: plain files with plain names, however a job has heaped them up."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from hansa.proto.frames import FrameReader, Log, Output
from hansa.worker.outputs import send_outputs
from hansa.worker.wire import Wire


def sent(directory: Path, limit_bytes: int = 1 << 20) -> list[object]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_outputs(Wire(theirs), directory, limit_bytes)
        theirs.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: ours.recv(65536), b""))
    return [frame for frame in FrameReader(from_runner=True).feed(said) if isinstance(frame, (Output, Log))]


def test_files_are_sent_in_order_and_what_is_no_file_is_not(tmp_path: Path) -> None:
    for name in ("b", "a/z", "a/c/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("b")
    (tmp_path / "up").symlink_to("..")
    assert [frame.path for frame in sent(tmp_path) if isinstance(frame, Output)] == ["a/c/d", "a/z", "b"]


def test_directories_nested_deeper_than_python_recurses_hurt_nobody(tmp_path: Path) -> None:
    (tmp_path / "sound").write_text("sound")
    home = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        Path("lost").write_text("too deep")
    finally:
        os.chdir(home)
    assert [frame.path for frame in sent(tmp_path) if isinstance(frame, Output)] == ["sound"]
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # pytest's own way of clearing away recurses


@pytest.mark.parametrize("name", ["new\nline", "back\\slash", "\x1b[31m"])
def test_a_name_that_cannot_be_sent_is_said_to_be_left_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("odd")
    (frame,) = sent(tmp_path)
    assert isinstance(frame, Log)
    assert b"left out" in frame.data
