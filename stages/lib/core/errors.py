"""The one error a stage raises on purpose."""


class UserError(Exception):
    """An error that the user can fix. Its message says what is wrong, where, what was found and what to do next."""
