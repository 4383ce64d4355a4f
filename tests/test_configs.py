"""Configs against the papers' text, and their arguments."""

import functools
import importlib
import pathlib

import jax
import pytest

import configs
from configs import aaformer, baseline, common, drop, pretrain, sanet
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

# Traced at this size by `models/test_*_rows.py` and `models/test_baseline.py`.
TRACED = {(name, None) for name in NAMES if name != "pretrain"}
TRACED |= {("baseline", f"backbone={name}") for name in ("resnet50_ibn_a", "hrnet_w32")}


@pytest.mark.parametrize(
    ("name", "arg"),
    [
        *((name, arg) for name in NAMES for arg in (None, "demo")),
        # The test below builds the other three.
        *(("baseline", f"backbone=vit_{size}") for size in ("small", "large")),
        *(("baseline", f"backbone={name}") for name in ("resnet50_ibn_a", "hrnet_w32")),
        *(("baseline", f"demo,backbone={name}") for name in ("hrnet_w32", "pcb")),
        ("pretrain", "backbone=vit_deep"),
    ],
)
def test_every_config_builds_its_method(name, arg):
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    assert config.name == name
    method = experiment.build_method(config, num_classes=3)
    if (name, arg) not in TRACED:
        shapes = jax.eval_shape(
            method.init, jax.random.key(0), experiment.example_batch(config, 2)
        )
        assert shapes["params"]
    for stage in experiment.build_stages(config, method):
        assert stage.batch_size == BATCH.get((name, arg), 64)


@pytest.mark.parametrize(
    ("name", "arg"),
    [
        *((name, None) for name in NAMES if name != "pretrain"),  # from nothing
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


@pytest.mark.parametrize("name", ["resnet50", "resnet50_ibn_a"])
def test_resnets_train_by_bots_last_recipe(name):
    """`softmax_triplet_with_center.yml` of their code, and what it leaves out."""
    config = baseline.get_config(f"backbone={name}")
    optimizer = config.stages.train.optimizer
    assert (optimizer.name, optimizer.learning_rate) == ("adam", 3.5e-4)
    assert optimizer.weight_decay == 5e-4
    assert (optimizer.warmup_epochs, optimizer.warmup_from) == (10, 3.5e-6)
    assert (optimizer.milestones, optimizer.decay_factor) == ((40, 70), 0.1)
    assert not optimizer.groups
    assert config.stages.train.epochs == 120
    model = config.model
    assert (model.center_weight, model.center_rate) == (0.0005, 0.5)
    assert (model.triplet_weight, model.margin, model.label_smoothing) == (1, 0.3, 0.1)
    assert (model.feature, model.options.last_stride) == ("after", 1)
    assert config.model.mean == (0.485, 0.456, 0.406)
    erasing = config.augment.random_erasing
    assert (erasing.p, erasing.area, erasing.aspect) == (0.5, (0.02, 0.4), (0.3, 3.33))
    columns = zip(erasing.fill, model.mean, model.std, strict=True)
    filled = [(fill / 255 - mean) / std for fill, mean, std in columns]
    assert filled == pytest.approx(model.mean, abs=0.5 / 255 / 0.224)
    assert config.variant == f"{name}-market1501"
    without = baseline.get_config(f"backbone={name},row=no-center")
    assert without.model.center_weight == 0
    assert without.variant == f"{name}-market1501-no-center"


@pytest.mark.parametrize(
    ("dataset", "cameras"),
    [("market1501", 6), ("msmt17", 15), ("dukemtmc", 8), ("occluded_duke", 8)],
)
def test_transreid_is_the_authors_configuration(dataset, cameras):
    """`vit_transreid.yml` of their code for these sets, and what it leaves out."""
    config = baseline.get_config(f"backbone=transreid,dataset={dataset}")
    assert config.pretrained == "vit_base_patch16_224"
    assert (config.data.height, config.data.width) == (256, 128)
    model, options = config.model, config.model.options
    assert (model.margin, model.label_smoothing) == (None, 0)
    assert (model.part_weights, model.feature) == ((0.5, 0.5), "before")
    assert (options.cameras, options.camera_scale) == (cameras, 3.0)
    assert (options.stride, options.drop_path) == ((16, 16), 0.1)
    train = config.stages.train
    assert (train.identities, train.images_per_identity, train.epochs) == (16, 4, 120)
    optimizer = train.optimizer
    assert (optimizer.name, optimizer.momentum) == ("sgd", 0.9)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (0.008, 1e-4)
    assert (optimizer.warmup_epochs, optimizer.warmup_from) == (5, 0.01 * 0.008)
    assert (optimizer.final_factor, optimizer.milestones) == (0.002, ())
    assert optimizer.groups.biases.learning_rate == 2
    assert config.augment.steps == ("flip", "pad_crop", "random_erasing")
    erasing = config.augment.random_erasing
    assert (erasing.mode, erasing.p, erasing.log_aspect) == ("pixel", 0.5, True)
    assert (erasing.area, erasing.aspect) == ((0.02, 1 / 3), (0.3, 1 / 0.3))
    assert erasing.fill == erasing.deviation == (127.5, 127.5, 127.5)


@pytest.mark.parametrize(
    ("arg", "features", "also"),
    [
        ("backbone=resnet50", 1, {"loss_triplet", "loss_center"}),
        ("backbone=transreid,row=stride12-384", 5, {"loss_triplet"}),
        ("backbone=pcb", 6, set()),
    ],
)
def test_a_step_at_full_size_can_be_traced(arg, features, also):
    config = baseline.get_config(arg)
    method = experiment.build_method(config, num_classes=751)
    batch = experiment.example_batch(config, 4)
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    assert variables["params"]["heads"]["bn"]["scale"].shape[0] == features
    (stage,) = experiment.build_stages(config, method)
    assert stage.batch_size == 64
    step = functools.partial(method.objective, stage="train")
    loss, metrics, rest = jax.eval_shape(
        lambda v, b, rng: step(v, b, rng=rng, epoch=0.0),
        *(variables, batch, jax.random.key(0)),
    )
    assert loss.shape == ()
    assert set(metrics) == {"loss_id", "accuracy"} | also
    assert ("centers" in rest) == ("loss_center" in also)


def test_transreids_rows():
    rows = {
        row: baseline.get_config(f"backbone=transreid,row={row}")
        for row in baseline.VARIANTS["transreid"]
    }
    assert rows["stride12"].model.options.stride == (12, 12)
    assert rows["stride11"].model.options.stride == (11, 11)
    assert rows["384"].data.height == rows["stride12-384"].data.height == 384
    modules = {"baseline": ("vit", 0), "jpm": ("transreid", 0), "sie": ("vit", 6)}
    for row, wanted in modules.items():
        model = rows[row].model
        assert (model.backbone, model.options.cameras) == wanted
        assert model.margin is None
    for config in rows.values():
        assert experiment.build_method(config, num_classes=3)
    other = baseline.get_config("backbone=transreid,dataset=cuhk03np_labeled")
    assert other.model.options.cameras == 0
    with pytest.raises(UserError, match="how many cuhk03np_labeled has is not known"):
        baseline.get_config("backbone=transreid,row=sie,dataset=cuhk03np_labeled")
    with pytest.raises(UserError, match="unknown :row=jpm; known: none"):
        baseline.get_config("row=jpm")


@pytest.mark.parametrize("name", ["transreid", "resnet50", "resnet50_ibn_a"])
def test_demos_have_one_recipe(name):
    """BoT's losses; what was measured of them is in docs/results.md."""
    config = baseline.get_config(f"demo,backbone={name}")
    model = config.model
    assert (model.margin, model.label_smoothing, model.triplet_weight) == (0.3, 0.1, 1)
    assert (model.center_weight, model.part_weights) == (0, (1, 1))
    assert model.feature == "after"
    assert config.stages.train.optimizer.name == "adamw"
    from_nothing = name not in baseline.SHIPPED
    assert ("untrained" in config.stages.train.optimizer.groups) != from_nothing
    assert config.augment.random_erasing.fill == (124, 116, 104)


def test_what_demos_start_from_learns_from_people_of_its_own():
    config = pretrain.get_config("backbone=resnet")
    assert (config.name, config.variant) == ("pretrain", "resnet")
    assert config.data.dataset == "synthetic/pretrain"
    assert config.evaluate_on == ("synthetic/pretrain", "synthetic/holistic_demo")
    assert (config.data.height, config.data.width) == (128, 64)
    demo = pretrain.get_config("demo,backbone=resnet")
    assert (demo.variant, demo.data.dataset) == (
        "resnet-demo",
        "synthetic/pretrain_demo",
    )
    other = pretrain.get_config("dataset=synthetic/holistic_small")
    assert other.variant == "vit-synthetic-holistic_small"
    assert other.evaluate_on[0] == other.data.dataset == "synthetic/holistic_small"


class TestArguments:
    def test_demo_renders_its_own_data(self):
        config = aaformer.get_config("demo")
        assert config.data.dataset == "synthetic/holistic_demo"
        assert (config.pretrained, config.variant) == ("shipped/vit", "demo")

    def test_a_demo_from_scratch(self):
        config = aaformer.get_config("demo,scratch")
        assert (config.pretrained, config.variant) == ("none", "demo-scratch")
        with pytest.raises(UserError, match=":scratch goes with :demo; a full network"):
            aaformer.get_config("scratch")

    @pytest.mark.parametrize(
        ("arg", "pretrained"),
        [
            ("demo,row=table7-resnet50", "shipped/resnet"),
            ("demo,row=table5-pcb-pct", "shipped/resnet"),
            ("demo,row=table7-resnet50-ibn", "none"),
            ("demo,scratch,row=table7-resnet50", "none"),
            ("row=table7-resnet50", "resnet50"),
        ],
    )
    def test_a_row_with_another_backbone_has_its_weights(self, arg, pretrained):
        assert drop.get_config(arg).pretrained == pretrained

    def test_dataset(self):
        config = aaformer.get_config("dataset=synthetic/occluded_demo")
        assert config.variant == "synthetic-occluded_demo"
        assert config.model.width == 768

    def test_demo_on_another_dataset_is_a_run_of_its_own(self):
        config = aaformer.get_config("demo,dataset=mine")
        assert (config.data.dataset, config.variant) == ("mine", "demo-mine")
        own, other = (
            sanet.get_config(f"demo{rest}").variant
            for rest in ("", ",dataset=synthetic/holistic_demo")
        )
        assert (own, other) == ("demo", "demo-synthetic-holistic_demo")

    def test_other_part_labels_are_a_run_of_their_own(self):
        variants = [
            module.get_config(f"row={row}{rest}").variant
            for module, row, rest in (
                (drop, "table8-5", ""),
                (drop, "table8-5", ",part_kind=parts"),
                (sanet, "table4-1x1", ",labels=lip"),
            )
        ]
        assert variants == [
            "occluded_duke-table8-5",
            "occluded_duke-table8-5-parts",
            "market1501-table4-1x1-lip",
        ]

    def test_an_unknown_backbone(self):
        with pytest.raises(UserError, match=r"unknown :backbone=resnet; known: vit,"):
            baseline.get_config("backbone=resnet")

    @pytest.mark.parametrize("arg", ["domo", "dataset", "demo=1", "size=3"])
    def test_unknown(self, arg):
        with pytest.raises(UserError, match=r"known: :demo, :scratch, :dataset=\.\.\."):
            common.parse(arg)

    @pytest.mark.parametrize("arg", ["demo,demo", "dataset=a,demo,dataset=b"])
    def test_twice(self, arg):
        with pytest.raises(UserError, match=r"argument :(demo|dataset) is there twice"):
            common.parse(arg)


def test_unknown_method():
    config = aaformer.get_config("demo")
    config.method = "reid_jax.models.aaformed"
    with pytest.raises(UserError, match=r"not a module.*aaformer, baseline"):
        experiment.build_method(config, num_classes=3)
