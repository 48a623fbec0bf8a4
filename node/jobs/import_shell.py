"""What a job's shell commands let on about its needs: Python packages that they install, hosts that they fetch from.

Commands themselves are not carried over: a Hansa job is a Python function, and a command may hold a secret. What is
found here only becomes a suggestion in a comment.
"""

import re
import shlex
from collections.abc import Iterable

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from hansa.node.runs.locks import OURS, PINNED
from hansa.proto.egress import normalise

MOST_FOUND = 32
_URL = re.compile(r"\b(https?|git|ssh)://(?:[^\s/@'\"]*@)?([A-Za-z0-9.-]{3,253})(?::([0-9]{1,5}))?", re.ASCII)
_SSH_URL = re.compile(r"\bgit@([A-Za-z0-9.-]{3,253}):", re.ASCII)
_PIP = re.compile(r"\bpip3?\s+install\s+([^\n;&|]+)")
_TAKES_VALUE = frozenset(
    ("-r", "--requirement", "-c", "--constraint", "-i", "--index-url", "--extra-index-url", "-f", "--find-links", "-e")
)
_KNOWN_HOSTS = (
    (re.compile(r"hugging_?face|\bhf_|\bHF_|--model(?:_name_or_path)?\b|--dataset_name\b|vllm serve"),
     ("huggingface.co:443", "*.hf.co:443")),
    (re.compile(r"wandb|WANDB"), ("api.wandb.ai:443",)),
)  # fmt: skip


def hosts_in(texts: Iterable[str]) -> tuple[str, ...]:
    """Hosts that commands or names of variables point at, as ``network.allow`` has them."""
    found: dict[str, None] = {}
    for text in texts:
        for match in (*_URL.finditer(text), *_SSH_URL.finditer(text)):
            scheme, host, port = match.groups() if match.re is _URL else ("ssh", match[1], None)
            try:
                found[normalise(f"{host.rstrip('.')}:{port or ('80' if scheme == 'http' else '443')}")] = None
            except ValueError:
                continue
        for pattern, hosts in _KNOWN_HOSTS:
            if pattern.search(text):
                found.update(dict.fromkeys(hosts))
    return tuple(found)[:MOST_FOUND]


def packages_in(texts: Iterable[str]) -> tuple[str, ...]:
    """Requirements that ``pip install`` names in commands, as ``environment.dependencies`` has them."""
    found: dict[str, None] = {}
    for text in texts:
        for match in _PIP.finditer(text.replace("\\\n", " ")):
            found.update(dict.fromkeys(_requirements(match[1])))
    return tuple(found)[:MOST_FOUND]


def _requirements(arguments: str) -> list[str]:
    try:
        words = shlex.split(arguments, comments=True)
    except ValueError:
        return []
    wanted: list[str] = []
    skip = False
    for word in words:
        if word.endswith((".whl", ".tar.gz", ".zip")):
            continue  # a file of theirs; its name would pass for a package's
        if skip or word.startswith("-"):
            skip = not skip and word in _TAKES_VALUE
            continue
        try:
            requirement = Requirement(word)
        except InvalidRequirement:
            continue
        name = canonicalize_name(requirement.name)
        if requirement.url is None and name not in OURS and name != PINNED and "+" not in str(requirement.specifier):
            wanted.append(word)
    return wanted
