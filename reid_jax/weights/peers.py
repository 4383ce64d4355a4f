"""Kinds of trained re-ID networks that other libraries publish, and how they test them.

One row of `KINDS` for each. What a file is made of (its backbone, widths, instance
normalisation, non-local blocks, cameras) is read from its arrays, see `networks`; what
a file does not say (image size, resampling, mean and deviation, which feature is
tested, whether it is normalised) is here, as the peer's own configuration has it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
LUPERSON = {"mean": (0.3525, 0.3106, 0.3140), "std": (0.2660, 0.2522, 0.2505)}

_WRAPPED = r"(?:module\.|model\.)*"

Rules = Mapping[str, str]
"""A regular expression of the peer's name -> our path. Its group, if it has one, is the
number of the token: heads of several tokens are stacked."""


def _neck(norm: str, classifier: str) -> Rules:
    """Rules of a BNNeck and a classifier without bias."""
    return {
        rf"{norm}\.weight": "params/heads/bn/scale",
        rf"{norm}\.running_mean": "batch_stats/heads/bn/mean",
        rf"{norm}\.running_var": "batch_stats/heads/bn/var",
        rf"{classifier}": "params/heads/classifier/kernel",
    }


_BOT = _neck(r"bottleneck(?:_(\d))?", r"classifier(?:_(\d))?\.weight")
_FAST_REID = _neck(
    r"heads\.(?:bnneck|bottleneck\.0)", r"heads\.(?:classifier\.)?weight"
) | {r"heads\.pool_layer\.p": "params/pool/p"}
STATISTICS = {"pixel_mean": "mean", "pixel_std": "std"}
"""fast-reid's names of what images are standardised with, in units of 1 / 255."""

_LINEAR = {
    r"classifier\.weight": "params/heads/classifier/kernel",
    r"classifier\.bias": "params/heads/classifier/bias",
}

_COUNTERS = r".*num_batches_tracked"
_IMAGENET_CLASSIFIER = r"base\.fc\.(weight|bias)"
# With a local branch, the last block and the norm that its two branches were copied
# from: the network computes them no more.
_UNUSED_COPIES = r"base\.(blocks\.\d+|norm)\..*"


@dataclasses.dataclass(frozen=True)
class Kind:
    """Trained networks of one peer.

    Attributes:
      about: whose they are, and the configuration that the row is of.
      backbones: those of `configs/baseline.py` that it may have.
      model: fields of `config.model`: mean and std, `feature`, `normalise`, `neck`,
        `pool`.
      size: height and width of its images; of a ViT the first that fits the file.
      resize: `config.data.resize`.
      heads: rules of what stands behind the backbone.
      zero: the peer's names of what must be zero, as we have no such parameter.
      dropped: the peer's names of what no test of it reads.
      options: of the backbone, where the file does not say them.
      options_of: more of them, by the name of the backbone.
      ceil_pool: the peer's names that only networks with `ResNet.ceil_pool` have.
      feature_dim: of its ResNet, channels of the layer behind the pooling; 0 for none.
    """

    about: str
    backbones: tuple[str, ...]
    model: Mapping[str, Any]
    size: tuple[int, int] = (256, 128)
    resize: str = "pil-bilinear"
    heads: Rules = dataclasses.field(default_factory=dict)
    zero: str = r"(?!)"
    dropped: str = _COUNTERS
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options_of: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=dict
    )
    ceil_pool: str = r"(?!)"
    feature_dim: int = 0

    def place(self, name: str) -> tuple[str, int] | None:
        """Our path and the token of an array of the heads; None for other arrays."""
        for pattern, path in self.heads.items():
            if found := re.fullmatch(_WRAPPED + pattern, name):
                return path, int((found.groups() or ("0",))[0] or 0)
        return None

    def is_dropped(self, name: str) -> bool:
        """Whether an array is left out on purpose."""
        return _matches(self.dropped, name)

    def must_be_zero(self, name: str) -> bool:
        """Whether an array may be there if it is zero."""
        return _matches(self.zero, name)

    def shows_ceil_pool(self, name: str) -> bool:
        """Whether an array is one that only `ceil_pool` networks have."""
        return _matches(self.ceil_pool, name)


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(f"{_WRAPPED}({pattern})", name) is not None


OSNETS = ("osnet_x1_0", "osnet_x0_75", "osnet_x0_5", "osnet_x0_25", "osnet_ibn_x1_0")
RESNETS = ("resnet50", "resnet50_ibn_a")

_AFTER = {"feature": "after", "normalise": True, "neck": "bn"}
_BEFORE = {"feature": "before", "normalise": True, "neck": "bn"}
_PLAIN = {"feature": "before", "normalise": False, "neck": "none"}


def _torchreid(name: str, *backbones: str, **fields: Any) -> Kind:
    model = _PLAIN | IMAGENET | fields.pop("model", {})
    about = f"torchreid, {name}, tested by Euclidean distance of features as they are"
    fields = {"about": about, "model": model, "heads": _LINEAR} | fields
    return Kind(backbones=backbones, **fields)


def _fast_reid(name: str, **fields: Any) -> Kind:
    model = _AFTER | IMAGENET | {"pool": fields.pop("pool", "mean")}
    return Kind(
        about=f"fast-reid, {name}, ResNet-50 with or without IBN, tested by cosine",
        backbones=RESNETS,
        model=model,
        resize="pil-bicubic",
        heads=_FAST_REID,
        zero=r"heads\.(bnneck|bottleneck\.0)\.bias",
        options={"last_stride": 1},
        # Its version 1.0 has renamed the head, and changed the pooling of the stem.
        ceil_pool=r"heads\.bottleneck\.0\.weight",
        **fields,
    )


KINDS: dict[str, Kind] = {
    "torchreid-osnet": _torchreid("OSNet", *OSNETS),
    "torchreid-osnet_ain": _torchreid(
        "OSNet-AIN",
        "osnet_ain_x1_0",
        about="torchreid, OSNet-AIN, tested by cosine",
        model={"normalise": True},
    ),
    "torchreid-resnet50": _torchreid(
        "ResNet-50", "resnet50", options={"last_stride": 2}
    ),
    "torchreid-resnet50_fc512": _torchreid(
        *("ResNet-50 with a layer of 512", "resnet50"),
        options={"last_stride": 1},
        feature_dim=512,
    ),
    "transreid": Kind(
        about="TransReID and its followers (people): ViT, with or without JPM and SIE",
        backbones=("vit", "transreid"),
        model=_BEFORE | HALF,
        heads=_BOT,
        zero=r"bottleneck(_\d)?\.bias",
        dropped=f"{_COUNTERS}|{_IMAGENET_CLASSIFIER}|{_UNUSED_COPIES}",
        options={"camera_scale": 3.0},
    ),
    "bot": Kind(
        about="reid-strong-baseline, ResNet-50 with or without IBN-a, tested by cosine",
        backbones=RESNETS,
        model=_AFTER | IMAGENET,
        heads=_BOT,
        zero=r"bottleneck\.bias",
        dropped=f"{_COUNTERS}|{_IMAGENET_CLASSIFIER}",
        options={"last_stride": 1},
        # Its ResNet has left the stem's ReLU out ("add missed relu", a comment says);
        # its IBN-a has it.
        options_of={"resnet50": {"stem_relu": False}},
    ),
    "fastreid-bot": _fast_reid("BoT"),
    "fastreid-agw": _fast_reid("AGW", pool="gem"),
    "fastreid-sbs": _fast_reid("SBS", pool="gem", size=(384, 128)),
    "luperson": Kind(
        about="LUPerson, ResNet-50 by MoCo, a start for fine-tuning without a head",
        backbones=("resnet50",),
        model=_PLAIN | LUPERSON | {"normalise": True},
        dropped=rf"{_COUNTERS}|(encoder_q\.)?fc\..*|encoder_k\..*|queue(_ptr)?",
        options={"last_stride": 1},
    ),
}
"""By the name that `--as` takes."""
