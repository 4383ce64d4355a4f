"""Loads pretrained weights into a method's variables, and says what was loaded."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.backbones.non_local import NON_LOCAL
from reid_jax.backbones.patches import resize_position_embedding
from reid_jax.errors import UserError
from reid_jax.weights import fetch, files, grids, mapping

SHOWN_NAMES = 6

EXTRAS = re.compile(
    rf".*/(extra_tokens|extra_pos_embed|sie_embed|{NON_LOCAL}\d(_\d)?/.*)"
)
"""Parameters of backbones that no pretrained file has; they start as initialised."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a load did, by name.

    Attributes:
      source: the file, and what it seems to hold.
      loaded: our paths that took the file's values as they are.
      copied: our paths that took another's values; see `load_pretrained`.
      resized: position embeddings that were resized, with both grids.
      skipped: the file's names that no backbone needs: classifiers and the like.
      missing: our paths that the file does not have; they are as initialised.
      unexpected: the file's names that the config allows and nothing took.
    """

    source: str
    loaded: tuple[str, ...]
    copied: tuple[str, ...]
    resized: tuple[str, ...]
    skipped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"pretrained weights: {self.source}"]
        for field, note in _NOTES.items():
            names = getattr(self, field)
            listed = f"  {note}{_listed(names)}" if note and names else ""
            lines.append(f"  {field:<10} {len(names):>5}{listed}")
        return "\n".join(lines)


_NOTES = {
    "loaded": "",
    "copied": "in further branches: ",
    "resized": " ",
    "skipped": "on purpose: ",
    "missing": "as initialised: ",
    "unexpected": "allowed by the config: ",
}


def load_pretrained(
    variables: Mapping[str, Any],
    path_or_name: str,
    *,
    position_grid: grids.Grid | None = None,
    pretrained_grid: grids.Grid | None = None,
    copies: Mapping[str, str] | None = None,
    allow_unexpected: Sequence[str] = (),
) -> tuple[dict[str, Any], Report]:
    """Puts pretrained values into `params/backbone` and `batch_stats/backbone`.

    A file of TransReID's network also fills `params/local`, its second branch. Prints
    the report (on the first process).

    Args:
      variables: of a method, initialised, or `jax.ShapeDtypeStruct`s.
      path_or_name: a file or folder that `files.read` knows, or one of
        `fetch.KNOWN`.
      position_grid: rows and columns of the backbone's position embedding; needed if
        the file's has others.
      pretrained_grid: those of the file's, where it does not say them; see `grids`.
      copies: modules that start as copies of others, as the branches that re-ID
        systems put on a pretrained stage; by path within a collection, such as
        {"local/layer4": "backbone/layer4"}. A prefix of names: "backbone/layer4"
        stands for layer4_0 and layer4_1, too.
      allow_unexpected: regular expressions of the file's names that the network may
        lack; each must match the whole name.

    Returns:
      variables of the same structure, and the report. Loaded values have the dtype
      and, where it has one, the sharding of what they replace; without one they are
      NumPy arrays.

    Raises:
      UserError: no such file; or it does not fit: arrays that the network does not
        have, parameters of the backbone that the file does not have, other shapes.
        The message lists them.
    """
    file = files.read(fetch.locate(path_or_name))
    mapped = mapping.to_ours(file)
    loader = _Loader(
        mapped,
        position_grid,
        known_grid(file, mapped, pretrained_grid),
        dict(copies or {}),
    )
    target = files.flatten(variables)
    values = {path: loader.value(path, leaf) for path, leaf in target.items()}
    unused = [path for path in mapped.arrays if path not in loader.used]
    unexpected = [mapped.names[path] for path in unused]
    refused = _refused(unexpected, allow_unexpected)
    if refused or loader.lacking or loader.misshapen:
        raise UserError(_differences(file, mapped, target, loader, refused))
    report = loader.report(file, unexpected)
    if jax.process_index() == 0:
        print(report)
    leaves = [values[path] for path in target]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves), report


def known_grid(
    file: files.WeightFile, mapped: mapping.Mapped, given: grids.Grid | None = None
) -> grids.Grid | None:
    """Rows and columns of a file's position embedding; None if nothing says them.

    Args:
      file: what was read.
      mapped: the same under our names.
      given: by the user, for files that do not say it.

    Raises:
      UserError: if what is said does not agree with itself or the file.
    """
    given = grids.parse(given, "config.pretrained_grid")
    position = mapped.arrays.get("params/backbone/pos_embed")
    if position is None or position.ndim != 3:
        return None
    count = position.shape[1] - 1
    stated = file.grid or fetch.known_grid(file.path)
    if stated and given and stated != given:
        raise UserError(
            f"config.pretrained_grid is {given}, but {file.path} says {stated}; leave "
            "the field out"
        )
    grid = stated or given or grids.of_imagenet(file.arrays, count)
    if grid and math.prod(grid) != count:
        origin = file.path if stated else "config.pretrained_grid"
        raise UserError(
            f"{file.path} has a position embedding of {count} patches and one CLS "
            f"token, which are not the {grid[0]} x {grid[1]} that {origin} says"
        )
    return grid


def _refused(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names that no pattern allows."""
    try:
        allowed = [re.compile(pattern) for pattern in patterns]
    except (re.error, TypeError) as error:
        raise UserError(
            f"config.allow_unexpected: {getattr(error, 'pattern', patterns)!r} is not "
            f"a regular expression ({error})"
        ) from error
    return [name for name in names if not any(r.fullmatch(name) for r in allowed)]


@dataclasses.dataclass
class _Loader:
    """Finds a value for each leaf, and keeps the books.

    Attributes:
      mapped, position_grid, copies: see `load_pretrained`.
      file_grid: rows and columns of the file's position embedding, if known.
      loaded, copied, resized, missing: as of `Report`.
      used: paths of the file's arrays that a variable has taken.
      lacking: parameters that the file should have.
      misshapen: descriptions of arrays of other shapes than the parameter's.
    """

    mapped: mapping.Mapped
    position_grid: grids.Grid | None
    file_grid: grids.Grid | None
    copies: dict[str, str]
    loaded: list[str] = dataclasses.field(default_factory=list)
    copied: list[str] = dataclasses.field(default_factory=list)
    resized: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    used: set[str] = dataclasses.field(default_factory=set)
    lacking: list[str] = dataclasses.field(default_factory=list)
    misshapen: list[str] = dataclasses.field(default_factory=list)

    def value(self, path: str, leaf: Any) -> Any:
        """What the variable at `path` becomes."""
        source = self._source(path)
        if source is None:
            return leaf
        self.used.add(source)
        array = self.mapped.arrays[source]
        shape = tuple(leaf.shape)
        if path.endswith("/pos_embed") and self._has_other_grid(array, shape):
            array = self._resize(path, array, shape)
        elif array.shape == shape:
            (self.loaded if source == path else self.copied).append(path)
        else:
            self._note(path, array, shape)
        if array.shape != shape:
            return leaf
        # Always a copy: JAX may use its memory as it is, and the step donates it.
        array = np.array(array, leaf.dtype, order="C")
        place = getattr(leaf, "sharding", None)
        return array if place is None else jax.device_put(array, place)

    def report(self, file: files.WeightFile, unexpected: Sequence[str]) -> Report:
        """What was done, when every leaf has been asked for."""
        network = mapping.describe(self.mapped.arrays) or "unknown network"
        return Report(
            source=f"{file.path}, {network}",
            loaded=tuple(self.loaded),
            copied=tuple(self.copied),
            resized=tuple(self.resized),
            skipped=self.mapped.skipped,
            missing=tuple(self.missing),
            unexpected=tuple(unexpected),
        )

    def _source(self, path: str) -> str | None:
        """Our path of the file's array that goes to `path`."""
        if path in self.mapped.arrays:
            return path
        collection, _, rest = path.partition("/")
        origins = [(c, o) for c, o in self.copies.items() if rest.startswith(c)]
        for copy, original in origins:
            source = f"{collection}/{original}{rest.removeprefix(copy)}"
            if source in self.mapped.arrays:
                return source
        extra = EXTRAS.fullmatch(path)
        needed = origins or (mapping.BACKBONE.match(path) and not extra)
        (self.lacking if needed else self.missing).append(path)
        return None

    def _note(
        self, path: str, array: np.ndarray, shape: tuple[int, ...], why: str = ""
    ) -> None:
        text = f"{path}: {array.shape} in the file, {shape} here{why}"
        self.misshapen.append(text)

    def _has_other_grid(self, array: np.ndarray, shape: tuple[int, ...]) -> bool:
        """Whether resizing is called for: as many patches may be other rows."""
        if array.ndim != 3 or (array.shape[0], array.shape[2]) != (1, shape[2]):
            return False
        known = self.file_grid and self.position_grid
        return array.shape != shape or (known and self.file_grid != self.position_grid)

    def _resize(
        self, path: str, array: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        """A position embedding for our grid; as it was, and noted, if impossible."""
        old, new = self.file_grid, self.position_grid
        if new is None or math.prod(new) != shape[1] - 1:
            why = f"; this method does not say its rows and columns ({new})"
            self._note(path, array, shape, why)
            return array
        if old is None:
            why = (
                f"; the file does not say how its {array.shape[1] - 1} patches lie: "
                "name their rows and columns, such as --config.pretrained_grid=14,14 "
                "for 224 x 224 pixels in patches of 16"
            )
            self._note(path, array, shape, why)
            return array
        self.resized.append(f"{path} {old[0]} x {old[1]} to {new[0]} x {new[1]}")
        embedding = jnp.asarray(array, jnp.float32)
        return np.asarray(resize_position_embedding(embedding, old, new))


def _differences(
    file: files.WeightFile,
    mapped: mapping.Mapped,
    target: Mapping[str, Any],
    loader: _Loader,
    refused: list[str],
) -> str:
    """Why a file does not fit, in a few lines."""
    lines = [
        f"{file.path} does not fit the network.",
        f"  the file holds: {mapping.describe(mapped.arrays) or 'an unknown network'}",
        f"  the config's backbone: {mapping.describe(target) or 'an unknown network'}",
    ]
    if loader.misshapen:
        lines.append(f"  other shapes ({len(loader.misshapen)}):")
        lines += [f"    {text}" for text in loader.misshapen[:SHOWN_NAMES]]
    if loader.lacking:
        lines.append(f"  missing in the file: {_listed(loader.lacking)}")
    if refused:
        lines.append(f"  only in the file: {_listed(refused)}")
    lines.append(
        "Choose the file that the config's backbone was made for, or the config that "
        "fits the file; what is only in the file can be allowed by name "
        "(config.allow_unexpected, regular expressions). --config.pretrained=none "
        "starts from nothing; so does :demo,scratch, by its own schedule."
    )
    return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    text = ", ".join(names[:SHOWN_NAMES])
    return f"{text} and {more} more" if more > 0 else text
