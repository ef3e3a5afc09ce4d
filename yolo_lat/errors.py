"""The one exception type for input that a user can correct."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Input that cannot be used as given.

    The message is one sentence: what is wrong, where (file, line or key), and what to do. The command line prints it
    and exits with status 2; Python callers may catch it as `ValueError`.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest of `choices`, or an empty string when none is close."""
    found = get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""
