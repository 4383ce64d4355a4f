"""Shared fixtures. Eight simulated CPU devices, set before JAX starts.

JAX_PLATFORMS=cuda,cpu in the environment is for the tests that are marked `gpu`.
"""

import functools
import gc
import importlib.metadata
import os
import pathlib
import signal
import sys
import tempfile

# Tests compile much and compute little: half the time is saved. Processes that they
# start inherit it; what is marked `gpu` is compiled as users compile it. XLA's newer
# emitters, by way of MLIR, take four times as long to compile; jaxlib 0.12 has no
# others, and ends at a flag that it does not know. Of equal flags the last one counts:
# what the user asks for.
if (
    os.environ.get("JAX_PLATFORMS", "cpu") == "cpu"
    and os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true") == "true"
    and importlib.metadata.version("jaxlib").startswith("0.10.")
):
    mine = "--xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{mine} {os.environ.get('XLA_FLAGS', '')}"
# What one test has compiled the others read, those of other workers and the processes
# that tests start included; it goes with the process that made it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import cv2
import jax
import numpy as np
import pytest
from absl import flags
from matplotlib.figure import Figure

from configs import aaformer, baseline, cacenet, common, drop, sanet
from data_pipelines import prepare
from reid_jax.runtime import sharding
from tests import places as making

jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS") or "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# A shell's background jobs ignore Ctrl-C, and all that they start: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Grain's worker processes read absl flags, which only app.run would parse.
flags.FLAGS.mark_as_parsed()

MAKE_MESH = sharding.make_mesh
CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


def pytest_collection_finish():
    """Spares the collector what stays, and most of its visits.

    Tracing makes objects by the million that need no collector; with Python's own
    thresholds a quarter of its time is spent on looking through all that is loaded.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def pytest_runtest_setup(item):
    """Skips what needs an accelerator where there is none."""
    if item.get_closest_marker("gpu") and jax.default_backend() == "cpu":
        pytest.skip("no accelerator; JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real data beside the checkout; tests that need it skip where it is absent."""
    path = CHECKOUT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return path


def use_devices(patch, count):
    """Makes the loop use the first of the simulated devices, until `patch` ends."""
    patch.setattr(
        sharding, "make_mesh", lambda _=None: MAKE_MESH(jax.devices()[:count])
    )


@pytest.fixture
def on_devices(monkeypatch):
    """`use_devices` for a test."""
    return functools.partial(use_devices, monkeypatch)


@pytest.fixture
def hidden(monkeypatch, tmp_path):
    """Puts a user's package ahead of the library's of that name; returns its folder."""

    def hide(name):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").touch()
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)
        return folder

    return hide


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: figures.append(figure)
    )
    return figures


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> pathlib.Path:
    """A data_dir with `tiny`: 9 training and 5 test identities in Market's layout."""
    source, labels, data_dir = map(
        tmp_path_factory.mktemp, ("source", "labels", "data")
    )
    rng = np.random.default_rng(0)
    folders = {"bounding_box_train": range(1, 10), "query": (), "bounding_box_test": ()}
    folders["query"] = folders["bounding_box_test"] = range(20, 25)
    for folder, persons in folders.items():
        (source / folder).mkdir()
        for person in persons:
            look = np.random.default_rng(person).integers(0, 256, (4, 2, 3))
            for camera in (1, 2) if folder != "query" else (1,):
                for shot in range(3):
                    name = f"{person:04}_c{camera}s1_{shot:06}_{folder[0]}0.jpg"
                    noise = rng.integers(-40, 41, (4, 2, 3))
                    small = np.clip(look + noise, 0, 255).astype(np.uint8)
                    image = cv2.resize(small, (16, 32), interpolation=cv2.INTER_LINEAR)
                    cv2.imwrite(str(source / folder / name), image)
                    parts = rng.integers(0, 9, (32, 16), np.uint8)
                    cv2.imwrite(str(labels / name.replace(".jpg", ".png")), parts)
    prepare.prepare(
        "market1501",
        source=source,
        data_dir=data_dir,
        name="tiny",
        allow_other_counts=True,
        parts=labels,
        parts_kind="parts",
        progress=False,
    )
    return data_dir


@pytest.fixture(scope="session")
def places(tiny_data, tmp_path_factory) -> making.Places:
    """A run of the toy method, and its export."""
    return making.make(tmp_path_factory.mktemp("places"), tiny_data)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> pathlib.Path:
    """A folder of 21 pictures of several sizes, in subfolders, and other files."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(21):
        path = folder / f"camera{i % 3}" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (4 + i % 3, 2, 3), np.uint8)
        cv2.imwrite(str(path), cv2.resize(pixels, (20 + i, 40 + i)))
    (folder / "notes.txt").write_text("of the day")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "no.png").write_bytes(b"")
    return folder


def _shrink(config, data_dir) -> None:
    config.data.dataset = "tiny"
    config.data.data_dir = str(data_dir)
    config.data.height, config.data.width = 32, 16
    config.augment.pad_crop.pad = 2
    config.evaluation.batch_size = 8
    config.evaluation.query_block = 8
    config.evaluation.pair_block = 4
    config.evaluation.every_epochs = 0.0
    config.evaluation.pictured = (0, 7)  # each takes time to draw
    config.checkpoint.every_epochs = 0.0
    config.log_every_steps = 1
    for stage in config.stages.values():
        stage.identities, stage.images_per_identity = 4, 2


@pytest.fixture
def toy_config(tiny_data):
    """Config of `tests/toy_method.py`: two stages of 6 and 4 steps."""
    return toy(tiny_data)


def toy(data_dir):
    """`toy_config` for what outlives a test."""
    config = common.base("toy", common.parse("demo,scratch"))
    config.method = "tests.toy_method"
    config.model.update(width=6, top_k=3, bank_batches=3, explode_at=-1.0)
    config.stages = {"first": common.stage(), "second": common.stage()}
    _shrink(config, data_dir)
    for stage, epochs in (("first", 1.0), ("second", 4 / 6)):
        config.stages[stage].epochs = epochs
        config.stages[stage].optimizer.learning_rate = 0.1
        config.stages[stage].optimizer.warmup_epochs = 0.0
    return config


@pytest.fixture
def aaformer_config(tiny_data):
    """AAformer's demo, smaller still."""
    config = aaformer.get_config("demo,scratch")
    _shrink(config, tiny_data)
    config.model.update(width=24, depth=2, heads=2, patch_size=8, stride=(8, 8))
    config.stages.train.epochs = 1.0
    return config


@pytest.fixture
def baseline_config(tiny_data):
    """The ViT baseline's demo, smaller still, with the centre loss."""
    config = baseline.get_config("demo,scratch")
    _shrink(config, tiny_data)
    config.model.center_weight = 5e-4
    config.model.options.update(width=12, depth=1, heads=2, patch_size=8, stride=(8, 8))
    config.stages.train.epochs = 1.0
    return config


@pytest.fixture
def cacenet_config(tiny_data):
    """CACE-Net's demo, smaller still, with part labels."""
    config = cacenet.get_config("demo,scratch,row=table2-semantic")
    _shrink(config, tiny_data)
    config.model.update(width=2, embed_width=8, top_k=3)
    config.stages.train.epochs = 1.0
    return config


@pytest.fixture
def drop_config(tiny_data):
    """DROP's demo on a small ResNet, with M = 3 and an epoch of 6 steps."""
    config = drop.get_config("demo,scratch,row=table7-resnet50")
    _shrink(config, tiny_data)
    config.model.options.update(width=2)
    config.model.update(width=6, parsing_width=4, bank_batches=3)
    config.stages.train.epochs = 1.0
    return config


@pytest.fixture
def sanet_config(tiny_data):
    """SANet's demo, smaller still: two layers of cells and one part."""
    config = sanet.get_config("demo,scratch")
    _shrink(config, tiny_data)
    config.data.height, config.data.width = 48, 32
    config.model.update(width=2, layers=2, enhancement_width=4, mask_width=3)
    config.model.update(part_groups=((1, 2, 3, 4),), part_names=("upper",))
    config.model.global_branch = False
    config.stages.train.epochs = 1.0
    return config
