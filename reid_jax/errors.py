"""The one error that is shown to a user without a traceback."""


class UserError(Exception):
    """A mistake in what the user gave: a path, a file, a config field, an argument.

    The message is one or a few lines that say what is wrong, where, and what to do
    about it. `reid_jax.main` and `data_pipelines.prepare` print it to standard error
    and exit with code 2. Anything else that is raised is a defect of the library and
    keeps its traceback.
    """
