"""The command line, by verbs: `reid-jax VERB ...` or `python -m reid_jax VERB ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from reid_jax import errors
from reid_jax.errors import UserError

CONFIG_VERBS = {
    "train": "trains what --config describes",
    "evaluate": "ranks with the checkpoint of a --workdir",
    "export": "writes artifacts for other programs, and a model card",
    "benchmark": "measures speed and memory of a --config",
    "plan": "compiles a --config for TPUs and GPUs that are not here",
}
"""`reid_jax.main` has these, as `--mode=VERB` too: flags alone are a training."""

VERBS: dict[str, tuple[str, str]] = {
    "prepare": ("data_pipelines.prepare", "reads a data set and stores it"),
    "inspect": ("data_pipelines.inspect", "shows what a prepared data set holds"),
    "weights": ("reid_jax.weights.__main__", "converts pretrained weights"),
    "embed": ("reid_jax.embed.command", "embeds many images into a file"),
    "report": ("reid_jax.report.command", "writes one HTML file of a run, or several"),
    "search": ("reid_jax.search.command", "a gallery that is searched and reviewed"),
}
"""Verb -> (module, what it does). The module has `main(argv)` with the arguments behind
the verb. It raises UserError for a mistake of the user's, and may raise
KeyboardInterrupt(text) after Ctrl-C, to say what stands and how to go on."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb; it is imported when it is asked for.

    Args:
      argv: what follows the program's name; default that of the process.
    """
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("--help", "-h", "help"):
        print(_usage())
    elif verb in CONFIG_VERBS:
        _config_verb([f"--mode={verb}", *rest])
    elif verb.startswith("-"):
        _config_verb([verb, *rest])
    else:
        with errors.answered():
            _run(verb, rest)


def _config_verb(flags: Sequence[str]) -> None:
    with errors.answered():  # until then; `run` answers for itself
        main = importlib.import_module("reid_jax.main")
    main.run(["reid-jax", *flags])


def _run(verb: str, rest: Sequence[str]) -> None:
    if verb not in VERBS:
        known = ", ".join([*CONFIG_VERBS, *VERBS])
        raise UserError(f"no verb {verb!r}; known: {known}. See reid-jax --help")
    errors.check_own("configs", "data_pipelines")
    module = importlib.import_module(VERBS[verb][0])
    from reid_jax.runtime import interrupts

    with interrupts.acknowledged():
        module.main(rest)


def _usage() -> str:
    """What `--help` prints."""
    abouts = {name: about for name, (_, about) in VERBS.items()}
    rows = (f"  {verb:10} {about}" for verb, about in (CONFIG_VERBS | abouts).items())
    return "\n".join(
        [
            "reid-jax VERB ..., or reid-jax --config=... for a training:",
            *rows,
            "reid-jax VERB --help says more. A first training, on rendered images:",
            "  reid-jax --config=aaformer:demo",
        ]
    )


if __name__ == "__main__":
    main()
