"""Weights that come with the library, by name: `shipped/vit`.

Each is a folder in `shipped` beside this file: the numbers under our names, a card that
says what they are and what they are not, and digests of both. `shipping` makes them.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from reid_jax.errors import UserError
from reid_jax.runtime import digests
from reid_jax.runtime import workdir as workdirs

PREFIX = "shipped/"
FOLDER = pathlib.Path(__file__).with_name("shipped")
WEIGHTS, CARD = "weights.safetensors", "card.json"


def is_name(place: str | os.PathLike[str]) -> bool:
    """Whether a place is meant as a name of such weights."""
    return os.fspath(place).startswith(PREFIX)


def names() -> tuple[str, ...]:
    """The names that there are."""
    return tuple(sorted(PREFIX + path.parent.name for path in FOLDER.glob(f"*/{CARD}")))


def locate(name: str) -> pathlib.Path:
    """The file of a name, which is as it was when it was made.

    Raises:
      UserError: there is no such name, or its folder is damaged.
    """
    if name not in names():
        listed = ", ".join(names()) or "none"
        raise UserError(f"the library brings no {name!r}; it brings: {listed}")
    folder = FOLDER / name.removeprefix(PREFIX)
    changed = digests.differences(folder)
    if changed is None or changed:
        why = changed[0] if changed else f"{digests.NAME} is not there"
        raise UserError(
            f"{name} is not as it was shipped ({why}); install the library again"
        )
    return folder / WEIGHTS


def card(name: str) -> dict[str, Any]:
    """What `shipping` has written of the weights; raises as `locate` does."""
    return workdirs.read_object(locate(name).with_name(CARD))
