"""What is shown to a user without a traceback, and with which exit code."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import pathlib
import sys
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake in what the user gave: a path, a file, a config field, an argument.

    The message is one or a few lines that say what is wrong, where, and what to do
    about it. Commands print it to standard error and exit with code 2. Anything else
    that is raised is a defect of the library and keeps its traceback.
    """


class Terminated(Exception):
    """What a notice to stop (SIGTERM) ended, once all was saved; what to say of it.

    Commands print it and exit with code 143, as whatever sent the notice expects of
    what is not done yet: Kubernetes starts it again then.
    """


@contextlib.contextmanager
def answered(*, interrupted: str = "interrupted") -> Iterator[None]:
    """Inside, a `UserError` ends the process with its message and exit code 2.

    Ctrl-C ends it with code 130 and the text of the KeyboardInterrupt, or
    `interrupted` where it has none; `Terminated` with code 143.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(str(error) or interrupted, file=sys.stderr)
        sys.exit(130)
    except Terminated as notice:
        print(notice, flush=True)
        sys.exit(143)


def first_line(error: Exception) -> str:
    """Of what another library's exception says: for a message of one sentence."""
    return (str(error).strip().splitlines() or ["nothing said"])[0][:300]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What is added of the known name that is nearest; nothing if none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def check_own(*packages: str) -> None:
    """Raises a `UserError` for a package of the library that another one hides.

    Python takes the first `configs` of its path, and the working directory, or that of
    a user's script, is ahead of where the library is.
    """
    library = pathlib.Path(__file__).resolve().parents[1]
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        found = pathlib.Path(spec.origin).resolve()
        if found != library / name / "__init__.py":
            theirs = found.parent if found.name == "__init__.py" else found
            raise UserError(
                f"{theirs} hides the library's own package {name!r}; rename it, or "
                "start Python in another folder"
            )


def check_choices(**fields: tuple[str, tuple[str, ...]]) -> None:
    """Raises a `UserError` for a field, (value, choices), whose value is no choice."""
    for name, (value, choices) in fields.items():
        if value not in choices:
            raise UserError(f"{name} is one of {', '.join(choices)}, not {value!r}")
