"""The one error that is shown to a user without a traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in what the user gave: a path, a file, a config field, an argument.

    The message is one or a few lines that say what is wrong, where, and what to do
    about it. Commands print it to standard error and exit with code 2. Anything else
    that is raised is a defect of the library and keeps its traceback.
    """


@contextlib.contextmanager
def answered(*, interrupted: str = "interrupted") -> Iterator[None]:
    """Inside, a `UserError` ends the process with its message and exit code 2.

    Ctrl-C ends it with code 130 and the text of the KeyboardInterrupt, or
    `interrupted` where it has none.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(str(error) or interrupted, file=sys.stderr)
        sys.exit(130)


def check_choices(**fields: tuple[str, tuple[str, ...]]) -> None:
    """Raises a `UserError` for a field, (value, choices), whose value is no choice."""
    for name, (value, choices) in fields.items():
        if value not in choices:
            raise UserError(f"{name} is one of {', '.join(choices)}, not {value!r}")
