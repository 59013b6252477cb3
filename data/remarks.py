"""Messages that the log itself makes of single operations. The program of a run does not say them, so that a run that
is done again neither repeats them nor misses them.
"""

from hil.protocols.messages import Operation, Receipt, Status

PREFIX = "operation "

PARTS = {Operation.READ: "cells", Operation.SET: "cells", Operation.RESET: "cells", Operation.UPDATE: "slots"}


def is_remark(text: str) -> bool:
    """Whether a message is one of these."""
    return text.startswith(PREFIX)


def uncertain(kind: Operation, count: int, receipt: Receipt) -> str:
    """Of an operation that was answered, but not as complete."""
    done = f"{receipt.done} pulses were applied" if receipt.status == Status.PARTIAL else "nobody knows what was done"
    return f"{PREFIX}id {receipt.op_id} ({_asked(kind, count)}) is uncertain: {done}"


def in_doubt(row: int, kind: Operation, count: int) -> str:
    """Of an operation that was announced, and whose row never came."""
    return (
        f"{PREFIX}{row}, {_asked(kind, count)}, was being sent when the run was cut; it is resolved by its id on resume"
    )


def _asked(kind: Operation, count: int) -> str:
    return f"{kind.name} of {count} {PARTS[kind]}" if kind in PARTS else kind.name
