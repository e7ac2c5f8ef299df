from modules.util.config.errors import Remedy


class UserError(Exception):
    """Something that a user can mend. The message says what is wrong, where, what was expected and what to do.

    Scripts print the message alone, without a traceback, and exit with 1.

    Args:
        text: the message. One about an option begins with its path in the config and a colon.
        remedies: changes of the config, each of which mends it.
    """

    def __init__(self, text: str, *remedies: Remedy) -> None:
        super().__init__(text)
        self.remedies = remedies
