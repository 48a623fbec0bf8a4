"""Which variables of an environment may hold a secret, judged by their names and by what their values look like.

It errs on the side of keeping a value out: what is left out can be written by hand, and what was sent to strangers
cannot be called back.
"""

import re

_NAMES = re.compile(
    r"token|secret|passw|passphrase|passwd|pwd|credential|api_?key|apikey|access_?key|private|mnemonic|seed_?phrase"
    r"|auth|cookie|session|webhook|dsn|connection_?string|(^|_)key(_|$)|(^|_)pass(_|$)|(^|_)pat(_|$)|ssh_"
    r"|_url_signed|license_?key|wallet|certificate|(^|_)pem(_|$)",
    re.IGNORECASE,
)
_VALUES = re.compile(
    r"hf_[A-Za-z0-9]{6,}|sk-[A-Za-z0-9_-]{8,}|gh[pousr]_[A-Za-z0-9]{8,}|github_pat_|glpat-|AKIA[0-9A-Z]{8,}"
    r"|xox[abposr]-|eyJ[A-Za-z0-9_-]{8,}\.|AIza[0-9A-Za-z_-]{10,}|-----BEGIN|://[^/\s:@]*:[^/\s@]+@"
    r"|--?[a-z-]*(?:pass|passwd|password|token|secret|api[-_]?key|apikey)[ =]\S",
    re.IGNORECASE,
)
_RANDOM = re.compile(r"[A-Za-z0-9_+=-]{24,}")
_OF_THE_MACHINE = re.compile(
    r"PATH|LD_LIBRARY_PATH|LD_PRELOAD|PYTHONPATH|PYTHONHOME|HOME|VIRTUAL_ENV|CUDA_HOME|CUDA_VISIBLE_DEVICES|NVIDIA_\w+"
    r"|SHELL|USER|HTTPS?_PROXY",
    re.IGNORECASE,
)


def is_secret(name: str, value: str) -> bool:
    """Whether a variable may hold a secret, or its value looks like one whatever it is called."""
    return _NAMES.search(name) is not None or _VALUES.search(value) is not None or _looks_random(value)


def _looks_random(value: str) -> bool:
    """Long runs without a space, a dot or a slash that mix digits and letters are mostly keys, and seldom words."""
    return any(
        any(character.isdigit() for character in run)
        and any(character.isalpha() for character in run)
        and not _is_wordy(run)
        for run in _RANDOM.findall(value)
    )


def _is_wordy(run: str) -> bool:
    """Whether it is made of short parts, as names of models are: ``DeepSeek-R1-Distill-Qwen-7B``."""
    return all(len(part) <= 12 for part in re.split(r"[_+=-]", run))


def is_ours_to_leave(name: str) -> bool:
    """Whether a variable says how the original's image or machine is laid out, which is another one here."""
    return _OF_THE_MACHINE.fullmatch(name) is not None
