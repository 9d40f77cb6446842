"""The one error a stage raises on purpose."""


class UserError(Exception):
    """Something the user can fix: says what is wrong, where, what was found and what to do next."""
