"""Artifacts as ONNX, each checked in onnxruntime against the model it comes from."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.export  # not loaded by `import jax`
import jax.extend.core
import numpy as np

from reid_jax.errors import UserError, first_line
from reid_jax.export.artifacts import symbolic
from reid_jax.export.rewriting import rewritten
from reid_jax.runtime.progress import said

CHECKED_BATCHES = (1, 2, 7)
TOLERANCE = 1e-4
"""Of a difference to the model; relative to an array's largest value above 1."""
COARSE = 2e-3
"""The same for distances, as an image's to itself is the root of a rounding error, and
for what is stored in float16."""

_AXES = {"b": "batch", "q": "queries", "g": "gallery", "k": "candidates"}
_PACKAGES = ("jax2onnx", "onnxruntime")


def check_installed() -> None:
    """Raises UserError unless there is what converts and what runs it."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            install = f"pip install {' '.join(_PACKAGES)}"
            raise UserError(f"--format=onnx needs {install} ({error})") from error


class Recorder:
    """Converts functions to ONNX and compares what they return.

    Args:
      folder: where the files go.

    Attributes:
      images: how many the functions are tried on.
      differences: artifact -> the largest difference to the model.
      signatures: artifact -> name -> type and shape of what it takes and returns.
    """

    images = max(CHECKED_BATCHES)

    def __init__(self, folder: pathlib.Path):
        check_installed()
        self._folder = folder
        self.differences: dict[str, float] = {}
        self.signatures: dict[str, dict[str, dict[str, str]]] = {}

    def add(
        self,
        name: str,
        function: Callable[..., Any],
        axes: Mapping[str, str],
        *example: Any,
    ) -> Any:
        """Converts a function and checks it; see `artifacts.Recording.add`.

        Raises:
          UserError: if something in it has no counterpart, or the result differs.
        """
        file = f"{name}.onnx"
        result = jax.tree.map(np.asarray, jax.jit(function)(*example))
        inputs = _named(dict(zip(axes, example, strict=True)))
        returned = _named({"": result})
        # Names are unique among both.
        outputs = {
            name if not n else f"{name}_{n}" if n in inputs else n: x
            for n, x in returned.items()
        }
        with said(f"converting {name} to ONNX"):
            data = _convert(name, function, axes, example, list(inputs), list(outputs))
        with said(f"checking {file} in onnxruntime"):
            self._check(file, data, axes, example, inputs, outputs)
        (self._folder / file).write_bytes(data)
        return result

    def _check(
        self,
        file: str,
        data: bytes,
        axes: Mapping[str, str],
        example: Sequence[Any],
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
    ) -> None:
        """Runs it with several batches, each a part of the example."""
        session = _session(data)
        self.signatures[file] = {
            "input": _signature(session.get_inputs()),
            "output": _signature(session.get_outputs()),
        }
        letters = [
            letter
            for given, letter in zip(example, axes.values(), strict=True)
            for _ in jax.tree.leaves(given)
        ]
        together = "".join(dict.fromkeys("".join(axes.values())))
        for size in CHECKED_BATCHES:
            given = {
                name: _first(x, letter, size)
                for (name, x), letter in zip(inputs.items(), letters, strict=True)
            }
            got = session.run(list(outputs), given)
            wanted = [_first(x, together, size) for x in outputs.values()]
            # Python's max would pass over NaN.
            worst = float(np.max(list(map(_difference, got, wanted))))
            self.differences[file] = max(self.differences.get(file, 0.0), worst)
            half = any(x.dtype == np.float16 for x in wanted)
            limit = COARSE if half or file == "distance.onnx" else TOLERANCE
            if not worst <= limit:
                raise UserError(
                    f"{file} in onnxruntime does not equal the model: for a batch of "
                    f"{size} it differs by {worst:.3g} ({limit:g} is the limit); "
                    "nothing was exported"
                )


def _convert(
    name: str,
    function: Callable[..., Any],
    axes: Mapping[str, str],
    example: Sequence[Any],
    inputs: list[str],
    outputs: list[str],
) -> bytes:
    """The ONNX file of a function; weights are inside."""
    import jax2onnx

    scope = jax.export.SymbolicScope()
    shapes = [
        jax.tree.map(
            functools.partial(symbolic, [_AXES[x] for x in letters], scope), given
        )
        for letters, given in zip(axes.values(), example, strict=True)
    ]
    leaves, tree = jax.tree.flatten(shapes)

    def flat(*arrays: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(function(*jax.tree.unflatten(tree, arrays)))

    traced = jax.make_jaxpr(flat)(*leaves)
    _check_precision(traced)
    # Traced before jax2onnx sees it: it would patch Flax's modules, and not know them.
    try:
        plain = jax.make_jaxpr(rewritten(traced))(*leaves)
        with _quiet():
            model = jax2onnx.to_onnx(
                jax.extend.core.jaxpr_as_fun(plain),
                inputs=leaves,
                model_name=name,
                input_names=inputs,
                output_names=outputs,
            )
    except Exception as error:  # It raises many kinds, for what it does not know.
        raise UserError(_refusal(name, error)) from error
    return model.SerializeToString()


def _check_precision(traced: jax.extend.core.ClosedJaxpr) -> None:
    """Raises UserError for bfloat16, which onnxruntime has few operations for."""
    if "bf16[" in str(traced.jaxpr):
        raise UserError(
            "ONNX: the network computes in bfloat16, or stores maps in it, which "
            "onnxruntime has no operations for; export it with "
            "--config.model.dtype=float32, or --config.model.map_dtype=float16"
        )


def _refusal(name: str, error: Exception) -> str:
    return (
        f"{name} cannot be converted to ONNX by jax2onnx "
        f"{importlib.metadata.version('jax2onnx')} with jax {jax.__version__} "
        f"({type(error).__name__}: {first_line(error)}); nothing was exported. "
        "--format=jax exports it for JAX"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of the converter, which are about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _session(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        data, options, providers=["CPUExecutionProvider"]
    )


def _named(trees: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of trees by where they are, such as `query_vector`; in jax's order."""
    return {
        "_".join(filter(None, [name, *map(_step, path)])): leaf
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _step(entry: Any) -> str:
    """What leads from a tree to one of its branches."""
    return str(getattr(entry, "key", getattr(entry, "idx", entry)))


def _first(array: np.ndarray, letters: str, size: int) -> np.ndarray:
    """The first entries along the leading axes."""
    return np.asarray(array)[(slice(size),) * len(letters)]


def _difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest, in units of the largest value above 1; infinite for a shape."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    return float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1))


def _signature(nodes: Sequence[Any]) -> dict[str, str]:
    """Type and shape by name, as in `uint8 [batch, 256, 128, 3]`."""
    return {
        node.name: f"{node.type[7:-1]} [{', '.join(map(str, node.shape))}]"
        for node in nodes
    }
