"""What goes wrong in ways that a caller may want to tell apart."""

import warnings


class ReductionWarning(UserWarning):
    """A reduction that was asked for did not happen, or nobody can have meant it so."""


class ContractError(ValueError):
    """A model, or its version of transformers, is not what the engine relies on.

    Raised by `reduce()` before anything runs, or at the end of a pass whose outcome shows it.
    """


class Refused(ValueError):
    """What was asked for cannot be done: told in one line, without a traceback."""


def warn_once(said: str) -> None:
    """Warns of a name that is deprecated, once in a process."""
    if said not in _said:
        _said.add(said)
        warnings.warn(said, DeprecationWarning, stacklevel=4)


_said: set[str] = set()
