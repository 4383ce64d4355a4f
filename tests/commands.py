"""Commands that a test runs in its own process."""

from collections.abc import Callable, Sequence

from reid_jax import errors


def ended(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int:
    """The exit code of a command that answers for the user's mistakes."""
    try:
        with errors.answered():
            main(arguments)
    except SystemExit as end:
        return end.code
    return 0
