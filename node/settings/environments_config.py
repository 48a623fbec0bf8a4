"""``[environments]`` of ``config.toml``: what jobs may bring to run on, and where it comes from."""

from dataclasses import dataclass
from pathlib import Path

from hansa.node.toml_reader import TomlTable


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentsConfig:
    """The owner's rules for packages and images.

    Attributes:
        enabled: whether Python packages are installed for jobs at all.
        index: where packages come from; a job cannot name another place.
        find_links: further places, each a directory or a page of links.
        quota_bytes: room for packages, images and what was downloaded for them.
        builder: the unix socket of a builder that runs as a service of its own; ``None`` where this daemon needs none.
        images: patterns of the images that are pulled for jobs, such as ``"docker.io/library/*"``.
    """

    enabled: bool
    index: str
    find_links: tuple[str, ...]
    quota_bytes: int
    images: tuple[str, ...]
    builder: Path | None = None


def read_environments(table: TomlTable) -> EnvironmentsConfig:
    """Read and check the table."""
    index = table.text("index", "https://pypi.org/simple", most=1024)
    if not index.startswith(("https://", "http://", "file:///")):
        raise table.fault("index", "must be a URL", 'for example index = "https://pypi.org/simple"')
    find_links = table.texts("find_links", (), most=16)
    if not all(place.startswith(("/", "https://", "http://")) for place in find_links):
        raise table.fault("find_links", "holds neither a URL nor an absolute path", 'for example ["/srv/wheels"]')
    images = table.texts("images", (), most=256)
    if any(image.startswith(("*", "?", "[")) or "/" not in image for image in images):
        hint = 'for example images = ["docker.io/library/*"]'
        raise table.fault("images", "holds a pattern that does not begin with a registry and a slash", hint)
    builder = table.text("builder", "", empty=True)
    if builder and not builder.startswith("/"):
        raise table.fault("builder", "must be an absolute path", 'for example builder = "/run/hansa-builder/socket"')
    environments = EnvironmentsConfig(
        enabled=table.boolean("enabled", True),
        index=index,
        find_links=find_links,
        quota_bytes=table.size_bytes("quota", "20 GiB", least=1 << 30),
        images=images,
        builder=Path(builder) if builder else None,
    )
    table.finish()
    return environments
