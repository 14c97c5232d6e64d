"""The exceptions that the commands know: what a user can mend, and what a user asked for."""


class InputError(ValueError):
    """Bad input: one line that says what came, what was expected and what to do."""


class Interrupted(Exception):
    """The user asked to stop; what was finished has been kept."""
