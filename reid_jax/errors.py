"""The one error that is shown to a user without a traceback."""


class UserError(Exception):
    """A mistake in what the user gave: a path, a file, a config field, an argument.

    The message is one or a few lines that say what is wrong, where, and what to do
    about it. `reid_jax.main` and `data_pipelines.prepare` print it to standard error
    and exit with code 2. Anything else that is raised is a defect of the library and
    keeps its traceback.
    """


def check_choices(**fields: tuple[str, tuple[str, ...]]) -> None:
    """Raises a `UserError` for a field, (value, choices), whose value is no choice."""
    for name, (value, choices) in fields.items():
        if value not in choices:
            raise UserError(f"{name} is one of {', '.join(choices)}, not {value!r}")
