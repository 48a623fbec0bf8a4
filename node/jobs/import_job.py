"""What is read out of another system's description of a job, whatever the system.

A reader (``import_akash`` and its siblings) fills in a ``Draft`` and says of everything that it met what became of it:
carried over, left out with the reason, or yours to write. ``import_writer`` makes a ``job.toml`` of the result.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from hansa.node.jobs.import_secrets import is_ours_to_leave, is_secret
from hansa.node.jobs.import_yaml import Value, shown

GIB = 1 << 30
GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """What became of one thing in the file.

    Attributes:
        place: where it stood, in the other system's words, with its line.
        what: the thing itself; never a secret.
        how: how it is carried over, or why it is not.
    """

    place: str
    what: str
    how: str


@dataclass(slots=True, kw_only=True)
class Draft:
    """A job as far as it has been read. Sizes are in bytes; 0 or empty means that the file says nothing.

    Attributes:
        system: the other system's name.
        name: the job's.
        devices: GPUs for one shard, where any model will do; 0 for a job without GPUs.
        choices: models with how many of each, the best liked first; any one of them will do.
        clauses: further needs, each in the words of ``needs``.
        vram_bytes: the least memory of each GPU.
        cores_milli: CPU cores, in thousandths.
        memory_bytes: main memory.
        disk_bytes: room for files.
        shared_memory_bytes: the size of ``/dev/shm``.
        shards: parts that run at the same time.
        image: the container image as it was named.
        env: variables of the environment that are no secrets.
        secrets: names of variables whose values stay out.
        wall_ms: the longest that it may run.
        queue_ms: the longest that it may wait for a provider.
        price_per_hour: the most for one device and hour, in dollars.
        retries: how often it is tried again; ``None`` means that the file says nothing.
        retry_own_errors: whether that holds for the job's own errors, too.
        hosts: hosts that its commands seem to need.
        packages: Python packages that its commands install.
        lease: ``"spot"``, ``"firm"``, ``"any"``, or empty.
        carried: what was carried over.
        left_out: what was not, and why.
        to_write: what is left to the user.
    """

    system: str
    name: str = ""
    devices: int = 0
    choices: tuple[tuple[int, str], ...] = ()
    clauses: list[str] = field(default_factory=list)
    vram_bytes: int = 0
    cores_milli: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    shared_memory_bytes: int = 0
    shards: int = 1
    image: str = ""
    env: dict[str, str] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    wall_ms: int = 0
    queue_ms: int = 0
    price_per_hour: Decimal | None = None
    retries: int | None = None
    retry_own_errors: bool = False
    hosts: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    lease: str = ""
    carried: list[Remark] = field(default_factory=list)
    left_out: list[Remark] = field(default_factory=list)
    to_write: list[str] = field(default_factory=list)

    def carry(self, place: str, what: object, how: str) -> None:
        """Say that something is carried over, and as what."""
        self.carried.append(Remark(place=place, what=shown(what), how=how))

    def leave(self, place: str, what: object, why: str) -> None:
        """Say that something is not carried over, and why."""
        self.left_out.append(Remark(place=place, what=shown(what), how=why))

    def leave_value(self, value: Value | None, why: str, *, what: object = "") -> None:
        """The same of a value as a whole, if it is there. Its content is shown only if somebody passes it."""
        if value is not None:
            self.leave(value.skip().place, what, why)

    def leave_unread(self, top: Value) -> None:
        """Whatever nobody looked at is not carried over, and that is said of each."""
        for value in top.unread():
            self.leave(value.place, "", f"hansa import does not know what this means to {self.system}")

    def write(self, what: str) -> None:
        """Name something that the user has yet to write; once is enough."""
        if what not in self.to_write:
            self.to_write.append(what)

    def set_env(self, variables: Iterable[tuple[str, str | None, str]]) -> None:
        """Take variables of the environment: each with its name, its value if it has one, and its place.

        A value that may be a secret is named and goes no further: every provider can read what a job brings.
        """
        for name, value, place in variables:
            if is_secret(name, value or ""):
                self.secrets.append(shown(name))
                self.leave(
                    place, shown(name), "it may be a secret, and every provider of a job can read what it brings"
                )
            elif is_ours_to_leave(name):
                self.leave(place, shown(name), "it belongs to the image or the machine; the provider's Python sets it")
            elif value is None or not value.strip():
                self.leave(place, shown(name), "has no value in the file")
                self.write(f"{shown(name)}: a value for it, in [parameters.env], if your code needs it")
            else:
                self.env[name] = value
                self.carry(place, shown(name), f"parameters.env.{shown(name)}")
        if self.secrets:
            self.write(
                f"{', '.join(dict.fromkeys(self.secrets))}: a job has no safe place for secrets. Fetch what needs them"
                " yourself, and bring it as [inputs]"
            )
