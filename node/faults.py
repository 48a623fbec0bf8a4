"""What the operator must put right. Each error is one line and a hint; the command line exits with code 2."""


class OperatorError(Exception):
    """Something that the person running this node can and must change.

    Attributes:
        what: what is wrong, in one clause.
        hint: what to do about it.
        quote: lines of the operator's own text with a mark under the place; empty where one clause says it all.
    """

    def __init__(self, what: str, hint: str, quote: str = "") -> None:
        """Keep the parts as fields."""
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.quote = quote


class ConfigError(OperatorError):
    """A setting, a file or an argument is missing, unknown or out of range."""


class PortInUse(OperatorError):
    """Somebody else listens on the address that this node was told to use."""


class WalletLocked(OperatorError):
    """The key is encrypted, and no passphrase was given or it was the wrong one."""


class NoSandbox(OperatorError):
    """This machine cannot confine a stranger's job, so none is accepted."""


def sole_operator_error(group: BaseExceptionGroup[BaseException]) -> OperatorError | None:
    """The operator's mistake that brought tasks down, if nothing else went wrong with it.

    Tasks that run side by side end in a group of what befell each, however many nurseries deep.
    """
    mistakes, rest = group.split(OperatorError)
    if mistakes is None or rest is not None:
        return None
    first: BaseException = mistakes
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, OperatorError) else None


def storage_hint(fault: Exception, otherwise: str) -> str:
    """What to do about a database that cannot be opened or written: nothing is broken where only the disk is full."""
    full = getattr(fault, "sqlite_errorname", "") == "SQLITE_FULL"
    return "make room on the disk, then start again: nothing that was written is lost" if full else otherwise
