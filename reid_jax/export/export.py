"""`--mode=export`: Orbax parameters, self-contained artifacts and a model card.

The artifacts need only JAX to run, on CPU, CUDA and TPU, with any batch size. They
are checked in a fresh process that cannot import this library: they equal the model,
or there is no export.
"""

from __future__ import annotations

import functools
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export  # not loaded by `import jax`
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from reid_jax import experiment, storage
from reid_jax.errors import UserError
from reid_jax.models.method import Method, PairScorer, Variables, parameter_count
from reid_jax.runtime import checkpoint, sharding
from reid_jax.runtime import workdir as workdirs

PLATFORMS = ("cpu", "cuda", "tpu")
CHECKED_IMAGES = 3

# Run by a Python that sees neither this library nor the current folder.
_CHECK = """
import json, pathlib, sys
import jax, numpy as np
from jax import export
folder = pathlib.Path(sys.argv[1])
assert not any(name.startswith("reid_jax") for name in sys.modules)
stored = np.load(folder / "check.npz")
worst = {}
for call in json.loads((folder / "check.json").read_text()):
    artifact = export.deserialize((folder / call["artifact"]).read_bytes())
    given = jax.tree.unflatten(
        artifact.in_tree, [stored[name] for name in call["given"]]
    )
    got = jax.tree.leaves(jax.jit(artifact.call)(*given[0], **given[1]))
    wanted = [stored[name] for name in call["wanted"]]
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, b.shape)
        gap = np.abs(np.asarray(a, np.float64) - b) / (1e-6 + 1e-5 * np.abs(b))
        worst[call["artifact"]] = max(worst.get(call["artifact"], 0), gap.max())
print(json.dumps(worst))
sys.exit(any(not gap <= 1 for gap in worst.values()))
"""


def export_checkpoint(config: Any, path: str, *, directory: epath.Path) -> epath.Path:
    """Exports a checkpoint and checks the result.

    Writes `params/` (Orbax, {"params", collections...}), `embed.jaxexport` (uint8 RGB
    images [b, H, W, 3] to an Embedding), `distance.jaxexport` (two Embeddings to
    distances [q, g]), for pair models `pair_maps.jaxexport` and
    `score_pairs.jaxexport`, `export.json` and `README.md`, the model card.

    Args:
      config: of the run.
      path: a run's folder, or one step's.
      directory: where to write; an earlier export there is replaced at the end, in a
        bucket file by file.

    Raises:
      UserError: no checkpoint, another model's checkpoint, or an artifact that does
        not equal the model; nothing is written then.
    """
    folder = checkpoint.find(path)
    meta = checkpoint.read_meta(folder)
    storage.check_writable(directory.parent)
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    method, variables = experiment.restore(config, folder, mesh)
    remote = storage.in_bucket(directory)
    beside = None if remote else directory.parent
    with tempfile.TemporaryDirectory(dir=beside, prefix=".export-") as new:
        staging = pathlib.Path(new) / "export"
        staging.mkdir()
        _write_artifacts(config, method, variables, meta["stage"], staging)
        _check_in_fresh_process(staging)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
            writer.save(staging.resolve() / "params", dict(variables))
        about = _about(config, method, variables, meta)
        workdirs.write_json(staging / "export.json", about)
        workdirs.write_text(staging / "README.md", _card(about, meta))
        if remote:
            directory.rmtree(missing_ok=True)
            storage.copy_below(staging, directory)
        else:
            _put_in_place(staging, directory, old=pathlib.Path(new) / "old")
    return directory


def _put_in_place(new: pathlib.Path, place: epath.Path, *, old: pathlib.Path) -> None:
    if place.exists():
        place.rename(old)
    new.rename(place)


def _write_artifacts(
    config: Any, method: Method, variables: Variables, stage: str, folder: pathlib.Path
) -> None:
    """Serialises every function, with stored inputs and outputs to check it by."""
    height, width = experiment.image_size(config)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (CHECKED_IMAGES, height, width, 3), np.uint8)
    inputs = {
        "camera": np.zeros(CHECKED_IMAGES, np.int32),
        "parts": rng.integers(0, 9, (CHECKED_IMAGES, height, width), np.uint8),
    }

    def add_images(
        name: str, function: Callable[..., Any], names: Sequence[str]
    ) -> Any:
        def named(images: jax.Array, *rest: jax.Array) -> Any:
            return function(variables, images, **dict(zip(names, rest, strict=True)))

        given = [images, *(inputs[name] for name in names)]
        return recorder.add(name, named, ["b"] * len(given), *given)

    recorder = _Recorder(folder)
    embedding = add_images("embed", method.embed, method.embed_inputs)
    one = jax.tree.map(lambda x: x[:1], embedding)
    recorder.add("distance", method.distance, ["q", "g"], one, embedding)
    scorer = method.pair_scorer(stage)
    if scorer is not None:
        maps = add_images("pair_maps", scorer.pair_maps, scorer.inputs)
        query = jax.tree.map(lambda x: x[:1], maps)
        candidates = jax.tree.map(lambda x: x[None], maps)
        recorder.add(
            "score_pairs",
            lambda query, candidates: scorer.score_pairs(variables, query, candidates),
            ["q", "qk"],
            query,
            candidates,
        )
    recorder.close()


class _Recorder:
    """Serialises functions and keeps what each should return."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._arrays: dict[str, np.ndarray] = {}
        self._calls: list[dict[str, Any]] = []

    def add(
        self, name: str, function: Callable[..., Any], axes: list[str], *example: Any
    ) -> Any:
        """Exports `function` for any sizes of its leading axes.

        Args:
          name: of the artifact.
          function: of pytrees of arrays.
          axes: for each argument its leading axes, one letter each: "b", or "qk";
            equal letters are equal sizes.
          *example: arguments to check it by.

        Returns:
          what `function` returns at `example`.
        """
        jitted = jax.jit(function)
        scope = jax.export.SymbolicScope()
        shapes = [
            jax.tree.map(functools.partial(_symbolic, ",".join(letters), scope), given)
            for letters, given in zip(axes, example, strict=True)
        ]
        artifact = jax.export.export(jitted, platforms=PLATFORMS)(*shapes)
        file = f"{name}.jaxexport"
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

    def _keep(self, tree: Any) -> list[str]:
        names = []
        for leaf in jax.tree.leaves(tree):
            names.append(str(len(self._arrays)))
            self._arrays[names[-1]] = np.asarray(leaf)
        return names

    def close(self) -> None:
        """Writes the inputs and outputs for the fresh process."""
        np.savez(self._folder / "check.npz", **self._arrays)
        (self._folder / "check.json").write_text(json.dumps(self._calls))


def _symbolic(
    letters: str, scope: jax.export.SymbolicScope, array: Any
) -> jax.ShapeDtypeStruct:
    """The shape of `array` with symbols for its leading axes."""
    leading = jax.export.symbolic_shape(letters, scope=scope)
    return jax.ShapeDtypeStruct((*leading, *array.shape[len(leading) :]), array.dtype)


def _check_in_fresh_process(folder: pathlib.Path) -> None:
    """Raises UserError unless every artifact returns what the model does."""
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


def _about(
    config: Any, method: Method, variables: Variables, meta: dict[str, Any]
) -> dict[str, Any]:
    height, width = experiment.image_size(config)
    best = meta["best"] or {"entries": []}
    kinds = {
        "images": f"uint8 RGB [b, {height}, {width}, 3], resized bilinearly",
        "camera": "int32 [b], the training set's number of the camera",
        "parts": f"uint8 [b, {height}, {width}], part classes",
    }
    return {
        "method": config.method,
        "stage": meta["stage"],
        "step": meta["global_step"],
        "parameters": parameter_count(variables),
        "trained_on": meta["config"]["data.dataset"],
        "training_identities": meta["num_classes"],
        "input": {name: kinds[name] for name in ("images", *method.embed_inputs)},
        "output": _output(config, method, variables),
        **_pairs(method.pair_scorer(meta["stage"]), kinds),
        "platforms": list(PLATFORMS),
        "versions": {"jax": jax.__version__},
        "results": [
            entry
            for entry in best["entries"]
            if entry["step"] == meta["global_step"] and "metrics" in entry
        ],
        "config": meta["config"],
    }


def _pairs(scorer: PairScorer | None, kinds: dict[str, str]) -> dict[str, Any]:
    """What is said of a pair model beside."""
    if scorer is None:
        return {}
    return {
        "pair_input": {name: kinds[name] for name in ("images", *scorer.inputs)},
        "pair_candidates": scorer.top_k or "all",
    }


def _output(config: Any, method: Method, variables: Variables) -> dict[str, str]:
    """The arrays of an Embedding: type and shape, b for the batch."""
    batch = experiment.example_batch(config, 1)
    rest = {name: batch[name] for name in method.embed_inputs}
    shapes = jax.eval_shape(
        lambda v, image, rest: method.embed(v, image, **rest),
        variables,
        batch["image"],
        rest,
    )
    return {
        name: f"{x.dtype} [b{''.join(f', {n}' for n in x.shape[1:])}]"
        for name, x in shapes.items()
    }


def _card(about: dict[str, Any], meta: dict[str, Any]) -> str:
    """The model card."""
    rows = [
        f"| {entry['protocol']} | "
        + ", ".join(f"{k} {v:.1%}" for k, v in entry["metrics"].items())
        + f" | {entry['valid_queries']} |"
        for entry in about["results"]
    ] or ["| (this step was not evaluated) | | |"]
    height, width = (meta["config"][f"data.{side}"] for side in ("height", "width"))
    arguments = ", ".join(about["input"])
    notes = _notes(about["input"])
    platforms = ", ".join(about["platforms"])
    outputs = ", ".join(f"{name} {kind}" for name, kind in about["output"].items())
    return f"""# {about["method"].rsplit(".", 1)[-1]}, trained on {about["trained_on"]}

A person re-identification extractor.

| | |
|---|---|
| parameters | {about["parameters"]:,} |
| trained on | {about["trained_on"]}, {about["training_identities"]} identities |
| step | {about["step"]}, stage `{about["stage"]}`, seed {meta["config"]["seed"]} |
| input | {about["input"]["images"]}; normalised inside |
| embedding | a dict: {outputs} |

| protocol | result | valid queries |
|---|---|---|
{chr(10).join(rows)}

## Use

With `pip install jax flatbuffers opencv-python-headless`, in this folder:

```python
import pathlib
import cv2
import jax
import numpy as np
from jax import export

def load(path):
    image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    return cv2.resize(image, ({width}, {height}))  # bilinear

embed = export.deserialize(pathlib.Path("embed.jaxexport").read_bytes())
distance = export.deserialize(pathlib.Path("distance.jaxexport").read_bytes())

images = np.stack([load(path) for path in ["a.jpg", "b.jpg"]])
embedding = jax.jit(embed.call)({arguments})
print(jax.jit(distance.call)(embedding, embedding))  # smaller is more alike
```

{notes}{_pairs_of_card(about)}The artifacts run on {platforms} with any batch size.
They were written by jax {about["versions"]["jax"]} and checked against the model in a
fresh process. JAX promises to read them for six months; `params/` is the lasting record
(Orbax), to be used with reid_jax and the config in `export.json`.

## Limits

Trained and measured on the data named above, and on nothing else. Re-identification is
surveillance technology: similarity is no proof of identity, errors differ between
groups of people and between cameras, and most places regulate its use. Decide whether
it may be used before deciding how.
"""


def _notes(inputs: dict[str, str]) -> str:
    """What the inputs beside the images are."""
    further = {name: kind for name, kind in inputs.items() if name != "images"}
    return "".join(f"`{name}`: {kind}. " for name, kind in further.items())


def _pairs_of_card(about: dict[str, Any]) -> str:
    """How a pair model's second look at pairs is used; "" for other models."""
    if "pair_input" not in about:
        return ""
    candidates, inputs = about["pair_candidates"], about["pair_input"]
    which = "all of the gallery" if candidates == "all" else f"the {candidates} nearest"
    return f"""The results above include a second look at pairs of images: {which}
of each query. It compares maps of images, which are larger than embeddings:

```python
pair_maps = export.deserialize(pathlib.Path("pair_maps.jaxexport").read_bytes())
score_pairs = export.deserialize(pathlib.Path("score_pairs.jaxexport").read_bytes())

maps = jax.jit(pair_maps.call)({", ".join(inputs)})
query = jax.tree.map(lambda x: x[:1], maps)  # [q, ...]
candidates = jax.tree.map(lambda x: x[None], maps)  # [q, k, ...]
print(jax.jit(score_pairs.call)(query, candidates))  # [q, k]
```

{_notes(inputs)}How the scores change a ranking by distance is the method's `fuse`, in
reid_jax.

"""
