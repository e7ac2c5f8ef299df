class UserError(Exception):
    """Something that a user can mend. The message says what is wrong, where, what was expected and what to do.

    Scripts print the message alone, without a traceback, and exit with 1.
    """
