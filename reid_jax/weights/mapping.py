"""Names and layouts of other libraries' weights, and ours.

PyTorch's names become ours by rule, for any backbone whose modules are named after
the original's: `layer1.0.bn1.weight` is `params/backbone/layer1_0/bn1/scale`, a number
joins the name before it; matrices are transposed, convolutions go from [out, in, h, w]
to [h, w, in, out], running statistics to `batch_stats`. So timm's ViT, torchvision's
ResNet, IBN-Net, HRNet and OSNet need no tables, and the way back is the same rule.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from reid_jax.errors import UserError
from reid_jax.weights import files, values, vits

BACKBONE = re.compile(r"(params|batch_stats)/backbone/")
_KEPT = re.compile(r"(params|batch_stats)/(backbone|local)/")

# Classifiers, their necks and poolers; what HRNet puts between its streams and its
# classifier; counters of batches, which no momentum here needs.
_SKIPPED = re.compile(
    r"(head|head_dist|pre_logits|pooler|fc|classifier(_\d+)?|bottleneck(_\d+)?|heads"
    r"|downsamp_modules|final_layer)\..*|(.*\.)?num_batches_tracked"
)

# What training wraps a network in: DataParallel, torch.compile, re-ID systems,
# self-supervised ones. Beside some of them stands a second network, which is left out.
_WRAPPERS = (
    *("module.", "_orig_mod.", "model.", "base."),
    *("encoder_q.", "teacher.", "student.", "backbone.", "vit."),
)
_BESIDE = {
    "encoder_q.": re.compile(r"encoder_k\..*|queue(_ptr)?"),  # MoCo
    "teacher.": re.compile(r"student\..*"),  # DINO
}
# torchreid's layer between pooling and classifier is the network's own; the projection
# of self-supervised networks, which has the same names, has more layers.
_FULLY_CONNECTED = re.compile(r"fc\.[01]\..*")

_LEAVES = {
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
_AXES_BACK = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


@dataclasses.dataclass(frozen=True)
class Mapped:
    """A file's arrays under our names.

    Attributes:
      arrays: by our path, `params/backbone/...` or `batch_stats/backbone/...`, and
        `params/local/...` for TransReID's second branch.
      names: what the file calls them, by our path.
      skipped: the file's names of what no backbone needs.
    """

    arrays: dict[str, np.ndarray]
    names: dict[str, str]
    skipped: tuple[str, ...]


def to_ours(file: files.WeightFile) -> Mapped:
    """Renames and transposes the arrays of a file.

    Raises:
      UserError: if two arrays of the file would have one name, or hold numbers that no
        network has.
    """
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    skipped = []
    convert = {
        files.PYTORCH: _from_pytorch,
        files.GOOGLE: vits.from_google,
        files.OURS: _from_ours,
    }[file.convention]
    for name, path, array in convert(file.arrays):
        if path is None:
            skipped.append(name)
        elif path in arrays:
            raise UserError(one_parameter(file, names[path], name, path))
        else:
            arrays[path], names[path] = array, name
    values.check(file.path, arrays, names)
    return Mapped(arrays, names, tuple(skipped))


def one_parameter(file: files.WeightFile, one: str, other: str, path: str) -> str:
    """What is wrong with a file of two arrays for one parameter."""
    return (
        f"{file.path} holds {one} and {other}, which are one parameter here ({path}); "
        "save only the network's state_dict()"
    )


_Triples = Iterable[tuple[str, str | None, np.ndarray]]
"""The file's name, our path or None for what is skipped, the array in our layout."""


def _from_ours(arrays: Mapping[str, np.ndarray]) -> _Triples:
    for name, array in arrays.items():
        yield name, name if _KEPT.match(name) else None, array


def _from_pytorch(arrays: Mapping[str, np.ndarray]) -> _Triples:
    arrays, renamed = vits.to_timm(arrays, _unwrap(arrays))
    branches = _transreid_branches(renamed.values())
    kept = _fully_connected(renamed.values())
    for name, array in arrays.items():
        clean = renamed.get(name)
        branch = clean and clean[:5]
        if clean is None:
            yield name, None, array
        elif branch in branches:
            module, own = branches[branch]
            yield name, *_ours(own + clean[5:], array, module)
        elif (_SKIPPED.fullmatch(clean) and clean not in kept) or clean.startswith(
            tuple(own for module, own in branches.values() if module == "backbone")
        ):
            yield name, None, array
        else:
            # fast-reid's non-local blocks
            yield name, *_ours(re.sub(r"^NL_(\d)\.", r"nonlocal\1.", clean), array)


def _fully_connected(names: Iterable[str]) -> set[str]:
    """Names of torchreid's fully connected layer, without its counter."""
    found = {name for name in names if name.startswith("fc.")}
    known = {name for name in found if _FULLY_CONNECTED.fullmatch(name)}
    if found != known or "fc.1.running_mean" not in found:
        return set()
    return {name for name in known if not name.endswith("num_batches_tracked")}


def _unwrap(names: Iterable[str]) -> dict[str, str]:
    """Names without those of the modules around the backbone, where one is wanted."""
    clean = {name: name for name in names}
    while wrapper := _wrapper(clean.values()):
        beside = _BESIDE.get(wrapper)
        clean = {
            name: short.removeprefix(wrapper)
            for name, short in clean.items()
            if not (beside and beside.fullmatch(short))
        }
    return clean


def _wrapper(names: Iterable[str]) -> str | None:
    """The first of `_WRAPPERS` that any name begins with."""
    starts = {name.partition(".")[0] + "." for name in names}
    return next((wrapper for wrapper in _WRAPPERS if wrapper in starts), None)


def _transreid_branches(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Modules of TransReID's two branches: our module, and the prefix within it.

    Its networks with a local branch keep trained copies of the last block and the
    norm in `b1` (global) and `b2` (local), and the originals, unused, in the backbone.
    """
    names = list(names)
    if not any(name.startswith("b1.0.") for name in names):
        return {}
    blocks = (re.match(r"blocks\.(\d+)\.", name) for name in names)
    last = max((int(found[1]) for found in blocks if found), default=0)
    return {
        "b1.0.": ("backbone", f"blocks.{last}."),
        "b1.1.": ("backbone", "norm."),
        "b2.0.": ("local", "block."),
        "b2.1.": ("local", "norm."),
    }


def _ours(
    name: str, array: np.ndarray, module: str = "backbone"
) -> tuple[str, np.ndarray]:
    """Our path and layout of a PyTorch parameter of a module, the backbone."""
    path, _, leaf = name.rpartition(".")
    collection = "params"
    if leaf == "weight" and array.ndim in _AXES:
        leaf = "scale" if array.ndim == 1 else "kernel"
        array = array.transpose(_AXES[array.ndim])
    elif leaf in _LEAVES:
        collection, leaf = _LEAVES[leaf]
    path = re.sub(r"\.(\d+)(?=\.|$)", r"_\1", path).replace(".", "/")
    return "/".join(filter(None, (collection, module, path, leaf))), array


def to_pytorch(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Variables by path as a PyTorch state dict; undoes `to_ours` bit for bit.

    The backbone under its original's names; with a local branch, the state dict of
    TransReID's network. Heads are left out.
    """
    state = _pytorch_names(arrays, "backbone")
    local = _pytorch_names(arrays, "local")
    if not local:
        return state
    last = max(int(re.match(r"blocks\.(\d+)|", name)[1] or 0) for name in state)
    whole = {f"base.{name}": array for name, array in state.items()}
    for branch, source, block in (
        ("b1", state, f"blocks.{last}."),
        ("b2", local, "block."),
    ):
        for prefix, index in ((block, 0), ("norm.", 1)):
            for name, array in source.items():
                if name.startswith(prefix):
                    whole[f"{branch}.{index}.{name.removeprefix(prefix)}"] = array
    return whole


def _pytorch_names(
    arrays: Mapping[str, np.ndarray], module: str
) -> dict[str, np.ndarray]:
    """The variables of one module under PyTorch's names within it."""
    state = {}
    back = {own: leaf for leaf, own in _LEAVES.items()}
    for full, array in arrays.items():
        collection, _, rest = full.partition("/")
        if not rest.startswith(f"{module}/"):
            continue
        path, _, leaf = rest.removeprefix(f"{module}/").rpartition("/")
        if leaf in ("scale", "kernel") and array.ndim in _AXES_BACK:
            leaf, array = "weight", array.transpose(_AXES_BACK[array.ndim])
        leaf = back.get((collection, leaf), leaf)
        path = re.sub(r"_(\d+)(?=_|/|$)", r".\1", path).replace("/", ".")
        state[".".join(filter(None, (path, leaf)))] = array
    return state


def describe(arrays: Mapping[str, Any]) -> str | None:
    """The architecture that variables by path are of, in words; None if unknown."""

    def shape(path: str) -> tuple[int, ...] | None:
        return (
            arrays[name].shape
            if (name := f"params/backbone/{path}") in arrays
            else None
        )

    if patches := shape("patch_embed/proj/kernel"):
        depth = {p.split("/")[2] for p in arrays if "/backbone/blocks_" in p}
        return f"ViT of width {patches[-1]}, depth {len(depth)}, patch {patches[0]}"
    if shape("stage2_0/branches_0_0/conv1/kernel"):
        widths = shape("stage4_0/branches_0_0/conv1/kernel") or ("?",)
        return f"HRNet-W{widths[-1]}"
    if last := shape("conv5/conv/kernel"):
        kind = "-IBN" if shape("conv2_0/IN/scale") else ""
        kind = "-AIN" if shape("pool2_0/conv/kernel") else kind
        return f"OSNet{kind} of {last[-1]} channels"
    if shape("layer1_0/conv1/kernel"):
        blocks = {p.split("/")[2] for p in arrays if "/backbone/layer" in p}
        ibn = "-IBN-a" if shape("layer1_0/bn1/IN/scale") else ""
        return f"ResNet{ibn} of {len(blocks)} blocks"
    return None
