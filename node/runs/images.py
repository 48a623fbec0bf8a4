"""A job's container image as a directory: fetched or taken from the job, checked by skopeo, unpacked by umoci, kept.

Both programs read what strangers made, so each sits in a room of its own: skopeo sees the network only to pull an image
that the owner's list allows, by its digest; umoci, which writes the layers' files, sees no network at all, and of this
machine only the one directory that it fills. Neither runs anything of the image. What comes out is known by the
image's digest and shared by all runs that use it.
"""

import fnmatch
import hashlib
import json
import platform
import shutil
import tempfile
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from hansa.node.isolation.build_room import WORK, Tool, run_in_thread, run_tool, ways_out
from hansa.node.isolation.host_paths import without_host_paths
from hansa.node.isolation.sandbox_equipment import SandboxUnavailable
from hansa.node.isolation.trees import Trees, link_or_copy, open_to_everybody
from hansa.node.runs.builder import RunTool, tool_runner
from hansa.node.settings.environments_config import EnvironmentsConfig

PROGRAMS = ("skopeo", "umoci")
MOST_S = 20 * 60.0
MOST_FILES = 500_000
LONGEST_WORDS = 1_000


class NoImage(Exception):
    """The image could not be had here; the words are for the buyer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which image.

    Attributes:
        key: its name here.
        reference: where it is pulled from, with its digest; empty if the job brings it.
        archive: where the job's own lies; unless it is pulled.
    """

    key: str
    reference: str = ""
    archive: Path | None = None


def pulled(reference: str) -> Wanted:
    """An image in a registry, ``"registry/name@sha256:…"``. A digest may name an image for each kind of machine."""
    digest = hashlib.sha256(f"{reference.partition('@')[2]} {platform.machine()}".encode()).hexdigest()
    return Wanted(key=f"image-{digest}", reference=reference)


def shipped(root: bytes, archive: Path) -> Wanted:
    """An OCI archive that the job brings, known by the root of its blob."""
    digest = hashlib.sha256(root + platform.machine().encode()).hexdigest()
    return Wanted(key=f"image-{digest}", archive=archive)


class Images:
    """Unpacks and keeps images. One is unpacked at a time."""

    def __init__(self, trees: Trees, config: EnvironmentsConfig) -> None:
        """``trees`` keeps them; the owner says which are pulled."""
        self._trees = trees
        self._config = config
        self._run_tool = tool_runner(config.builder)

    async def bring(self, wanted: Wanted, run: bytes) -> Path:
        """The image's root directory; it stays until ``Trees.let_go``.

        Raises:
            NoImage: it cannot be had here.
        """
        if wanted.reference and not self._may_pull(wanted.reference):
            raise NoImage(f"this provider does not pull {wanted.reference.partition('@')[0]}; ship it with the job")
        async with self._trees.building:
            ready = await trio.to_thread.run_sync(self._trees.take, wanted.key, run)
            if ready is None:
                await run_in_thread(partial(self._make, wanted))
                ready = await trio.to_thread.run_sync(self._trees.take, wanted.key, run)
                await trio.to_thread.run_sync(self._trees.make_room)
        if ready is None:
            raise NoImage("the image was unpacked and is gone again: this provider's quota for images is too small")
        return ready

    def _may_pull(self, reference: str) -> bool:
        name = reference.partition("@")[0]
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._config.images)

    def _make(self, wanted: Wanted, given_up: threading.Event) -> None:
        layout, made = self._trees.begin(), self._trees.begin()
        try:
            with tempfile.TemporaryDirectory(dir=self._trees.directory, prefix="input-") as given:
                (Path(given) / "policy.json").write_text(json.dumps(policy_for(wanted)))
                if wanted.archive is not None:
                    link_or_copy(wanted.archive, Path(given) / "image.tar")
                open_to_everybody(Path(given))
                self._run(self._copy(wanted, layout, Path(given)), given_up)
            if layout.is_symlink() or not layout.is_dir():
                raise NoImage("the image cannot be unpacked here: it led elsewhere")
            self._run(self._unpack(layout, made), given_up)
            if made.is_symlink() or not made.is_dir():
                raise NoImage("the image cannot be unpacked here: it led elsewhere")
            self._trees.publish(made / "rootfs", wanted.key)
        except (SandboxUnavailable, OSError) as fault:
            raise NoImage(f"the image cannot be unpacked here: {without_host_paths(str(fault))}") from fault
        finally:
            self._trees.discard(layout)
            self._trees.discard(made)

    def _run(self, tool: Tool, given_up: threading.Event) -> None:
        outcome = self._run_tool(tool, given_up)
        if not outcome.ok:
            raise NoImage(f"the image cannot be unpacked here: {without_host_paths(outcome.words)[-LONGEST_WORDS:]}")

    def _copy(self, wanted: Wanted, layout: Path, given: Path) -> Tool:
        """Bring the image here whole, every part held against its hash, in the one form that umoci reads."""
        read = [(str(given / "policy.json"), "/opt/policy.json")]
        variables = {"TMPDIR": WORK}
        source = f"docker://{wanted.reference}"
        if wanted.archive is not None:
            read.append((str(given / "image.tar"), "/opt/image.tar"))
            source = "oci-archive:/opt/image.tar"
        else:
            outward, certificates = ways_out()
            variables |= outward
            read += certificates
        return Tool(
            command=(
                *(_program("skopeo"), "--policy", "/opt/policy.json", "--tmpdir", WORK, "--override-os", "linux"),
                *("copy", "--quiet", "--format", "oci", source, f"oci:{WORK}/layout:image"),
            ),
            work=str(layout),
            read=tuple(read),
            variables=variables,
            network=wanted.archive is None,
            most_bytes=self._config.quota_bytes,
            most_files=MOST_FILES,
            most_s=MOST_S,
        )

    def _unpack(self, layout: Path, made: Path) -> Tool:
        command = (_program("umoci"), "raw", "unpack", "--rootless", "--image", "/opt/image/layout:image")
        return Tool(
            command=(*command, f"{WORK}/rootfs"),
            work=str(made),
            read=((str(layout), "/opt/image"),),
            most_bytes=self._config.quota_bytes,
            most_files=MOST_FILES,
            most_s=MOST_S,
        )


def policy_for(wanted: Wanted) -> dict[str, object]:
    """What skopeo may take, in its own words: this image and no other. Its digest, not a signature, says what it is."""
    accept = [{"type": "insecureAcceptAnything"}]
    if wanted.archive is not None:
        return {"default": [{"type": "reject"}], "transports": {"oci-archive": {"": accept}}}
    return {"default": [{"type": "reject"}], "transports": {"docker": {wanted.reference.partition("@")[0]: accept}}}


def check_images(trees: Trees, run: RunTool = run_tool) -> str:
    """Start both programs in a room; answers why images cannot be unpacked here, or nothing. Blocks."""
    made = trees.begin()
    try:
        for name in PROGRAMS:
            tool = Tool(command=(_program(name), "--version"), work=str(made), most_bytes=1 << 20, most_s=30.0)
            outcome = run(tool, None)
            if not outcome.ok:
                return f"{name}: {outcome.words[-LONGEST_WORDS:]}"
    except (SandboxUnavailable, OSError) as fault:
        return str(fault)
    finally:
        trees.discard(made)
    return ""


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SandboxUnavailable(f"{name} is not installed", f"install your system's {name}")
    return found
