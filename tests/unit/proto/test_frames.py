import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hansa.proto import frames
from hansa.proto.errors import Malformed, ProtocolError, TooLarge

FROM_RUNNER = [
    frames.Ready(),
    frames.Prepared(),
    frames.Started(),
    frames.Progress(step=3, metrics=(("loss", 0.5),)),
    frames.Log(stream="stdout", data=b"\xff\x00text"),
    frames.Sync(round=1, weight=2.0, size_bytes=10),
    frames.Checkpoint(round=1, step=7, size_bytes=0),
    frames.Output(path="a/b.txt", size_bytes=3),
    frames.Finished(),
    frames.Left(),
    frames.Failed(kind="worker-died", message="words"),
    frames.ShellOutput(shell=0, data=b"\x1b[2J"),
    frames.ShellCredit(shell=3, size_bytes=1),
    frames.ShellEnded(shell=0, status=139),
    frames.Heartbeat(progress=9, waiting=True),
    frames.Chunk(data=b"x"),
]
FROM_DAEMON = [
    frames.Begin(
        entry="train.py:main", shard=0, shards=3, workers=2, parameters=(("a", "1"),), round=0, has_checkpoint=False,
        size_bytes=0, state_bytes=1, output_bytes=1, threads=1, gpus=0,
    ),
    frames.Prepare(workers=2, gpus=0, threads=1),
    frames.Look(),
    frames.RoundResult(round=4, size_bytes=5),
    frames.CheckpointStored(round=1, step=2),
    frames.Stop(grace_ms=100),
    frames.Leave(grace_ms=60_000),
    frames.Keep(),
    frames.OpenShell(shell=0, argv=("ls", "-l", ""), columns=80, rows=24),
    frames.ShellInput(shell=0, data=b"ls\r"),
    frames.ResizeShell(shell=0, columns=132, rows=50),
    frames.CloseShell(shell=0),
    frames.ShellCredit(shell=0, size_bytes=frames.SHELL_WINDOW_BYTES),
    frames.Chunk(data=b"x"),
]  # fmt: skip


def read(data, *, from_runner=True):
    return list(frames.FrameReader(from_runner=from_runner).feed(data))


def raw(**fields):
    payload = msgpack.packb(fields)
    return len(payload).to_bytes(4, "big") + payload


@pytest.mark.parametrize("frame", FROM_RUNNER)
def test_what_the_runner_says_comes_out_as_it_went_in(frame):
    assert read(frames.encode(frame)) == [frame]


@pytest.mark.parametrize("frame", FROM_DAEMON)
def test_what_the_daemon_says_comes_out_as_it_went_in(frame):
    assert read(frames.encode(frame), from_runner=False) == [frame]


def test_the_runner_cannot_speak_as_the_daemon():
    with pytest.raises(Malformed):
        read(frames.encode(frames.Stop(grace_ms=0)))


@given(st.lists(st.integers(1, 400), max_size=30))
def test_frames_come_out_whole_however_the_bytes_are_cut(cuts):
    data = b"".join(frames.encode(frame) for frame in FROM_RUNNER)
    reader, found, at = frames.FrameReader(from_runner=True), [], 0
    for cut in [*cuts, len(data)]:
        found += reader.feed(data[at : at + cut])
        at += cut
    assert found == FROM_RUNNER


@given(st.binary(max_size=300))
@example(b"\x00\x00\x00\x01\xc1")
@example(b"\x00\x10\x00\x01")
def test_any_bytes_give_frames_or_a_protocol_error(data):
    for prefix in (b"", len(data).to_bytes(4, "big")):
        try:
            found = read(prefix + data)
        except ProtocolError:
            continue
        assert all(type(frame) in {type(one) for one in FROM_RUNNER} for frame in found)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(FROM_RUNNER), st.data())
def test_a_frame_with_one_field_replaced_is_checked_again(frame, data):
    fields = msgpack.unpackb(frames.encode(frame)[4:])
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(VALUES)
    try:
        (found,) = read(raw(**fields))
    except ProtocolError:
        return
    assert frames.encode(found)  # what came in would go out again, so it is within every limit


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../b", "a//b", ".", "", "a\\b", "a\n", "a/./b", "x" * 600, "a\x1b[2J"]
)
def test_a_path_that_could_leave_its_directory_is_refused(path):
    with pytest.raises(Malformed):
        read(raw(frame="Output", path=path, size_bytes=0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1, True, "1"])
def test_a_metric_is_a_finite_float(value):
    with pytest.raises(Malformed):
        read(raw(frame="Progress", step=1, metrics=[["loss", value]]))


@pytest.mark.parametrize(
    "facts",
    [
        {"argv": ("a\0b",)}, {"argv": ("\ud800",)}, {"argv": ("x" * 5000,)}, {"argv": ("x",) * 65}, {"argv": (b"ls",)},
        {"columns": 0}, {"rows": 1001}, {"shell": -1},
    ],
)  # fmt: skip
def test_a_terminal_that_cannot_be_is_refused(facts):
    usual = {"shell": 0, "argv": (), "columns": 80, "rows": 24}
    with pytest.raises(Malformed):
        frames.encode(frames.OpenShell(**{**usual, **facts}))


@pytest.mark.parametrize("status", [-1, 256, True, "0"])
def test_a_status_is_one_that_a_program_can_have(status):
    with pytest.raises(Malformed):
        read(raw(frame="ShellEnded", shell=0, status=status))


def test_a_length_over_the_limit_is_refused_before_its_bytes_are_there():
    with pytest.raises(TooLarge):
        read((frames.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
