"""A job's image, unpacked by the real skopeo and umoci in real rooms: honest ones, broken ones and hostile ones."""

import json
import os
import shutil
import ssl
import stat
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio
from kit.images import a_layer, a_layout, an_archive, entry

from hansa.node.isolation.build_room import Outcome, Tool, run_tool
from hansa.node.isolation.trees import Trees
from hansa.node.runs import images
from hansa.node.runs.images import Images, NoImage, check_images, policy_for, pulled, shipped
from hansa.node.settings.environments_config import EnvironmentsConfig

RUN = b"run"


@cache
def why_not() -> str:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        return check_images(Trees(Path(directory) / "t", quota_bytes=1 << 30))


@pytest.fixture(autouse=True)
def programs() -> None:
    if why_not():
        pytest.skip(f"images cannot be unpacked on this machine: {why_not()}")


class Workshop:
    def __init__(self, directory: Path, *, quota_bytes: int = 1 << 30, allowed: tuple[str, ...] = ()) -> None:
        self.directory = directory
        config = EnvironmentsConfig(
            enabled=True, index="https://x/simple", find_links=(), quota_bytes=quota_bytes, images=allowed
        )
        self.trees = Trees(directory, quota_bytes=quota_bytes)
        self.images = Images(self.trees, config)

    def bring(self, archive: Path, root: bytes = b"r" * 32) -> Path:
        return trio.run(self.images.bring, shipped(root, archive), RUN)


def directory(name: str, **facts: object) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **facts})


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=kind, linkname=target)


def test_layers_lie_over_each_other_and_whiteouts_take_away(tmp_path: Path) -> None:
    lower = a_layer(directory("etc"), entry("etc/a", b"1"), entry("etc/b", b"1"), link("lib", "usr/lib"))
    upper = a_layer(entry("etc/a", b"2"), entry("etc/.wh.b"), entry("bin/x", b"#!", mode=0o4755))
    shop = Workshop(tmp_path / "t")
    tree = shop.bring(an_archive(tmp_path / "image.tar", [lower, upper]))
    assert (tree / "etc/a").read_bytes() == b"2"
    assert not (tree / "etc/b").exists()
    assert str((tree / "lib").readlink()) == "usr/lib"
    assert stat.S_IMODE((tree / "bin/x").stat().st_mode) == 0o755, "nobody becomes its owner"
    assert list(shop.trees.work.iterdir()) == [shop.trees.cache]


def test_an_image_is_unpacked_once(tmp_path: Path) -> None:
    used: list[Tool] = []

    def counted(tool: Tool, given_up: threading.Event | None = None) -> Outcome:
        used.append(tool)
        return run_tool(tool, given_up)

    shop = Workshop(tmp_path / "t")
    shop.images._run_tool = counted
    archive = an_archive(tmp_path / "image.tar", [a_layer(entry("a", b"1"))])
    archive.chmod(0o600)  # as a store keeps it: readable by nobody but the daemon
    assert shop.bring(archive) == shop.bring(archive)
    assert len(used) == 2, "skopeo and umoci, once each"
    assert [tool.network for tool in used] == [False, False]


def test_a_part_that_is_not_what_its_hash_says_spoils_the_image(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "t")
    with pytest.raises(NoImage, match="cannot be unpacked here"):
        shop.bring(an_archive(tmp_path / "image.tar", [a_layer(entry("a", os.urandom(1000)))], spoilt=True))
    assert shop.trees.names() == []
    assert list(shop.trees.work.iterdir()) == [shop.trees.cache]


def test_where_things_lie_here_is_not_told_to_strangers(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "t")
    path = an_archive(tmp_path / "image.tar", [a_layer(entry("a", b"x"))])
    shop.images._run_tool = lambda _tool, _given_up: Outcome(
        ok=False, words=f"FATA open {tmp_path}/policy.json: denied"
    )
    with pytest.raises(NoImage) as caught:
        shop.bring(path)
    assert "denied" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"junk" * 1000, bytes(1 << 16)],
    ids=["empty", "junk", "zeros"],
)
def test_what_is_no_image_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "image.tar").write_bytes(data)
    with pytest.raises(NoImage):
        Workshop(tmp_path / "t").bring(tmp_path / "image.tar")


HOSTILE = {
    "a name that goes up": [entry("../../escaped", b"x")],
    "a deep name that goes up": [entry("a/../../../../../../../../tmp/escaped", b"x")],
    "an absolute name": [entry("/tmp/escaped", b"x")],
    "a link up, and a file through it": [link("up", "../../.."), entry("up/escaped", b"x")],
    "a link to /, and a file through it": [
        link("root", "/"),
        entry("root/work/escaped", b"x"),
        entry("root/tmp/escaped"),
    ],
    "a link to /work, a directory over it": [link("w", "/work"), directory("w/sub"), entry("w/sub/escaped", b"x")],
    "a link to a link": [link("a", "/work"), link("b", "a"), entry("b/escaped", b"x")],
    "a link in place of the root": [link(".", "/work"), entry("escaped", b"x")],
    "a hard link to a file outside": [link("passwd", "/etc/passwd", tarfile.LNKTYPE)],
    "a hard link that goes up": [link("x", "../../../../etc/hosts", tarfile.LNKTYPE)],
    "a hard link through a link": [link("e", "/etc"), link("x", "e/passwd", tarfile.LNKTYPE)],
    "a whiteout that goes up": [entry("../.wh.cache"), entry("a/.wh...")],
    "a whiteout through a link": [link("w", "/work"), entry("w/.wh.rootfs")],
    "an opaque whiteout through a link": [link("w", "/work"), entry("w/.wh..wh..opq")],
    "a device": [entry("sda", type=tarfile.BLKTYPE, devmajor=8, devminor=0), entry("mem", type=tarfile.CHRTYPE)],
    "a pipe": [entry("pipe", type=tarfile.FIFOTYPE)],
    "a shut directory": [directory("shut", mode=0o000), entry("shut/x", b"x", mode=0o000)],
    "owners that are somebody": [entry("mine", b"x", uid=0, gid=0), entry("theirs", b"x", uid=1 << 30)],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_that_a_layer_says_reaches_out_of_its_directory(tmp_path: Path, case: str) -> None:
    kept = tmp_path / "t" / "work" / "cache" / "kept"
    shop = Workshop(tmp_path / "t")
    kept.write_text("x")
    before = {str(path) for path in Path("/tmp").glob("*escaped*")}
    try:
        tree: Path | None = shop.bring(an_archive(tmp_path / "image.tar", [a_layer(*HOSTILE[case])]))
    except NoImage:
        tree = None
    found = [path for path in tmp_path.rglob("*escaped*") if tree is None or not path.is_relative_to(tree)]
    assert not found, "a file came to lie elsewhere"
    assert {str(path) for path in Path("/tmp").glob("*escaped*")} == before
    assert kept.read_text() == "x"
    assert list(shop.trees.work.iterdir()) == [shop.trees.cache]
    if tree is None:
        assert shop.trees.names() == []
        return
    for path in tree.rglob("*"):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), path
        assert not mode & (stat.S_ISUID | stat.S_ISGID) or stat.S_ISLNK(mode)
        if stat.S_ISREG(mode):
            assert path.lstat().st_nlink == 1, "no other name of a file of this machine"
            assert path.read_bytes() != Path("/etc/passwd").read_bytes()


def test_a_bomb_of_bytes_is_stopped(tmp_path: Path) -> None:
    layer = a_layer(*(entry(f"zeros-{number}", bytes(32 << 20)) for number in range(6)))
    archive = an_archive(tmp_path / "image.tar", [layer])
    assert archive.stat().st_size < 4 << 20
    shop = Workshop(tmp_path / "t", quota_bytes=64 << 20)
    with pytest.raises(NoImage, match="more than 64 MiB"):
        shop.bring(archive)
    assert shop.trees.used_bytes() < 1 << 20


def test_a_bomb_of_files_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_FILES", 500)
    archive = an_archive(tmp_path / "image.tar", [a_layer(*(entry(f"f{number}") for number in range(3000)))])
    with pytest.raises(NoImage, match="more than 500 files"):
        Workshop(tmp_path / "t").bring(archive)


def test_only_what_the_owner_lists_is_pulled(tmp_path: Path) -> None:
    digest = "ab" * 32
    shop = Workshop(tmp_path / "t", allowed=("docker.io/library/*", "registry.example:5000/*"))
    for name in ("docker.io/evil/x", "evil.example/docker.io/library/x", "docker.io/library"):
        with pytest.raises(NoImage, match="does not pull"):
            trio.run(shop.images.bring, pulled(f"{name}@sha256:{digest}"), RUN)
    assert shop.images._may_pull(f"docker.io/library/python@sha256:{digest}")


def test_skopeos_policy_takes_the_one_image_and_rejects_the_rest() -> None:
    policy = policy_for(pulled("docker.io/library/python@sha256:" + "ab" * 32))
    assert policy["default"] == [{"type": "reject"}]
    assert policy["transports"] == {"docker": {"docker.io/library/python": [{"type": "insecureAcceptAnything"}]}}
    assert list(policy_for(shipped(b"r", Path("x")))["transports"]) == ["oci-archive"]  # type: ignore[call-overload]


def test_what_is_pulled_is_known_by_its_digest_alone() -> None:
    one, same = (pulled(f"{name}@sha256:{'ab' * 32}") for name in ("docker.io/library/a", "mirror.example/a"))
    assert one.key == same.key
    assert pulled(f"docker.io/library/a@sha256:{'cd' * 32}").key != one.key


@contextmanager
def a_registry(directory: Path, layout: Path) -> Iterator[str]:
    """A registry over TLS that serves one layout's manifests and blobs; answers its address."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("sha256:")[2]
            path = layout / "blobs" / "sha256" / name
            data = path.read_bytes() if len(name) == 64 and path.is_file() else b"{}"
            is_manifest = "/manifests/" in self.path
            self.send_response(200 if len(data) > 2 or self.path == "/v2/" else 404)
            kind = "application/vnd.oci.image.manifest.v1+json" if is_manifest else "application/octet-stream"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_image_is_pulled_from_a_registry_by_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate for a registry")
    layout = a_layout(tmp_path / "layout", [a_layer(entry("from-a-registry", b"1"))])
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    with a_registry(tmp_path, layout) as address:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        (tmp_path / "certificate.pem").chmod(0o644)
        shop = Workshop(tmp_path / "t", allowed=(f"{address}/library/*",))
        tree = trio.run(shop.images.bring, pulled(f"{address}/library/x@{digest}"), RUN)
        assert (tree / "from-a-registry").read_bytes() == b"1"
        other = "sha256:" + "00" * 32
        with pytest.raises(NoImage, match="cannot be unpacked here"):
            trio.run(shop.images.bring, pulled(f"{address}/library/x@{other}"), RUN)
        manifest = layout / "blobs/sha256" / digest.partition(":")[2]
        manifest.write_bytes(manifest.read_bytes() + b" ")
        fresh = Workshop(tmp_path / "t2", allowed=(f"{address}/library/*",))
        with pytest.raises(NoImage):
            trio.run(fresh.images.bring, pulled(f"{address}/library/x@{digest}"), RUN)
