"""A job's directory packs to the same bytes every time, and no archive of a stranger's reaches outside its own."""

import contextlib
import errno
import io
import os
import socket
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.faults import ConfigError
from hansa.node.jobs.job_inputs import _below
from hansa.node.storage.packages import pack, unpack
from hansa.proto.errors import Malformed, ProtocolError, TooLarge

LIMIT = 1 << 20


@pytest.fixture
def job(tmp_path: Path) -> Path:
    directory = tmp_path / "job"
    (directory / "data" / "deep").mkdir(parents=True)
    (directory / "job.toml").write_text("name = 'x'\n")
    (directory / "train.py").write_text("def train(context): ...\n")
    (directory / "data" / "deep" / "a.bin").write_bytes(bytes(range(256)) * 5)
    (directory / "run.sh").write_text("#!/bin/sh\n")
    (directory / "run.sh").chmod(0o755)
    return directory


def packed(directory: Path) -> tuple[tuple[str, ...], bytes]:
    archive = io.BytesIO()
    names = pack(directory, archive).files
    return names, archive.getvalue()


def test_a_package_comes_back_as_it_was(job: Path, tmp_path: Path) -> None:
    names, data = packed(job)
    assert unpack(io.BytesIO(data), tmp_path / "out", limit_bytes=LIMIT) == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (job / name).read_bytes()
    assert (tmp_path / "out" / "run.sh").stat().st_mode & stat.S_IXUSR
    assert not (tmp_path / "out" / "train.py").stat().st_mode & stat.S_IXUSR


def test_an_ordinary_tar_reads_it_too(job: Path) -> None:
    names, data = packed(job)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tuple(tar.getnames()) == names


def test_times_owners_and_order_of_creation_leave_no_trace(job: Path, tmp_path: Path) -> None:
    _, first = packed(job)
    other = tmp_path / "other"
    other.mkdir()
    for path in sorted((path for path in job.rglob("*") if path.is_file()), reverse=True):
        target = other / path.relative_to(job)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        target.chmod(path.stat().st_mode & 0o700)
        os.utime(target, (1, 1))
    _, second = packed(other)
    assert first == second


def test_what_is_no_part_of_a_job_stays_at_home(job: Path) -> None:
    for name in (".git/config", "__pycache__/x.pyc", ".venv/bin/python", "notes/secret.txt", "data/deep/b.log"):
        (job / name).parent.mkdir(parents=True, exist_ok=True)
        (job / name).write_text("x")
    (job / ".hansaignore").write_text("# a comment\nnotes/\n\n*.log\ndata/deep/a.bin\n")
    names, _ = packed(job)
    assert names == (".hansaignore", "job.toml", "run.sh", "train.py")


@pytest.mark.parametrize("failing", ["iterdir", "resolve"], ids=["not listed", "not entered"])
def test_a_directory_that_may_not_be_read_is_named_with_a_way_out(
    job: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user to whom it is closed; the one that runs tests may be root, to whom nothing is."""
    closed, real = job / "data" / "deep", getattr(Path, failing)

    def denied(path: Path, **how: bool) -> object:
        if path == closed if failing == "iterdir" else path.parent == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **how)

    monkeypatch.setattr(Path, failing, denied)
    for walk, otherwise in (
        (lambda: packed(job), "name it in .hansaignore"),
        (lambda: list(_below(job, job, "x", 0)), "name the files and directories beside it one by one"),
    ):
        with pytest.raises(ConfigError) as told:
            walk()
        assert told.value.what == f"{closed}: cannot be read: Permission denied"
        assert told.value.hint == f"chmod u+rx {closed}, if it is yours; else {otherwise}"


V3 = '{"address": "00", "crypto": {"cipher": "aes-128-ctr", "ciphertext": "00"}, "id": "x", "version": 3}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("node.key", "\x00"),
        ("state/node.key", "anything"),
        ("account.json", V3),
        ("deep/UTC--2026--x", "\n " + V3.replace('"crypto"', '"Crypto"')),
    ],
)
def test_a_nodes_keys_are_never_packed(job: Path, name: str, content: str) -> None:
    (job / name).parent.mkdir(exist_ok=True)
    (job / name).write_text(content)
    with pytest.raises(ConfigError, match=f"{Path(name).name}: is a key") as refused:
        packed(job)
    assert "move it" in refused.value.hint
    (job / ".hansaignore").write_text(Path(name).name)
    assert name not in packed(job)[0], "what its owner leaves out is not sent"


def test_json_that_is_no_keystore_is_packed(job: Path) -> None:
    for name, content in (("a.json", "{}"), ("b.json", '{"version": 3, "crypto": 1'), ("c.json", '{"version": 3}')):
        (job / name).write_text(content)
    assert {"a.json", "b.json", "c.json"} <= set(packed(job)[0])


def test_what_holds_logins_stays_at_home(job: Path) -> None:
    for name in (".ssh/id_ed25519", ".aws/credentials", ".gnupg/secring.gpg", ".netrc", ".git/config"):
        (job / name).parent.mkdir(exist_ok=True)
        (job / name).write_text("x")
    assert not [name for name in packed(job)[0] if name.startswith(".")]


def test_a_nodes_directory_is_not_submitted_by_leaving_its_socket_out(job: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as api:
        api.bind(str(job / "api.sock"))
        with pytest.raises(ConfigError, match="neither file nor directory") as refused:
            packed(job)
    assert ".hansaignore" not in refused.value.hint
    assert "a node lives in this directory" in refused.value.hint


def test_a_link_inside_the_directory_is_packed_as_the_file_it_means(job: Path) -> None:
    (job / "again.py").symlink_to("train.py")
    names, data = packed(job)
    assert "again.py" in names
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getmember("again.py").isreg()


def test_a_link_that_leads_out_is_refused_by_name(job: Path) -> None:
    (job / "leak").symlink_to("/etc/hostname")
    with pytest.raises(ConfigError, match=r"leak: leads out"):
        packed(job)


def test_a_link_into_itself_ends(job: Path) -> None:
    (job / "again").symlink_to(".")
    with pytest.raises(ConfigError, match="directories deep"):
        packed(job)


def test_a_dangling_link_is_refused_by_name(job: Path) -> None:
    (job / "gone").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="leads nowhere"):
        packed(job)


def test_a_pipe_is_refused_by_name(job: Path) -> None:
    os.mkfifo(job / "pipe")
    with pytest.raises(ConfigError, match="neither file nor directory"):
        packed(job)


def test_too_much_is_refused_with_the_largest_file(job: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        pack(job, io.BytesIO(), limit_bytes=1000)
    assert "data/deep/a.bin" in caught.value.hint


def test_a_name_with_control_characters_is_refused(job: Path) -> None:
    (job / "a\x1b[2Jb").write_text("x")
    with pytest.raises(ConfigError, match="such a name"):
        packed(job)


# ---- the stranger's side ---------------------------------------------------------------------------------------------


def archive_of(*members: tarfile.TarInfo, content: bytes = b"x", form: int = tarfile.USTAR_FORMAT) -> io.BytesIO:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=form) as tar:
        for member in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    archive.seek(0)
    return archive


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    made.linkname = link
    return made


@pytest.mark.parametrize(
    "hostile",
    [
        member("/etc/passwd"),
        member("../outside"),
        member("a/../../outside"),
        member("./a"),
        member("a//b"),
        member("a/./b"),
        member("a\\b"),
        member("a\nb"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("hard", tarfile.LNKTYPE, "train.py"),
        member("null", tarfile.CHRTYPE),
        member("disk", tarfile.BLKTYPE),
        member("pipe", tarfile.FIFOTYPE),
        member("cont", tarfile.CONTTYPE),
        member("sparse", tarfile.GNUTYPE_SPARSE),
        member("/" * 40),
        member("/".join("d" * 40)),
    ],
    ids=lambda found: found.name[:12].encode("unicode_escape").decode() + found.type.decode(),
)
def test_what_leads_elsewhere_or_is_no_file_is_malformed(tmp_path: Path, hostile: tarfile.TarInfo) -> None:
    with pytest.raises(Malformed):
        unpack(archive_of(hostile), tmp_path / "out", limit_bytes=LIMIT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_headers_that_extend_others_are_malformed(tmp_path: Path, form: int) -> None:
    with pytest.raises(Malformed):
        unpack(archive_of(member("n" * 300), form=form), tmp_path / "out", limit_bytes=LIMIT)


def test_a_directory_with_a_size_is_malformed(tmp_path: Path) -> None:
    folder = member("folder", tarfile.DIRTYPE)
    folder.size = 512
    with pytest.raises(Malformed, match="a directory with a size"):
        unpack(archive_of(folder), tmp_path / "out", limit_bytes=LIMIT)


def test_a_name_twice_is_malformed(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="twice"):
        unpack(archive_of(member("a"), member("a")), tmp_path / "out", limit_bytes=LIMIT)


@pytest.mark.parametrize("order", [("a", "a/b"), ("a/b", "a")])
def test_a_name_for_a_file_and_a_directory_is_malformed(tmp_path: Path, order: tuple[str, str]) -> None:
    with pytest.raises(Malformed, match="one name"):
        unpack(archive_of(*(member(name) for name in order)), tmp_path / "out", limit_bytes=LIMIT)


def test_more_bytes_than_allowed_are_refused_before_they_are_written(tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        unpack(archive_of(member("a"), content=bytes(2000)), tmp_path / "out", limit_bytes=1999)
    assert not list((tmp_path / "out").iterdir())


def test_a_size_that_promises_gigabytes_is_refused_at_its_header(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("a")
    huge.size = 1 << 40
    header = huge.tobuf(format=tarfile.GNU_FORMAT)
    with pytest.raises(ProtocolError):
        unpack(io.BytesIO(header), tmp_path / "out", limit_bytes=LIMIT)


def test_more_entries_than_allowed_are_refused_directories_included(tmp_path: Path) -> None:
    many = [member(f"d{index}", tarfile.DIRTYPE) for index in range(11)]
    with pytest.raises(TooLarge, match="10 files"):
        unpack(archive_of(*many), tmp_path / "out", limit_bytes=LIMIT, most_files=10)


def test_directories_that_only_names_imply_are_counted_too(tmp_path: Path) -> None:
    deep = [member("/".join(f"{index}{depth:02}" for depth in range(20))) for index in range(10)]
    with pytest.raises(TooLarge, match="100 directories"):
        unpack(archive_of(*deep), tmp_path / "out", limit_bytes=LIMIT, most_files=100)
    assert sum(1 for path in (tmp_path / "out").rglob("*") if path.is_dir()) <= 100


def test_an_archive_cut_short_is_malformed_wherever_it_is_cut(job: Path, tmp_path: Path) -> None:
    _, data = packed(job)
    end = len(data.rstrip(b"\0"))
    for number, length in enumerate(range(0, end, 97)):
        with pytest.raises(Malformed):
            unpack(io.BytesIO(data[:length]), tmp_path / str(number), limit_bytes=LIMIT)


@given(data=st.binary(max_size=2048))
def test_any_bytes_are_a_package_or_a_protocol_error(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("any") / "out"
    with contextlib.suppress(ProtocolError):
        unpack(io.BytesIO(data), out, limit_bytes=LIMIT)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@given(at=st.integers(0, 511), byte=st.integers(0, 255), again=st.booleans())
def test_a_header_changed_anywhere_is_refused_or_still_stays_inside(
    at: int, byte: int, again: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(archive_of(member("dir/file")).getvalue())
    data[at] = byte
    if again:  # with a checksum that fits, so that the change itself is judged
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    out = tmp_path_factory.mktemp("changed") / "out"
    with contextlib.suppress(ProtocolError):
        unpack(io.BytesIO(bytes(data)), out, limit_bytes=LIMIT)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_directory_that_is_there_already_is_not_unpacked_into(job: Path, tmp_path: Path) -> None:
    _, data = packed(job)
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):
        unpack(io.BytesIO(data), tmp_path / "out", limit_bytes=LIMIT)
