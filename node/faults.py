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
