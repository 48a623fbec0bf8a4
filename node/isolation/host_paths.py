"""Words about what went wrong on this machine, made fit for strangers: where things lie here is none of their business.

bubblewrap, skopeo, uv and the system name directories when they fail. Those that a sandbox or a room has inside, too,
are the same everywhere and help whoever reads them; all others are left out.
"""

import re

HIDDEN = "(a path of this provider's)"
_INSIDE = r"(?:job|opt|work|usr|proc|dev|etc|sys|bin|lib|lib64)(?![\w.-])"
_QUOTED = re.compile(rf"(?P<quote>['\"])/(?!{_INSIDE})[^'\"\n]+(?P=quote)")
_PLAIN = re.compile(rf"(?:file://|(?<![\w/.\-]))/(?!/|{_INSIDE})[^\s'\":,;()\[\]]+")


def without_host_paths(words: str) -> str:
    """The same words without the paths that only this machine has."""
    return _PLAIN.sub(HIDDEN, _QUOTED.sub(HIDDEN, words))
