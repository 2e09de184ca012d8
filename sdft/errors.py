"""The one exception that reaches a user: a failure reported in a single line.

Every message says what was expected, what came, where, and what to do. The command line prints it after "sdft: " and
exits with 1; a traceback therefore always means a defect of this program.
"""
from __future__ import annotations

import difflib
from collections.abc import Iterable


class SdftError(Exception):
    """A failure that its message explains in one line."""


class Interrupted(SdftError):
    """The user asked to stop, and the work is saved. The command line exits with 130."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the known word closest to `word`, or '' when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
