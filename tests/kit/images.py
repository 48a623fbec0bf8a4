"""Container images made by hand: OCI layouts and archives of layers that a test wrote, honest or not."""

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def entry(name: str, data: bytes = b"", **facts: object) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a layer; ``facts`` are attributes of ``TarInfo``."""
    made = tarfile.TarInfo(name)
    made.size = len(data)
    made.mode = 0o644
    for key, value in facts.items():
        setattr(made, key, value)
    return made, data


def a_layer(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A layer of these entries, in this order, whatever they are."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for made, data in entries:
            archive.addfile(made, io.BytesIO(data))
    return written.getvalue()


def layer_of(root: Path) -> bytes:
    """A layer of a directory as it is."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(root, arcname=".", recursive=True)
    return written.getvalue()


def a_layout(directory: Path, layers: Sequence[bytes], *, spoilt: bool = False) -> Path:
    """An OCI layout of one image with these layers; ``spoilt`` changes a byte after everything was hashed."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def keep(data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return f"sha256:{digest}"

    packed = [gzip.compress(layer, 1, mtime=0) for layer in layers]
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
    }
    raw = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": keep(raw), "size": len(raw)},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": keep(data), "size": len(data)}
            for data in packed
        ],
    }
    raw = json.dumps(manifest).encode()
    index = {
        "schemaVersion": 2,
        "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": keep(raw), "size": len(raw)}
        ],
    }
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    if spoilt:
        path = blobs / hashlib.sha256(packed[0]).hexdigest()
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(data)
    return directory


def an_archive(path: Path, layers: Iterable[bytes], *, spoilt: bool = False) -> Path:
    """The same as one file."""
    layout = a_layout(path.with_suffix(".layout"), list(layers), spoilt=spoilt)
    with tarfile.open(path, "w") as archive:
        for name in ("oci-layout", "index.json", "blobs"):
            archive.add(layout / name, arcname=name)
    return path
