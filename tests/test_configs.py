"""Configs against the papers' text, and their arguments."""

import importlib
import pathlib

import jax
import pytest

import configs
from configs import aaformer, baseline, common
from reid_jax import experiment, weights
from reid_jax.errors import UserError

NAMES = sorted(
    path.stem
    for path in pathlib.Path(configs.__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "common", "run")
)

# All papers' but CACE-Net's, which compares all pairs of its batch.
BATCH = {("cacenet", None): 16}
BATCH |= {(name, "demo"): 32 for name in ("cacenet", "drop", "sanet")}


@pytest.mark.parametrize(
    ("name", "arg"),
    [
        *((name, arg) for name in NAMES for arg in (None, "demo")),
        *(("baseline", f"backbone={backbone}") for backbone in baseline.PRETRAINED),
        *(("baseline", f"demo,backbone={name}") for name in ("hrnet_w32", "pcb")),
    ],
)
def test_every_config_builds_its_method(name, arg):
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    assert config.name == name
    method = experiment.build_method(config, num_classes=3)
    shapes = jax.eval_shape(
        method.init, jax.random.key(0), experiment.example_batch(config, 2)
    )
    assert shapes["params"]
    for stage in experiment.build_stages(config, method):
        assert stage.batch_size == BATCH.get((name, arg), 64)


@pytest.mark.parametrize(
    ("name", "arg"),
    [
        *((name, None) for name in NAMES),
        *(("aaformer", f"backbone={backbone}") for backbone in aaformer.BACKBONES),
        *(("baseline", f"backbone={backbone}") for backbone in baseline.PRETRAINED),
    ],
)
def test_images_are_standardised_as_the_weights_want(name, arg):
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    if config.pretrained in weights.KNOWN:
        statistics = config.model.mean, config.model.std
        assert not weights.other_statistics(config.pretrained, *statistics)
    else:
        assert config.pretrained.startswith("runs/")


def test_aaformer_is_the_papers_section_4a():
    config = aaformer.get_config()
    assert (config.data.height, config.data.width) == (256, 128)
    assert (config.model.patch_size, config.model.stride) == (16, (16, 16))
    assert (config.model.depth, config.model.width, config.model.heads) == (12, 768, 12)
    assert config.model.granularities == (2, 3)
    assert (config.model.epsilon, config.model.sinkhorn_iterations) == (0.05, 3)
    train = config.stages.train
    assert (train.identities, train.images_per_identity, train.epochs) == (16, 4, 120)
    optimizer = train.optimizer
    assert (optimizer.name, optimizer.momentum) == ("sgd", 0.9)
    assert (optimizer.learning_rate, optimizer.warmup_from) == (8e-3, 8e-4)
    assert (optimizer.warmup_epochs, optimizer.weight_decay) == (10, 1e-4)
    assert (config.model.margin, config.model.label_smoothing) == (0.3, 0.1)
    assert config.augment.random_erasing.p == 0.5
    assert config.data.dataset == "market1501"
    assert config.pretrained == "vit_base_patch16_224"


def test_resnet_is_bots_recipe():
    """Luo et al., 2019: Adam, warm-up, a tenth at 40 and at 70 of 120 epochs."""
    config = baseline.get_config("backbone=resnet50")
    optimizer = config.stages.train.optimizer
    assert (optimizer.name, optimizer.learning_rate) == ("adam", 3.5e-4)
    assert (optimizer.warmup_epochs, optimizer.warmup_from) == (10, 3.5e-6)
    assert optimizer.milestones == (40, 70)
    assert config.stages.train.epochs == 120
    assert config.model.options.last_stride == 1
    assert config.model.mean == (0.485, 0.456, 0.406)
    assert config.variant == "resnet50-market1501"


class TestArguments:
    def test_demo_renders_its_own_data(self):
        config = aaformer.get_config("demo")
        assert config.data.dataset == "synthetic/holistic_demo"
        assert (config.pretrained, config.variant) == ("none", "demo")

    def test_dataset(self):
        config = aaformer.get_config("dataset=synthetic/occluded_demo")
        assert config.variant == "synthetic-occluded_demo"
        assert config.model.width == 768

    def test_demo_on_another_dataset_is_a_run_of_its_own(self):
        config = aaformer.get_config("demo,dataset=mine")
        assert (config.data.dataset, config.variant) == ("mine", "demo-mine")

    def test_an_unknown_backbone(self):
        with pytest.raises(UserError, match=r"unknown :backbone=resnet; known: vit,"):
            baseline.get_config("backbone=resnet")

    @pytest.mark.parametrize("arg", ["domo", "dataset", "demo=1", "size=3"])
    def test_unknown(self, arg):
        with pytest.raises(UserError, match=r"known: :demo, :dataset=\.\.\."):
            common.parse(arg)


def test_unknown_method():
    config = aaformer.get_config("demo")
    config.method = "reid_jax.models.aaformed"
    with pytest.raises(UserError, match=r"not a module.*aaformer, baseline"):
        experiment.build_method(config, num_classes=3)
