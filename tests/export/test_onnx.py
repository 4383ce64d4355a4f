"""ONNX artifacts return what the model does, or there are none."""

import json
import subprocess
import sys
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.export import artifacts, export
from reid_jax.export.rewriting import rewritten
from reid_jax.runtime import checkpoint
from tests.variables import random_variables


def _rewritten(function, *args):
    traced = jax.make_jaxpr(function)(*args)
    again = rewritten(traced)
    names = {e.primitive.name for e in jax.make_jaxpr(again)(*args).jaxpr.eqns}
    return again(*args), names


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 2, (1, 1)), (2, 2, (0, 0)), (3, 1, (2, 0))]
)
def test_max_pooling_by_slices_is_max_pooling(dtype, size, stride, padding):
    x = np.random.default_rng(0).integers(-99, -1, (2, 9, 7, 3)).astype(dtype)
    window, strides = (1, size, size, 1), (1, stride, stride, 1)

    @jax.jit
    def pool(x):
        lowest = -jnp.inf if dtype == np.float32 else jnp.iinfo(dtype).min
        pads = ((0, 0), padding, padding, (0, 0))
        return lax.reduce_window(x, dtype(lowest), lax.max, window, strides, pads)

    (got,), names = _rewritten(pool, x)
    filled = np.full((2, 9 + sum(padding), 7 + sum(padding), 3), -(10**6))
    filled[:, padding[0] :, padding[0] :][:, :9, :7] = x
    rows, columns = ((n - size) // stride + 1 for n in filled.shape[1:3])
    assert got.shape == (2, rows, columns, 3)
    for i in range(rows):
        for j in range(columns):
            part = filled[:, i * stride :, j * stride :][:, :size, :size]
            np.testing.assert_array_equal(got[:, i, j], part.max((1, 2)))
    assert not names & {"reduce_window_max", "pad", "jit"}


def test_padding_and_stacking_by_concatenation():
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)

    def function(x):
        padded = jnp.pad(x, ((1, 0), (0, 2)), constant_values=7)
        return jnp.stack([padded, 2 * padded], axis=1), lax.pad(
            x, jnp.float32(0), ((-1, 0, 0), (0, 0, 1))
        )

    (stacked, cropped), names = _rewritten(function, x)
    padded = np.pad(x, ((1, 0), (0, 2)), constant_values=7)
    np.testing.assert_array_equal(stacked, np.stack([padded, 2 * padded], axis=1))
    np.testing.assert_array_equal(cropped[:, ::2], x[1:])
    assert "stack" not in names


@pytest.fixture
def onnx():
    """The module, where its packages are: `pip install jax2onnx onnxruntime`."""
    for name in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(name)
    from reid_jax.export import onnx

    return onnx


def _written(onnx, config, folder, *, stage=None):
    method = experiment.build_method(config, num_classes=9)
    batch = experiment.example_batch(config, 8)
    variables = random_variables(method.init, batch)
    recorder = onnx.Recorder(folder)
    artifacts.write(
        recorder,
        method,
        variables,
        stage=stage or method.stages[-1],
        image_size=experiment.image_size(config),
    )
    return recorder


def test_every_artifact_of_a_pair_model(onnx, toy_config, tmp_path):
    toy_config.model.pair_inputs = ("parts", "camera")
    recorder = _written(onnx, toy_config, tmp_path)
    names = ("embed", "distance", "pair_maps", "score_pairs")
    assert list(recorder.differences) == [f"{name}.onnx" for name in names]
    assert recorder.signatures["embed.onnx"] == {
        "input": {"images": "uint8 [batch, 32, 16, 3]"},
        "output": {"vector": "float [batch, 6]", "visibility": "bool [batch, 3]"},
    }
    assert list(recorder.signatures["distance.onnx"]["output"].values()) == [
        "float [queries, gallery]"
    ]
    assert recorder.signatures["pair_maps.onnx"]["input"] == {
        "images": "uint8 [batch, 32, 16, 3]",
        "parts": "uint8 [batch, 32, 16]",
        "camera": "int32 [batch]",
    }


@pytest.mark.parametrize("name", ["aaformer", "cacenet", "drop", "sanet"])
def test_papers_convert(onnx, name, request, tmp_path):
    recorder = _written(onnx, request.getfixturevalue(f"{name}_config"), tmp_path)
    assert recorder.differences["embed.onnx"] < 1e-5
    assert json.dumps(recorder.signatures)


@pytest.fixture
def restored(toy_config, tmp_path, monkeypatch):
    """What an export reads of a checkpoint of the toy method, without a training."""
    method = experiment.build_method(toy_config, num_classes=9)
    variables = random_variables(method.init, experiment.example_batch(toy_config, 8))
    meta = {"stage": "first", "global_step": 3, "best": None, "num_classes": 9}
    meta |= {"method": toy_config.method}
    meta["config"] = {"seed": 0, "data.dataset": "tiny"}
    monkeypatch.setattr(checkpoint, "find", lambda path: path)
    monkeypatch.setattr(checkpoint, "read_meta", lambda path: meta)
    monkeypatch.setattr(experiment, "restore", lambda *_: (method, variables))
    monkeypatch.setattr(experiment, "changed_fields", lambda *_: {})
    target = tmp_path / "out"
    target.mkdir()
    (target / "earlier").write_text("kept")
    return toy_config, method, target


def _export(config, target):
    return export.export_checkpoint(config, "run", directory=target, form="onnx")


def test_what_has_no_counterpart_is_refused(onnx, restored, monkeypatch):
    config, method, target = restored
    real = method.embed

    def unknown(variables, images, **rest):
        found = real(variables, images, **rest)
        return found | {"vector": jnp.linalg.qr(found["vector"])[0]}

    def half(variables, images, **rest):
        found = real(variables, images, **rest)
        return found | {"vector": found["vector"].astype(jnp.bfloat16) * 2}

    for replaced, message in (
        (unknown, r"embed cannot be converted .* nothing was exported"),
        (half, r"(?s)bfloat16.*--config.model.dtype=float32"),
    ):
        monkeypatch.setattr(method, "embed", replaced)
        with pytest.raises(UserError, match=message):
            _export(config, target)
        assert [path.name for path in target.iterdir()] == ["earlier"]


def test_what_differs_is_not_exported(onnx, restored, monkeypatch):
    config, _, target = restored
    real = onnx.rewritten
    monkeypatch.setattr(
        onnx, "rewritten", lambda traced: lambda *a: [_off(x) for x in real(traced)(*a)]
    )
    with pytest.raises(UserError, match=r"embed.onnx .* does not equal the model"):
        _export(config, target)
    assert [path.name for path in target.iterdir()] == ["earlier"]


def test_nan_differs(tmp_path, monkeypatch):
    """Also where another array is compared first."""
    x = np.ones((7, 2), np.float32)
    session = types.SimpleNamespace(get_inputs=list, get_outputs=list)
    session.run = lambda names, given: [given["x"], given["x"] * np.nan]
    monkeypatch.setattr(export.onnx, "check_installed", lambda: None)
    monkeypatch.setattr(export.onnx, "_convert", lambda *_: b"")
    monkeypatch.setattr(export.onnx, "_session", lambda data: session)
    with pytest.raises(UserError, match=r"embed\.onnx .* differs by nan"):
        export.onnx.Recorder(tmp_path).add("embed", lambda x: (x, x), {"x": "b"}, x)


def _off(x):
    return x * 1.01 if x.dtype == jnp.float32 else x


def test_the_card_shows_how_it_is_used(onnx, restored):
    config, _, target = restored
    folder = _export(config, target)
    assert {path.name for path in folder.iterdir()} == {
        *("embed.onnx", "distance.onnx", "export.json", "README.md", "SHA256SUMS"),
    }
    card = (folder / "README.md").read_text()
    for name in ("a.jpg", "b.jpg"):
        cv2.imwrite(str(folder / name), np.full((40, 20, 3), 90, np.uint8))
    shown = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", shown + 'import sys; assert "jax" not in sys.modules'],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[[0.", "0.]", "[0.", "0.]]"]


def test_a_missing_package_is_one_line(monkeypatch, restored):
    config, _, target = restored
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match="pip install jax2onnx onnxruntime"):
        _export(config, target)
