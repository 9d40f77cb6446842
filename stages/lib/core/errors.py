"""The one error a stage raises on purpose."""


class Stop(Exception):
    """Something the user can mend: says what is wrong, where, what was found, and what to do next."""
