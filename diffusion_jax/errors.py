"""The one exception for what a user can put right."""


class UserError(ValueError):
    """Something a user can put right; the message says what is wrong, where, and what to do.

    The command lines print it as one sentence and exit with status 1. Anything else that is raised
    is a fault of the program and keeps its traceback.
    """


class MissingData(UserError):
    """A data set is not where it was looked for; a command may know how to do without it."""


def brief(value: object) -> str:
    """A value as a message shows it: in ASCII, and cut where it is long."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
