"""Speed of our backbones beside the same networks in PyTorch, on the same cores or GPU.

    python -m benchmarks.backbones --backbone=resnet50 --batch=4
    python -m benchmarks.backbones --backbone=vit_base --batch=64 --device=cuda \\
        --dtype=bfloat16

Needs PyTorch, torchvision and timm, as `tests/goldens/make_goldens.py` does, and for
OSNet torchreid, as `make_osnet.py` does, in one environment with reid_jax, and for
`--device=cuda` both JAX and PyTorch with CUDA. Both sides get the same weights and
images (256 x 128, float32), matrix products in `--dtype` (PyTorch's by its automatic
mixed precision) and every core that the process may use or one GPU, and must agree
before they are timed.
Their repetitions alternate, so that whatever else the machine does slows down both.

Prints one line of JSON per backbone and mode: "forward" in evaluation; "train", a
forward and backward pass of the mean square of the global feature, and a step of SGD
with momentum. Seconds and images per second are those of the median repetition and
`ratio` is our images per second over PyTorch's; `ratio_of_fastest` is that of each
side's fastest repetition. A busy machine, which hits PyTorch's threads harder than
ours, makes the two differ: believe neither then. `difference` is how far our feature
or loss is from PyTorch's, relatively; `compile_seconds`, ours with tracing, is in no
other figure. PyTorch runs eagerly, in its default memory layout. Neither side may use
TF32 in place of float32. What is timed includes the way of the result to the host.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from reid_jax import errors
from reid_jax.backbones.hrnet import HRNet
from reid_jax.backbones.osnet import OSNet
from reid_jax.backbones.resnet import ResNet
from reid_jax.backbones.vit import VisionTransformer
from reid_jax.errors import UserError
from tests import goldens
from tests.goldens import filling, layout

OURS = {
    "vit_base": VisionTransformer(),
    "resnet50": ResNet(),
    "resnet50_ibn_a": ResNet(ibn=True),
    "hrnet_w32": HRNet(),
    "osnet_x1_0": OSNet(),
}
IMAGE_SIZE = (256, 128)
WARM_UP = 2
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
# Small: the weights are random, and must stay such that nothing overflows.
LEARNING_RATE, MOMENTUM = 1e-4, 0.9
PACKAGES = ("jax", "flax", "torch", "torchvision", "timm")
INSTALL = """install the PyTorch side, of which reid_jax itself needs nothing:
    pip install torch==2.13.0 pyyaml safetensors tqdm packaging
    pip install --no-deps torchvision==0.28.0 timm==1.0.31 huggingface_hub pillow"""


class Ours:
    """A network of ours, compiled."""

    def __init__(self, name: str, images: np.ndarray, dtype: str):
        module = OURS[name].clone(dtype=dtype)
        optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
        variables = layout.variables(module, IMAGE_SIZE)
        state = (variables, optimizer.init(variables["params"]))
        self._state = jax.device_put(state)
        self._images = jax.device_put(images)
        begin = time.perf_counter()
        forward = jax.jit(functools.partial(_forward, module))
        self._forward = forward.lower(self._state[0], self._images).compile()
        between = time.perf_counter()
        step = jax.jit(functools.partial(_step, module, optimizer), donate_argnums=0)
        self._step = step.lower(self._state, self._images).compile()
        self.compile_seconds = {
            "forward": between - begin,
            "train": time.perf_counter() - between,
        }

    def forward(self) -> np.ndarray:
        """The global features [B, D] in evaluation."""
        return np.asarray(self._forward(self._state[0], self._images))

    def train(self) -> np.ndarray:
        """The loss, after the step that it leads to."""
        self._state, loss = jax.block_until_ready(self._step(self._state, self._images))
        return np.asarray(loss)


def _forward(module: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    return _feature(module.apply(variables, images, train=False))


def _step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    state: tuple[Any, optax.OptState],
    images: jax.Array,
) -> tuple[tuple[Any, optax.OptState], jax.Array]:
    variables, momentum = state
    params = variables["params"]
    rest = {name: value for name, value in variables.items() if name != "params"}

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        maps, updated = module.apply(
            {"params": params, **rest}, images, train=True, mutable=list(rest)
        )
        return jnp.mean(jnp.square(_feature(maps))), updated

    (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, momentum = optimizer.update(gradients, momentum, params)
    params = optax.apply_updates(params, updates)
    return ({"params": params, **rest}, momentum), loss


def _feature(maps: dict[str, Any]) -> jax.Array:
    """CLS, OSNet's feature, or the means over the last maps, as the baselines do."""
    if "feature" in maps:
        return maps["feature"]
    if "cls" in maps:
        return maps["cls"]
    last = maps["incre"] if "incre" in maps else (maps["layer4"],)
    return jnp.concatenate([m.mean((1, 2)) for m in last], axis=-1)


class Original:
    """A network of `original`.

    Args:
      model: of PyTorch; it returns maps by name.
      images: float32 [B, H, W, 3].
      torch: the module.
      device, dtype: of its products.
    """

    def __init__(
        self,
        model: Any,
        images: np.ndarray,
        torch: ModuleType,
        *,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        self._torch = torch
        self._mixed = functools.partial(
            torch.autocast, device, torch.bfloat16, dtype == "bfloat16"
        )
        self._model = model.to(device)
        rows = self._torch.from_numpy(images).permute(0, 3, 1, 2)
        self._images = rows.contiguous().to(device)
        self._optimizer = self._torch.optim.SGD(
            self._model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM
        )

    def forward(self) -> np.ndarray:
        """The global features [B, D] in evaluation."""
        self._model.eval()
        with self._torch.inference_mode():
            return self._feature().cpu().numpy()

    def train(self) -> np.ndarray:
        """The loss, after the step that it leads to."""
        self._model.train()
        self._optimizer.zero_grad()
        loss = self._feature().square().mean()
        loss.backward()
        self._optimizer.step()
        return loss.detach().cpu().numpy()

    def _feature(self) -> Any:
        with self._mixed():
            maps = self._model(self._images)
        maps = {key: m.float() for key, m in maps.items()}
        if "feature" in maps:
            return maps["feature"]
        if "norm" in maps:
            return maps["norm"][:, 0]
        last = [m for key, m in maps.items() if key.startswith(("incre", "layer4"))]
        return self._torch.cat([m.mean((2, 3)) for m in last], dim=1)


def original(
    name: str,
    scripts: ModuleType,
    image_size: tuple[int, int] = IMAGE_SIZE,
    stride: int = 16,
) -> Any:
    """The network of torchvision, timm or torchreid, with weights by their names.

    Args:
      name: of `OURS`.
      scripts: `make_goldens`.
      image_size: height and width; a ViT's positions are for it.
      stride: of a ViT's patches.
    """
    if name == "vit_base":
        sizes = {"embed_dim": 768, "depth": 12, "num_heads": 12}
        model = scripts.ViT(image_size, stride, (16, 8), **sizes)
        model.load()
    elif name == "osnet_x1_0":
        # With the script's neighbours, which it has imported.
        model = importlib.import_module("tests.goldens.make_osnet").Featured()
        scripts.fill(model.net)
    elif name == "hrnet_w32":
        model = scripts.HRNet(32, (1, 4, 3), 4, 32)
        scripts.fill(model.net)
    else:
        model = scripts.resnet((3, 4, 6, 3), 64, 1, name == "resnet50_ibn_a")
        scripts.fill(model)
    return model


def golden_scripts() -> ModuleType:
    """`make_goldens`, a script that finds its neighbours as one does."""
    sys.path += goldens.__path__
    try:
        import make_goldens
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: {INSTALL}") from error
    finally:
        del sys.path[-len(goldens.__path__) :]
    return make_goldens


def measure(
    name: str,
    *,
    batch: int,
    repetitions: int,
    scripts: ModuleType,
    device: str = "cpu",
    dtype: str = "float32",
) -> list[dict[str, Any]]:
    """The lines of one backbone."""
    images = filling.images(*IMAGE_SIZE, batch)
    ours = Ours(name, images, dtype)
    theirs = Original(
        original(name, scripts), images, scripts.torch, device=device, dtype=dtype
    )
    lines = []
    for mode in ("forward", "train"):
        runs = getattr(ours, mode), getattr(theirs, mode)
        # The second loss of a training step has the first update in it.
        for _ in range(WARM_UP):
            difference = layout.relative(*(run() for run in runs))
            if not difference < TOLERANCE[dtype]:
                raise RuntimeError(f"{name}, {mode}: the two differ by {difference}")
        seconds = [tuple(seconds_of(run) for run in runs) for _ in range(repetitions)]
        lines.append(
            {
                "backbone": name,
                "mode": mode,
                "batch": batch,
                "dtype": dtype,
                **summary(seconds, batch),
                "compile_seconds": round(ours.compile_seconds[mode], 2),
                "difference": float(f"{difference:.1e}"),
            }
        )
    return lines


def seconds_of(run: Callable[[], Any]) -> float:
    """Of a call that waits for its result."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def summary(seconds: list[tuple[float, float]], batch: int) -> dict[str, Any]:
    """Figures of pairs of seconds, ours and PyTorch's."""
    ours, torch = (statistics.median(side) for side in zip(*seconds, strict=True))
    fastest = [min(side) for side in zip(*seconds, strict=True)]
    return {
        "images_per_second": round(batch / ours, 2),
        "torch_images_per_second": round(batch / torch, 2),
        "ratio": round(torch / ours, 3),
        "ratio_of_fastest": round(fastest[1] / fastest[0], 3),
        "seconds": round(ours, 4),
        "torch_seconds": round(torch, 4),
        "repetitions": len(seconds),
    }


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _use(device: str, scripts: ModuleType) -> None:
    """Takes both sides to the device.

    Raises:
      UserError: if one of them has none.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        jax.devices("gpu")
    except RuntimeError as error:
        raise UserError(f"--device={device}: JAX finds no GPU ({error})") from error
    if not scripts.torch.cuda.is_available():
        raise UserError(f"--device={device}: PyTorch finds no GPU")
    # PyTorch's choice among convolutions, as XLA makes one; without TF32 by default.
    scripts.torch.backends.cudnn.benchmark = True
    scripts.torch.backends.cudnn.allow_tf32 = False


def positive(text: str) -> int:
    """A flag's number, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", choices=[*OURS, "all"], default="all")
    parser.add_argument("--batch", type=positive, default=4, help="images")
    parser.add_argument("--repetitions", type=positive, default=10)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32")
    options = parser.parse_args(arguments)
    scripts = golden_scripts()
    _use(options.device, scripts)
    # What another run has compiled would make `compile_seconds` that of reading it.
    jax.config.update("jax_enable_compilation_cache", False)
    # JAX takes every core that the process may use; PyTorch may count otherwise.
    scripts.torch.set_num_threads(len(os.sched_getaffinity(0)))
    for name in OURS if options.backbone == "all" else [options.backbone]:
        for line in measure(
            name,
            batch=options.batch,
            repetitions=options.repetitions,
            scripts=scripts,
            device=options.device,
            dtype=options.dtype,
        ):
            print(json.dumps(line | machine()), flush=True)


if __name__ == "__main__":
    with errors.answered():
        main()
