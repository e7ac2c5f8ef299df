import sys
from collections.abc import Callable

from modules.util.UserError import UserError


def exit_status(work: Callable[[], object], *others: type[Exception]) -> int:
    """Does a command's work; returns 0, or 1 after an error that a user can mend, which is told in one line.

    Args:
        work: all that a command line does once it is parsed.
        others: errors beside UserError and OSError that a user can mend.
    """
    try:
        work()
    except (UserError, OSError, *others) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
