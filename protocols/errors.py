"""The errors of the project, by who can mend them; the command line turns each into one line and an exit code."""


class HilError(Exception):
    """Base of all errors that a person can act on."""

    exit_code = 1


class InputError(HilError):
    """What was asked cannot be done: unknown name, wrong type, out of range. Mended by asking differently."""

    exit_code = 2


class DataError(InputError):
    """A data file is missing, truncated or not what it claims to be."""


class LimitError(InputError):
    """An operation goes beyond what the tester or the bench allows; nothing was sent to the array."""


class TesterError(HilError):
    """The tester failed or could not be reached."""

    exit_code = 3


class OperationIdError(TesterError):
    """An operation id was used twice with another content, or is lower than the tester's last."""


class StorageError(HilError):
    """The run file could not be written or read back."""

    exit_code = 4


class DivergedError(HilError):
    """Training left the numbers: a value is not finite."""


class ReplayError(HilError):
    """What is done again differs from what was recorded."""
