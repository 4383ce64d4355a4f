"""What an export says of itself: `export.json` and the model card."""

from __future__ import annotations

from typing import Any

import jax

from data_pipelines.images import BILINEAR
from reid_jax.models.method import (
    Embedding,
    Method,
    PairScorer,
    Variables,
    parameter_count,
)
from reid_jax.runtime.fingerprint import fingerprint
from reid_jax.runtime.state import Meta


def describe(
    method: Method,
    variables: Variables,
    meta: Meta,
    *,
    changed: dict[str, Any],
    image_size: tuple[int, int],
    embedding: Embedding,
    written: dict[str, Any],
) -> dict[str, Any]:
    """The content of `export.json`.

    Args:
      method: what is exported.
      variables: of it.
      meta: of its checkpoint.
      changed: fields of the config that differ from those it was trained with, with
        their values here. Figures of the trained network are then left out.
      image_size: height and width that it takes.
      embedding: of some images.
      written: what is said of the artifacts: their `format`, "jax" or "onnx", and more.
    """
    height, width = image_size
    best = meta["best"] or {"entries": []}
    config = meta["config"] | changed
    kinds = {
        "images": f"uint8 RGB [b, {height}, {width}, 3], resized: {_resize(config)}",
        "camera": "int32 [b], the training set's number of the camera, from 0 on",
        "parts": f"uint8 [b, {height}, {width}], part classes",
    }
    return {
        "method": meta["method"],
        "stage": meta["stage"],
        "step": meta["global_step"],
        "fingerprint": fingerprint(meta["method"], config, variables),
        "parameters": parameter_count(variables),
        "trained_on": meta["config"]["data.dataset"],
        "training_identities": meta["num_classes"],
        "input": {name: kinds[name] for name in ("images", *method.embed_inputs)},
        "output": _arrays(embedding),
        "parts": list(method.visibility_titles),
        "squared_distances": method.squared_distances,
        **_pairs(method.pair_scorer(meta["stage"]), kinds),
        **written,
        "versions": {"jax": jax.__version__},
        "changed": changed,
        "results": [
            entry
            for entry in best["entries"]
            if entry["step"] == meta["global_step"]
            and "metrics" in entry
            and not changed
        ],
        "config": config,
    }


def _resize(config: dict[str, Any]) -> str:
    """`config.data.resize`, which older runs do not have."""
    return config.get("data.resize", BILINEAR)


def _loading(
    about: dict[str, Any], image_size: tuple[int, int]
) -> tuple[str, str, str]:
    """How an image is read at the network's size: package, import, lines of code."""
    height, width = image_size
    resize = _resize(about["config"])
    how = resize.removeprefix("pil-")
    if how != resize:
        return (
            "pillow",
            "from PIL import Image, ImageOps",
            (
                f"""    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    return np.asarray(image.resize(({width}, {height}), Image.{how.upper()}))"""
            ),
        )
    return (
        "opencv-python-headless",
        "import cv2",
        (
            f"""    image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    assert image is not None, f"cannot read {{path}}"
    return cv2.resize(image, ({width}, {height}))  # bilinear"""
        ),
    )


def _pairs(scorer: PairScorer | None, kinds: dict[str, str]) -> dict[str, Any]:
    """What is said of a pair model beside."""
    if scorer is None:
        return {}
    return {
        "pair_input": {name: kinds[name] for name in ("images", *scorer.inputs)},
        "pair_candidates": scorer.top_k or "all",
    }


def _arrays(embedding: Embedding) -> dict[str, str]:
    """Type and shape of each, b for the batch."""
    return {
        name: f"{x.dtype} [b{''.join(f', {n}' for n in x.shape[1:])}]"
        for name, x in embedding.items()
    }


def text(about: dict[str, Any], *, image_size: tuple[int, int]) -> str:
    """The model card, in Markdown.

    Args:
      about: from `describe`.
      image_size: height and width that the artifacts take.
    """
    if about["format"] == "onnx":
        use = _use_of_onnx(about, image_size)
    else:
        use = _use(about, image_size) + _lasting(about)
    sections = _facts(about), use, LIMITS
    return "\n".join(sections)


def _why_no_figures(about: dict[str, Any]) -> str:
    if about["changed"]:
        return "those of the trained network are not of this one; see changed fields"
    return "this step was not evaluated"


def _changes(about: dict[str, Any]) -> str:
    """Lines of the table of facts; "" where the network is as it was trained."""
    return "".join(
        f"| **changed since training** | `config.{field}` is `{value}` |\n"
        for field, value in about["changed"].items()
    )


def _facts(about: dict[str, Any]) -> str:
    """What was trained on what, and its results."""
    rows = [
        f"| {entry['protocol']} | "
        + ", ".join(f"{k} {v:.1%}" for k, v in entry["metrics"].items())
        + f" | {entry['valid_queries']} |"
        for entry in about["results"]
    ] or [f"| ({_why_no_figures(about)}) | | |"]
    outputs = ", ".join(f"{name} {kind}" for name, kind in about["output"].items())
    return f"""# {about["method"].rsplit(".", 1)[-1]}, trained on {about["trained_on"]}

A person re-identification extractor.

| | |
|---|---|
| parameters | {about["parameters"]:,} |
| trained on | {about["trained_on"]}, {about["training_identities"]} identities |
| step | {about["step"]}, stage `{about["stage"]}`, seed {about["config"]["seed"]} |
| input | {about["input"]["images"]}; normalised inside |
| embedding | a dict: {outputs} |
{_changes(about)}
| protocol | result | valid queries |
|---|---|---|
{chr(10).join(rows)}
"""


def _use(about: dict[str, Any], image_size: tuple[int, int]) -> str:
    """How images are embedded and compared."""
    package, imported, lines = _loading(about, image_size)
    inputs = about["input"]
    return f"""## Use

With `pip install jax flatbuffers {package}`, in this folder:

```python
import pathlib
{imported}
import jax
import numpy as np
from jax import export

def load(path):
{lines}

embed = export.deserialize(pathlib.Path("embed.jaxexport").read_bytes())
distance = export.deserialize(pathlib.Path("distance.jaxexport").read_bytes())

images = np.stack([load(path) for path in ["a.jpg", "b.jpg"]])
embedding = jax.jit(embed.call)({", ".join(inputs)})
print(jax.jit(distance.call)(embedding, embedding))  # smaller is more alike
```

{_notes(inputs)}{_use_of_pairs(about)}"""


def _lasting(about: dict[str, Any]) -> str:
    """Where the artifacts run, and for how long."""
    platforms = ", ".join(about["platforms"])
    return f"""The artifacts run on {platforms} with any batch size.
They were written by jax {about["versions"]["jax"]} and checked against the model in a
fresh process. JAX promises to read them for six months; `params/` is the lasting record
(Orbax), to be used with reid_jax and the config in `export.json`.
"""


def _use_of_onnx(about: dict[str, Any], image_size: tuple[int, int]) -> str:
    """How images are embedded and compared in onnxruntime."""
    package, imported, lines = _loading(about, image_size)
    embed = about["artifacts"]["embed.onnx"]
    given = ", ".join(f'"{name}": {name}' for name in embed["input"])
    named = "".join(f"{name}, " for name in embed["output"]).rstrip()
    both = ", ".join(
        f'"{side}_{n.removeprefix("embed_")}": {n}'
        for n in embed["output"]
        for side in ("query", "gallery")
    )
    listed = "\n".join(
        f"| `{file}` | {_listed(found['input'])} | {_listed(found['output'])} | "
        f"{about['largest_differences'][file]:.1g} |"
        for file, found in about["artifacts"].items()
    )
    pairs = ""
    if "pair_input" in about:
        pairs = f"""{_second_look(about)}:
`pair_maps.onnx` makes them and `score_pairs.onnx` scores them, see below.
{_notes(about["pair_input"])}{_FUSED}

"""
    return f"""## Use

With `pip install onnxruntime {package}`, in this folder:

```python
{imported}
import numpy as np
import onnxruntime

def load(path):
{lines}

embed = onnxruntime.InferenceSession("embed.onnx")
distance = onnxruntime.InferenceSession("distance.onnx")

images = np.stack([load(path) for path in ["a.jpg", "b.jpg"]])
{named} = embed.run(None, {{{given}}})
print(distance.run(None, {{{both}}})[0])  # smaller is more alike
```

{_notes(about["input"])}

{pairs}| file | takes | returns | largest difference to the model |
|---|---|---|---|
{listed}

Differences are those of random images in onnxruntime on a CPU, in batches of several
sizes, relative to the largest value above 1.
"""


def _listed(signature: dict[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in signature.items())


LIMITS = """## Limits

Trained and measured on the data named above, and on nothing else. Re-identification is
surveillance technology: similarity is no proof of identity, errors differ between
groups of people and between cameras, and most places regulate its use. Decide whether
it may be used before deciding how.
"""


def _notes(inputs: dict[str, str]) -> str:
    """What the inputs beside the images are."""
    further = {name: kind for name, kind in inputs.items() if name != "images"}
    return "".join(f"`{name}`: {kind}. " for name, kind in further.items())


def _second_look(about: dict[str, Any]) -> str:
    """What a pair model does beside embedding."""
    candidates = about["pair_candidates"]
    which = "all of the gallery" if candidates == "all" else f"the {candidates} nearest"
    begin = "The results above include" if about["results"] else "Its ranking includes"
    return f"""{begin} a second look at pairs of images: {which}
of each query. It compares maps of images, which are larger than embeddings"""


_FUSED = """How the scores change a ranking by distance is the method's `fuse`, in
reid_jax."""


def _use_of_pairs(about: dict[str, Any]) -> str:
    """How a pair model's second look at pairs is used; "" for other models."""
    if "pair_input" not in about:
        return ""
    inputs = about["pair_input"]
    return f"""{_second_look(about)}:

```python
pair_maps = export.deserialize(pathlib.Path("pair_maps.jaxexport").read_bytes())
score_pairs = export.deserialize(pathlib.Path("score_pairs.jaxexport").read_bytes())

maps = jax.jit(pair_maps.call)({", ".join(inputs)})
query = jax.tree.map(lambda x: x[:1], maps)  # [q, ...]
candidates = jax.tree.map(lambda x: x[None], maps)  # [q, k, ...]
print(jax.jit(score_pairs.call)(query, candidates))  # [q, k]
```

{_notes(inputs)}{_FUSED}

"""
