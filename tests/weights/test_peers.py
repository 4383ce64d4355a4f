"""Trained networks of other libraries as runs, beside embeddings of their own code.

The goldens are by `tests/goldens/make_peers.py`, with names and shapes of the peers'
state dicts.
"""

import contextlib
import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import run as run_config
from data_pipelines.images import resize
from reid_jax import experiment, weights
from reid_jax.errors import UserError
from reid_jax.runtime import checkpoint, sharding
from reid_jax.runtime.state import TrainState
from reid_jax.weights import __main__ as command
from reid_jax.weights import files, mapping, peers, runs
from tests import commands
from tests.goldens import filling, layout
from tests.weights import torch_writer

GOLDEN = layout.golden("peers")
KINDS = sorted({name.split("/")[0] for name in GOLDEN})
SMALL = (64, 32)


@functools.cache
def state_dict(kind):
    """What the peer saves."""
    shapes = json.loads(str(GOLDEN[f"{kind}/shapes"]))
    return {n: filling.peers_tensor(n, tuple(s)) for n, s in shapes.items()}


def convert(folder, kind, state, name="w.pth.tar"):
    """Runs the command; returns its exit code, and the run's folder."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(state, path)
    else:
        torch_writer.write(path, {"epoch": 3, "state_dict": state})
    out = folder / "run"
    return commands.ended(
        command.main, [f"--from={path}", f"--as={kind}", f"--to={out}"]
    ), out


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """By kind: the run's folder."""

    @functools.cache
    def made(kind):
        code, folder = convert(tmp_path_factory.mktemp(kind), kind, state_dict(kind))
        assert code == 0
        return folder

    return made


def restored(folder, size=None):
    config = run_config.get_config(str(folder))
    if size:
        config.data.height, config.data.width = size
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    step = checkpoint.find(str(folder))
    return config, *experiment.restore(config, step, mesh)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_equal_the_peers(converted, kind):
    """From the pictures on: resampling, standardisation, network, test feature."""
    size = None if kind == "transreid" else SMALL
    config, method, variables = restored(converted(kind), size)
    size = experiment.image_size(config)
    images = np.stack([resize(x, size, config.data.resize) for x in filling.pictures()])
    camera = np.arange(len(images), dtype=np.int32) % 6
    embed = jax.jit(method.embed)
    found = np.asarray(embed(variables, images, camera)["vector"])
    expected = GOLDEN[f"{kind}/embedding"]
    if config.model.normalise:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    layout.assert_equal(found, expected, 1e-5)
    # They depend on the picture, and not by rounding.
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_is_accounted_for(converted, kind):
    about = json.loads((converted(kind) / "conversion.json").read_text())
    taken = [name for names in about["taken"].values() for name in names]
    assert sorted(taken + about["dropped"]) == sorted(state_dict(kind))
    assert not [name for name in about["dropped"] if name.endswith("running_mean")]
    assert about["filled"] == []


def test_what_each_peers_network_is(converted):
    """By the peers' configurations; widths and the like by their state dicts."""
    found = {kind: run_config.get_config(str(converted(kind))) for kind in KINDS}
    model = {kind: config.model for kind, config in found.items()}
    assert {k: m.backbone for k, m in model.items()} == {
        "bot": "resnet50",
        "fastreid-sbs": "resnet50_ibn_a",
        "torchreid-osnet": "osnet_x0_25",
        "torchreid-resnet50_fc512": "resnet50",
        "transreid": "transreid",
    }
    assert model["transreid"].options.cameras == 6
    assert model["transreid"].options.stride == (16, 16)
    assert model["fastreid-sbs"].options.dot_non_local == (0, 1, 2, 0)
    assert model["fastreid-sbs"].options.ceil_pool
    assert not model["bot"].options.stem_relu
    assert model["fastreid-sbs"].pool == "gem"
    assert found["fastreid-sbs"].data.height == 384
    assert [m.feature for m in model.values()].count("after") == 2


def test_what_was_converted_starts_a_training(converted):
    """Its backbone; the classifier is another training's."""
    _, method, variables = restored(converted("bot"))
    shapes = jax.eval_shape(lambda tree: tree, variables)
    loaded, report = weights.load_pretrained(
        shapes, str(converted("bot")), copies=method.pretrained_copies
    )
    own, got = files.flatten(variables), files.flatten(dict(loaded))
    for path in report.loaded:
        np.testing.assert_array_equal(own[path], got[path])
    assert {p.split("/")[1] for p in report.loaded} == {"backbone"}
    assert {p.split("/")[1] for p in report.missing} == {"heads"}


def test_no_training_goes_on_in_its_folder(converted):
    _, _, variables = restored(converted("bot"))
    rest = {name: x for name, x in variables.items() if name != "params"}
    state = TrainState(None, None, variables["params"], rest, None)
    checkpoints = checkpoint.Checkpoints(str(converted("bot")))
    with pytest.raises(UserError, match=r"no training .* --config\.pretrained=.*/run$"):
        checkpoints.restore(state, None)
    checkpoints.close()


def test_safetensors_are_the_same(converted, tmp_path):
    code, folder = convert(tmp_path, "bot", state_dict("bot"), "w.safetensors")
    assert code == 0
    trees = [files.read(path).arrays for path in (folder, converted("bot"))]
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_where_it_is_written(tmp_path, capsys):
    """Through a link to nothing, as any file is; else one message, and nothing left."""
    path = torch_writer.write(tmp_path / "w.pth", state_dict("transreid"))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "new" / "there")

    def run(target):
        return commands.ended(
            command.main, [f"--from={path}", "--as=transreid", f"--to={target}"]
        )

    assert run(link) == 0
    assert (tmp_path / "new" / "there" / "config.json").is_file()
    capsys.readouterr()
    before = sorted(tmp_path.iterdir())
    for target, message in (
        ("/proc/x", "cannot write to /proc"),
        (path / "x", "cannot write to"),
        (tmp_path / "x.safetensors", "with --as a run's folder is written"),
    ):
        assert run(target) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def sorted_file(tmp_path, state, kind):
    path = torch_writer.write(tmp_path / "w.pth", state)
    return runs.sort(files.read(path), peers.KINDS[kind])


def test_fast_reids_old_files_have_the_old_pooling_and_their_own_mean(tmp_path):
    """Its release 0.1.1, of which its model zoo is: another head, padded pooling."""
    state = {
        name.replace("bottleneck.0", "bnneck").replace(
            "s.weight", "s.classifier.weight"
        )
        if name.startswith("heads.")
        else name: value
        for name, value in state_dict("fastreid-sbs").items()
    }
    state["pixel_mean"] = np.float32([100, 110, 120]).reshape(1, 3, 1, 1)
    found = sorted_file(tmp_path, state, "fastreid-sbs")
    assert found.statistics == {"mean": (0.3921569, 0.4313725, 0.4705882)}
    config = runs.describe(found, "fastreid-sbs", origin="w")
    assert "ceil_pool" not in config.model.options
    assert config.model.mean == found.statistics["mean"]
    arrays, filled = runs.complete(found.arrays, config, origin="w")
    assert arrays["params"]["heads"]["classifier"]["kernel"].shape == (1, 2048, 5)
    assert filled == ()


def test_luperson_is_a_backbone_alone(tmp_path, capsys):
    """As MoCo saves it, with a second network and a queue beside."""
    trunk = {
        name.removeprefix("base."): value
        for name, value in state_dict("torchreid-resnet50_fc512").items()
        if not name.startswith(("fc.", "classifier."))
    }
    state = {f"module.encoder_q.{n}": v for n, v in trunk.items()}
    state |= {f"module.encoder_k.{n}": 2 * v for n, v in trunk.items()}
    for index, width in ((0, 8), (2, 4)):
        state[f"module.encoder_q.fc.{index}.weight"] = np.ones((width, 8), np.float32)
    state |= {"module.queue": np.ones((4, 9), np.float32)}
    code, folder = convert(tmp_path, "luperson", state)
    assert code == 0
    # The golden's layers have one block each.
    assert "it is no ResNet-50, which has layers of (3, 4, 6, 3)" in (
        capsys.readouterr().out
    )
    config, _, variables = restored(folder)
    assert config.model.mean == (0.3525, 0.3106, 0.3140)
    kernel = variables["params"]["backbone"]["layer4_0"]["conv2"]["kernel"]
    np.testing.assert_array_equal(
        kernel, trunk["layer4.0.conv2.weight"].transpose(2, 3, 1, 0)
    )


def test_there_and_back_is_bit_for_bit():
    """OSNet's backbone under torchreid's names."""
    state = state_dict("torchreid-osnet")
    file = files.WeightFile("w", files.PYTORCH, state)
    back = mapping.to_pytorch(mapping.to_ours(file).arrays)
    kept = {
        name
        for name in state
        if not name.startswith("classifier") and "num_batches" not in name
    }
    assert back.keys() == kept
    for name in kept:
        np.testing.assert_array_equal(back[name], state[name])


def changed(kind, **arrays):
    return state_dict(kind) | {k.replace("__", "."): v for k, v in arrays.items()}


ONE = np.ones(1, np.float32)
_MEANS = ("pixel_mean", "module__pixel_mean")
REFUSED = {
    "another layer": ("bot", {"extra__weight": ONE}, "only in the file", ""),
    "another head": ("bot", {"heads__weight": ONE}, "no network of this kind", ""),
    "a bias in the neck": (
        *("bot", {"bottleneck__bias": np.ones(2048, np.float32)}),
        *("would have to be zero: bottleneck.bias", ""),
    ),
    "infinite statistics": (
        *("bot", {"bottleneck__running_mean": np.full(2048, np.inf, np.float32)}),
        *("2,048 of 2,048 numbers are infinite", ""),
    ),
    "an infinite mean": (
        *("bot", {"pixel_mean": np.full(3, np.nan, np.float32)}),
        *("holds numbers that no trained network has", ""),
    ),
    "a short neck": (
        *("bot", {"bottleneck__weight": ONE}),
        *("params/heads/bn/scale: (1, 1) there, (1, 2048) here", ""),
    ),
    "no classes": (
        *("bot", {"classifier__weight": np.ones((0, 2048), np.float32)}),
        *("(1, 2048, 0) there", ""),
    ),
    "a number for a classifier": (
        *("bot", {"classifier__weight": np.ones((), np.float32)}),
        *("is not of this kind", ""),
    ),
    "a missing layer": ("bot", {}, "missing in the file: ", "base.layer2.0.bn2"),
    "a missing neck": ("bot", {}, "missing in the file: ", "bottleneck"),
    "another network": ("torchreid-osnet_ain", {}, "a network like osnet_x0_25", ""),
    "more patches": (
        *("transreid", {"base__pos_embed": np.ones((1, 130, 64), np.float32)}),
        *("positions for 129 patches", ""),
    ),
    "positions in one dimension": (
        *("transreid", {"base__pos_embed": ONE}),
        *("lacks parts of its network", ""),
    ),
    "a layer that the kind has not": (
        *("torchreid-resnet50", {}),
        *("give --as=torchreid-resnet50_fc512", ""),
    ),
    "a layer that the kind has": (
        *("torchreid-resnet50_fc512", {}, "give --as=torchreid-resnet50\n", "fc."),
    ),
    "a neck with and without a wrapper": (
        *("bot", {"module__bottleneck__weight": np.zeros(2048, np.float32)}),
        *("bottleneck.weight and module.bottleneck.weight, which are one", ""),
    ),
    "a neck with and without a number": (
        *("bot", {"classifier_0__weight": np.zeros((5, 2048), np.float32)}),
        *("classifier.weight and classifier_0.weight, which are one", ""),
    ),
    "two means": (
        *("bot", {name: np.ones(3, np.float32) for name in _MEANS}),
        *("pixel_mean with and without module.", ""),
    ),
    "necks of several shapes": (
        *("transreid", {"bottleneck_2__weight": ONE}),
        *("have several shapes", ""),
    ),
}


KNOWN = {
    "torchreid-osnet_ain": "torchreid-osnet",
    "torchreid-resnet50": "torchreid-resnet50_fc512",
}
"""Of kinds without a golden, the one whose file is taken for theirs."""


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_refused(tmp_path, capsys, case):
    kind, arrays, message, without = REFUSED[case]
    known = KNOWN.get(kind, kind)
    state = changed(known, **arrays)
    if without:
        state = {n: v for n, v in state.items() if not n.startswith(without)}
    code, folder = convert(tmp_path, kind, state)
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth.tar"]
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["transreid", "bot"])
def test_no_array_of_another_rank_is_a_crash(tmp_path, kind):
    for name in list(state_dict(kind))[::5]:
        for value in (np.float32(1), np.ones((0, 1), np.float32)):
            state = state_dict(kind) | {name: value}
            file = files.WeightFile(tmp_path / "w.pth", files.PYTORCH, state)
            with contextlib.suppress(UserError):  # taken or refused, but no crash
                found = runs.sort(file, peers.KINDS[kind])
                runs.describe(found, kind, origin="w")


def test_an_unknown_kind(tmp_path, capsys):
    assert convert(tmp_path, "fastreid", {"a": ONE})[0] == 2
    assert (
        "--as=fastreid is no kind; known: torchreid-osnet," in capsys.readouterr().err
    )
