"""Errors that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input from outside: one line that names the file, flag or shape and how to mend it.

    The command line prints the line and exits with code 2; programs catch it as a ValueError.
    """
