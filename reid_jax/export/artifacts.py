"""Self-contained artifacts, and the check that they equal the model."""

from __future__ import annotations

import functools
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.export  # not loaded by `import jax`
import numpy as np

from reid_jax.errors import UserError
from reid_jax.models.method import Embedding, Method, Variables
from reid_jax.runtime.progress import said

PLATFORMS = ("cpu", "cuda", "tpu")

# Run by a Python that sees neither this library nor the current folder.
_CHECK = """
import json, pathlib, sys
import jax, numpy as np
from jax import export
folder = pathlib.Path(sys.argv[1])
assert not any(name.startswith("reid_jax") for name in sys.modules)
stored = np.load(folder / "check.npz")
# NumPy's files know no bfloat16, and give its bytes.
arrays = lambda kept: [stored[name].view(dtype) for name, dtype in kept]
worst = {}
for call in json.loads((folder / "check.json").read_text()):
    artifact = export.deserialize((folder / call["artifact"]).read_bytes())
    given = jax.tree.unflatten(artifact.in_tree, arrays(call["given"]))
    got = jax.tree.leaves(jax.jit(artifact.call)(*given[0], **given[1]))
    gaps = [0.0]
    for a, b in zip(got, arrays(call["wanted"]), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, (a, b)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        gaps.append((np.abs(a - b) / (1e-6 + 1e-5 * np.abs(b))).max())
    worst[call["artifact"]] = float(np.max(gaps))  # of which NaN is the largest
print(json.dumps(worst))
sys.exit(any(not gap <= 1 for gap in worst.values()))
"""


class Recording(Protocol):
    """What writes functions as artifacts of one format."""

    images: int
    """How many images the functions are tried on."""

    def add(
        self,
        name: str,
        function: Callable[..., Any],
        axes: Mapping[str, str],
        *example: Any,
    ) -> Any:
        """Writes a function for any sizes of its leading axes.

        Args:
          name: of the artifact.
          function: of pytrees of arrays.
          axes: of each argument, by a name for it, the leading axes, one letter each:
            "b", or "qk"; equal letters are equal sizes.
          *example: arguments to check it by.

        Returns:
          what `function` returns at `example`.
        """


def write(
    recorder: Recording,
    method: Method,
    variables: Variables,
    *,
    stage: str,
    image_size: tuple[int, int],
) -> Embedding:
    """Writes every function that others need of a method.

    Args:
      recorder: what writes them.
      method: whose functions.
      variables: that they close over.
      stage: whose pair scorer is one of them, if it has one.
      image_size: height and width.

    Returns:
      the Embedding that it is checked by.
    """
    inputs = _random_inputs(recorder.images, image_size)

    def add_images(
        name: str, function: Callable[..., Any], names: Sequence[str]
    ) -> Any:
        def named(images: jax.Array, *rest: jax.Array) -> Any:
            return function(variables, images, **dict(zip(names, rest, strict=True)))

        given = [inputs[name] for name in ("image", *names)]
        axes = dict.fromkeys(("images", *names), "b")
        return recorder.add(name, named, axes, *given)

    embedding = add_images("embed", method.embed, method.embed_inputs)
    two = jax.tree.map(lambda x: x[:2], embedding)
    axes = {"query": "q", "gallery": "g"}
    recorder.add("distance", method.distance, axes, two, embedding)
    scorer = method.pair_scorer(stage)
    if scorer is not None:
        maps = add_images("pair_maps", scorer.pair_maps, scorer.inputs)
        recorder.add(
            "score_pairs",
            lambda query, candidates: scorer.score_pairs(variables, query, candidates),
            {"query": "q", "candidates": "qk"},
            jax.tree.map(lambda x: x[:2], maps),
            jax.tree.map(lambda x: np.stack([x, x[::-1]]), maps),
        )
    return embedding


def _random_inputs(images: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """What artifacts are checked by, under the names of a batch."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (images, *size, 3), np.uint8),
        "camera": np.zeros(images, np.int32),
        "parts": rng.integers(0, 9, (images, *size), np.uint8),
    }


class Recorder:
    """Serialises functions for JAX, and keeps what each should return.

    Args:
      folder: where `check` finds all of it.
    """

    images = 3

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._arrays: dict[str, np.ndarray] = {}
        self._calls: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        function: Callable[..., Any],
        axes: Mapping[str, str],
        *example: Any,
    ) -> Any:
        """See `Recording.add`."""
        jitted = jax.jit(function)
        scope = jax.export.SymbolicScope()
        shapes = [
            jax.tree.map(functools.partial(symbolic, letters, scope), given)
            for letters, given in zip(axes.values(), example, strict=True)
        ]
        file = f"{name}.jaxexport"
        with said(f"exporting {name} for {', '.join(PLATFORMS)}"):
            artifact = jax.export.export(jitted, platforms=PLATFORMS)(*shapes)
            (self._folder / file).write_bytes(bytes(artifact.serialize()))
            result = jax.tree.map(np.asarray, jitted(*example))
        self._calls.append(
            {
                "artifact": file,
                "given": self._keep(example),
                "wanted": self._keep(result),
            }
        )
        return result

    def _keep(self, tree: Any) -> list[tuple[str, str]]:
        """Names and dtypes of the leaves."""
        kept = []
        for leaf in map(np.asarray, jax.tree.leaves(tree)):
            kept.append((str(len(self._arrays)), leaf.dtype.name))
            self._arrays[kept[-1][0]] = leaf
        return kept

    def close(self) -> None:
        """Writes the inputs and outputs for the fresh process."""
        np.savez(self._folder / "check.npz", **self._arrays)
        (self._folder / "check.json").write_text(json.dumps(self._calls))


def symbolic(
    names: Iterable[str], scope: jax.export.SymbolicScope, array: Any
) -> jax.ShapeDtypeStruct:
    """The shape of `array` with names for its leading axes."""
    leading = jax.export.symbolic_shape(",".join(names), scope=scope)
    return jax.ShapeDtypeStruct((*leading, *array.shape[len(leading) :]), array.dtype)


def check(folder: pathlib.Path) -> None:
    """Runs what a `Recorder` wrote in a fresh process.

    Raises:
      UserError: unless every artifact returns what the model does.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-c", _CHECK, str(folder.resolve())],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(
            "the exported artifacts do not equal the model; nothing was exported. "
            f"Differences over tolerance (1 is the limit): {done.stdout.strip()}\n"
            f"{done.stderr.strip()[-2000:]}"
        )
    for name in ("check.npz", "check.json"):
        (folder / name).unlink()
