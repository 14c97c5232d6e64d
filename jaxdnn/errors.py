"""The errors that a user can mend."""


class InputError(ValueError):
    """Bad input: one line that says what came, what was expected and what to do."""
