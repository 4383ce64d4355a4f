"""Exported artifacts equal the model, or there is no export."""

import json
import pathlib
import shutil
import subprocess
import sys

import cv2
import jax
import numpy as np
import orbax.checkpoint as ocp
import PIL.Image
import pytest
from jax import export as jax_export

from configs import run as config_of_run
from data_pipelines import images
from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.evaluation import evaluate
from reid_jax.export import artifacts, card, export
from reid_jax.models.method import parameter_count
from reid_jax.runtime import checkpoint, sharding
from reid_jax.training import train
from tests.conftest import toy, use_devices

PAIR_INPUTS = ("parts", "camera")
"""All there are."""


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """A run of the toy method."""
    config, folder = toy(tiny_data), tmp_path_factory.mktemp("finished") / "run"
    config.model.pair_inputs = PAIR_INPUTS
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        train.train_and_evaluate(config, str(folder))
    return folder


@pytest.fixture
def toy_run(toy_config, finished, tmp_path, on_devices):
    """Its config and a copy of it, on one device."""
    on_devices(1)
    toy_config.model.pair_inputs = PAIR_INPUTS
    return toy_config, shutil.copytree(finished, tmp_path / "run")


def _call(folder: pathlib.Path, name: str, *args):
    return jax_export.deserialize((folder / f"{name}.jaxexport").read_bytes()).call(
        *args
    )


def test_pair_model(toy_run, tmp_path):
    config, run = toy_run
    folder = export.export_checkpoint(config, str(run), directory=tmp_path / "out")
    method, variables = experiment.restore(
        config, checkpoint.find(str(run)), sharding.make_mesh()
    )
    scorer = method.pair_scorer("second")
    for count in (1, 5):  # any batch size
        images = np.random.default_rng(count).integers(
            0, 256, (count, 32, 16, 3), np.uint8
        )
        got = _call(folder, "embed", images)
        wanted = method.embed(variables, images)
        np.testing.assert_allclose(
            got["vector"], wanted["vector"], rtol=1e-5, atol=1e-6
        )
        distances = _call(folder, "distance", got, wanted)
        assert distances.shape == (count, count)
        rng = np.random.default_rng(count)
        camera = rng.integers(0, 3, count, np.int32)
        parts = rng.integers(0, 9, (count, 32, 16), np.uint8)
        maps = _call(folder, "pair_maps", images, parts, camera)
        wanted = scorer.pair_maps(variables, images, camera=camera, parts=parts)
        np.testing.assert_allclose(maps["map"], wanted["map"], rtol=1e-5, atol=1e-6)
        scores = _call(
            folder,
            "score_pairs",
            jax.tree.map(lambda x: x[:1], maps),
            jax.tree.map(lambda x: x[None], maps),
        )
        wanted = scorer.score_pairs(
            variables, {"map": maps["map"][:1]}, {"map": maps["map"][None]}
        )
        np.testing.assert_allclose(scores, wanted, rtol=1e-5)
    about = json.loads((folder / "export.json").read_text())
    assert about["parameters"] == parameter_count(variables)
    assert about["trained_on"] == "tiny"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("params", "export.json", "README.md", "SHA256SUMS", "embed.jaxexport"),
        *("distance.jaxexport", "pair_maps.jaxexport", "score_pairs.jaxexport"),
    }
    stored = ocp.StandardCheckpointer().restore((folder / "params").resolve())
    jax.tree.map(np.testing.assert_array_equal, stored["params"], variables["params"])
    best = json.loads((run / "results.json").read_text())[0]["best"]
    assert about["step"] == best["step"]
    assert about["results"][0]["metrics"] == best["metrics"]
    card = (folder / "README.md").read_text()
    assert f"mAP {best['metrics']['mAP']:.1%}" in card
    assert list(about["input"]) == ["images"]
    assert list(about["pair_input"]) == ["images", "parts", "camera"]
    assert about["pair_candidates"] == 3
    assert "the 3 nearest" in card
    _run_card(folder, card)


def _run_card(folder: pathlib.Path, card: str) -> None:
    """Does what the model card shows, with images of its own."""
    shown = "\n".join(card.split("```python\n")[i].split("```")[0] for i in (1, 2))
    given = "parts, camera = np.zeros((2, 32, 16), np.uint8), np.zeros(2, np.int32)\n"
    for name in ("a.jpg", "b.jpg"):
        cv2.imwrite(str(folder / name), np.full((40, 20, 3), 90, np.uint8))
    done = subprocess.run(
        [sys.executable, "-c", "import numpy as np\n" + given + shown],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _about(config, *, stage="first", changed=None, **written):
    """Of an export of the toy method, of a step that was not evaluated."""
    trained = {"seed": 0, "data.dataset": "tiny", "data.height": 32, "data.width": 16}
    meta = {"method": config.method, "stage": stage, "global_step": 3}
    meta |= {"num_classes": 9, "best": None, "config": trained}
    return card.describe(
        experiment.build_method(config, num_classes=9),
        {"params": {"kernel": np.zeros((2, 3))}},
        meta,
        changed=changed or {},
        image_size=(48, 24),
        embedding={"vector": np.zeros((3, 6), np.float32)},
        written=written or {"format": "jax", "platforms": ["cpu"]},
    )


def test_the_card_resizes_to_what_is_exported(toy_config):
    """Where `config.data` differs from what the run was trained with."""
    about = _about(toy_config, changed={"data.height": 48, "data.width": 24})
    assert about["output"] == {"vector": "float32 [b, 6]"}
    text = card.text(about, image_size=(48, 24))
    assert "[b, 48, 24, 3]" in text
    assert "cv2.resize(image, (24, 48))" in text  # width first, as OpenCV has it


@pytest.mark.parametrize("resize", [images.BILINEAR, "pil-bicubic"])
def test_the_card_s_images_are_upright(toy_config, tmp_path, resize):
    about = _about(toy_config, changed={"data.resize": resize})
    shown = card.text(about, image_size=(48, 24)).split("```python\n")[1]
    names = {}
    exec(shown[: shown.index("embed = ")], names)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    wanted = images.resize(images.decode((tmp_path / "a.png").read_bytes()), (48, 24))
    if resize != images.BILINEAR:
        turned = PIL.Image.fromarray(np.rot90(pixels, -1)).resize((24, 48), 3)
        wanted = np.asarray(turned)
    np.testing.assert_array_equal(names["load"](tmp_path / "a.png"), wanted)


@pytest.mark.parametrize("form", ["jax", "onnx"])
def test_a_pair_model_s_card_tells_of_its_second_look(toy_config, form):
    written = {"platforms": ["cpu"]}
    if form == "onnx":
        files = {"embed.onnx": {"input": {"images": "uint8"}, "output": {"v": "float"}}}
        written = {"artifacts": files, "largest_differences": {"embed.onnx": 0.0}}
    about = _about(toy_config, stage="second", format=form, **written)
    text = " ".join(card.text(about, image_size=(48, 24)).split())
    assert "Its ranking includes a second look at pairs of images: the 3 nearest" in (
        text
    )
    assert "`pair_maps.onnx` makes them" in text or form == "jax"
    assert "results above" not in text
    about |= {"results": [{"protocol": "tiny", "metrics": {}, "valid_queries": 1}]}
    text = card.text(about, image_size=(48, 24))
    assert "The results above include a second look" in text
    first = card.text(_about(toy_config, format=form, **written), image_size=(48, 24))
    assert "second look" not in first


def test_an_export_is_evaluated_as_its_run_is(toy_run, tmp_path):
    config, run = toy_run
    folder = export.export_checkpoint(config, str(run), directory=tmp_path / "moved")
    again = config_of_run.get_config(str(folder))
    (entry,) = evaluate.evaluate_checkpoint(again, str(folder), workdir=str(run))
    (wanted,) = evaluate.evaluate_checkpoint(
        config, str(run), workdir=str(tmp_path / "of the run")
    )
    for name in ("metrics", "metrics_before_pairs", "step", "valid_queries"):
        assert entry[name] == wanted[name]
    assert entry["run"] == str(folder)  # not the run's own, which stays beside it
    kept = json.loads((run / "results.json").read_text())
    assert [one.get("run") for one in kept] == [None, str(folder)]
    # Pictures of another run do not take the place of those that live there.
    drawn = {p.parent.parent.name for p in tmp_path.rglob("ranking.png")}
    assert drawn == {"pictures", "of-moved"}
    assert (run / "pictures" / "of-moved" / "tiny" / "ranking.png").exists()
    about = json.loads((folder / "export.json").read_text())
    (folder / "README.md").write_text("An export of mine.")  # a card may be added to
    (folder / "export.json").write_text(json.dumps(about | {"stage": "first"}))
    with pytest.raises(UserError, match=r"export\.json has changed"):
        checkpoint.find(str(folder))
    (folder / "SHA256SUMS").unlink()  # as an older version left it
    for entry, value in {"stage": "third", "training_identities": "many"}.items():
        (folder / "export.json").write_text(json.dumps(about | {entry: value}))
        with pytest.raises(UserError, match=f"'?{value}'?"):
            evaluate.evaluate_checkpoint(again, str(folder), workdir=str(tmp_path))
    (folder / "export.json").write_text("{}")
    with pytest.raises(UserError, match="lacks 'stage'"):
        config_of_run.get_config(str(folder))
    (folder / "export.json").write_text(json.dumps(about))
    for damaged in sorted((folder / "params").rglob("d/*"))[:1]:
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged .*\. Export its run again\."):
        evaluate.evaluate_checkpoint(again, str(folder), workdir=str(tmp_path / "c"))


def test_a_changed_network_does_not_bear_the_trained_ones_figures(toy_run, tmp_path):
    config, run = toy_run
    as_trained = export.export_checkpoint(config, str(run), directory=tmp_path / "a")
    about = json.loads((as_trained / "export.json").read_text())
    assert about["changed"] == {}
    assert about["results"][0]["metrics"]
    config.model.top_k = 2
    config.data.resize = "pil-bicubic"
    other = export.export_checkpoint(config, str(run), directory=tmp_path / "b")
    about = json.loads((other / "export.json").read_text())
    assert about["changed"] == {"model.top_k": 2, "data.resize": "pil-bicubic"}
    assert about["input"]["images"].endswith("resized: pil-bicubic")
    assert about["config"]["model.top_k"] == 2
    assert about["results"] == []
    text = (other / "README.md").read_text()
    assert "`config.model.top_k` is `2`" in text
    assert "rank1" not in text


def test_bfloat16_is_compared_and_nan_is_a_difference(tmp_path, monkeypatch):
    def function(x):
        return x * 3, x.astype(np.float32) / 7

    x = np.linspace(-2, 2, 6).reshape(3, 2).astype(jax.numpy.bfloat16)
    recorder = artifacts.Recorder(tmp_path)
    recorder.add("f", function, {"x": "b"}, x)
    recorder.close()
    artifacts.check(tmp_path)
    real = jax_export.export
    monkeypatch.setattr(
        jax.export,
        "export",
        lambda f, **o: real(jax.jit(lambda x: (f(x)[0], f(x)[1] * np.nan)), **o),
    )
    recorder = artifacts.Recorder(tmp_path)
    recorder.add("f", function, {"x": "b"}, x)
    recorder.close()
    with pytest.raises(UserError, match=r"do not equal the model.*f\.jaxexport.: NaN"):
        artifacts.check(tmp_path)


def test_an_artifact_that_differs_is_not_exported(toy_run, tmp_path, monkeypatch):
    config, run = toy_run
    target = tmp_path / "out"
    target.mkdir()
    (target / "earlier").write_text("kept")
    real = jax_export.export

    def wrong(function, **options):
        def scale(x):
            return 1.001 * x if x.dtype == np.float32 else x

        scaled = jax.jit(lambda *a: jax.tree.map(scale, function(*a)))
        return real(scaled, **options)

    monkeypatch.setattr(jax.export, "export", wrong)
    with pytest.raises(UserError, match="do not equal the model"):
        export.export_checkpoint(config, str(run), directory=target)
    assert [path.name for path in target.iterdir()] == ["earlier"]
    assert [path.name for path in tmp_path.iterdir() if "export" in path.name] == []


def test_aaformer_and_its_bad_checkpoints(aaformer_config, toy_run, tmp_path):
    """Exports from a run that was stopped; then configs of other models."""
    config = aaformer_config
    config.model.depth, config.max_steps = 1, 1
    train.train_and_evaluate(config, str(tmp_path / "aa"))
    folder = export.export_checkpoint(
        config, str(tmp_path / "aa"), directory=tmp_path / "aa" / "export"
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 16, 3), np.uint8)
    vector = np.asarray(_call(folder, "embed", images)["vector"])
    assert vector.shape == (2, 6 * 24)
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), 1, rtol=1e-5)

    with pytest.raises(UserError, match=r"model of tests\.toy_method"):
        evaluate.evaluate_checkpoint(config, str(toy_run[1]), workdir=str(tmp_path))
    config.model.depth = 2
    with pytest.raises(UserError, match=r"missing there: .*blocks_1"):
        evaluate.evaluate_checkpoint(
            config, str(tmp_path / "aa"), workdir=str(tmp_path / "aa")
        )
    config.model.depth, config.model.width = 1, 32
    with pytest.raises(UserError, match=r"\(24.*there.*\(32.*here"):
        evaluate.evaluate_checkpoint(
            config, str(tmp_path / "aa"), workdir=str(tmp_path / "aa")
        )
