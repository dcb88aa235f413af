"""The error for wrong input."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input from outside. The message is one line that names the argument, what was found and what to do.

    The command line prints the message and exits with code 2.
    """
