"""What only an accelerator shows: full size, bfloat16, its own paths. Alone on one GPU:

JAX_PLATFORMS=cuda,cpu python -m pytest -n0 -m gpu

Not run so far: no accelerator was at hand.
"""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.backbones.self_attention import IMPLEMENTATIONS, self_attention
from reid_jax.benchmark import sweep, workloads
from reid_jax.benchmark.benchmark import Request, benchmark
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.ranking import Ranker, on_accelerator
from reid_jax.runtime import sharding
from reid_jax.training import train
from tests import toy_method

pytestmark = pytest.mark.gpu

CONFIGS = {
    "aaformer": "",
    "baseline": "backbone=vit",
    "cacenet": "",
    "cpacol": "",
    "drop": "",
    "sanet": "",
}


def _config(name, dtype="bfloat16"):
    config = importlib.import_module(f"configs.{name}").get_config(CONFIGS[name])
    config.model.dtype = dtype
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_runs_at_full_size_in_bfloat16(name, tmp_path):
    request = Request(devices=[1], windows=3)
    lines = benchmark(_config(name), str(tmp_path), request)
    assert {line["what"] for line in lines} >= {"embed", "ranking"}
    for line in lines:
        assert "error" not in line, line
        assert line["platform"] != "cpu"
        assert line["per_second"] > 0
        assert line["mfu"] is None or 0 < line["mfu"] < 1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_takes_its_state_over_and_stays_finite(name):
    (point,) = sweep.points(_config(name), devices=[1])
    for work in workloads.workloads(point, ["train"]):
        trainer = work.call.__self__
        for _ in range(3):
            before = jax.tree.leaves(trainer.state)
            _, metrics = jax.block_until_ready(work.call())
            assert all(x.is_deleted() for x in before)
            assert all(np.isfinite(x) for x in jax.tree.leaves(metrics))


def test_a_run_compiles_every_stage_once(toy_config, tmp_path):
    toy_method.TRACES.clear()
    train.train_and_evaluate(toy_config, str(tmp_path))
    assert toy_method.TRACES == ["first", "second"]


def _labels(rng, count):
    return Labels(rng.integers(1, 60, count), rng.integers(0, 6, count))


def test_ranks_are_those_of_the_host():
    rng = np.random.default_rng(0)
    query, gallery = _labels(rng, 64), _labels(rng, 5000)
    keys = rng.integers(0, 500, (64, 5000)).astype(np.float32)  # with many ties
    results = []
    for given in (keys, jax.device_put(keys)):
        ranker = Ranker(query, gallery, camera_filter=True)
        ranker.update(np.arange(64), given)
        results.append(ranker.result())
    assert on_accelerator(given)
    for field in dataclasses.fields(results[0]):
        a, b = (getattr(result, field.name) for result in results)
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_implementations_of_attention_agree(implementation):
    """Output and gradients in bfloat16, against float32."""
    keys = jax.random.split(jax.random.key(0), 4)
    *rows, weights = (jax.random.normal(k, (8, 211, 12, 64)) for k in keys)

    def run(implementation, rows):
        attend = self_attention(implementation, train=True)
        output, pull = jax.vjp(lambda *rows: attend(*rows)[0], *rows)
        return output, *pull(weights.astype(output.dtype))

    run = jax.jit(run, static_argnums=0)
    found = run(implementation, [x.astype(jnp.bfloat16) for x in rows])
    with jax.default_matmul_precision("highest"):
        wanted = run("einsum", rows)
    for a, b in zip(found, wanted, strict=True):
        gap = np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b)
        assert gap < 2e-2


def test_a_feature_is_that_of_the_cpu():
    (point,) = sweep.points(_config("aaformer", "float32"), devices=[1])
    method, _ = workloads.build(point, trained=False)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (2, 256, 128, 3), np.uint8),
        "camera": np.zeros(2, np.int32),
    }
    features = []
    for device in (jax.devices("cpu")[0], jax.devices()[0]):
        with jax.default_matmul_precision("highest"), jax.default_device(device):
            variables = jax.jit(method.init)(jax.random.key(0), batch)
            rest = {name: batch[name] for name in method.embed_inputs}
            embedding = jax.jit(method.embed)(variables, batch["image"], **rest)
        features.append(np.asarray(embedding["vector"]))
    np.testing.assert_allclose(features[1], features[0], atol=1e-4)


def test_batches_from_the_devices_memory_equal_those_of_grain():
    from tests.training.test_resident import (
        MemoryRecords,
        _loaders,
        _take,
        assert_equal,
    )

    mesh = sharding.make_mesh(jax.devices()[:1])
    pair = _loaders(MemoryRecords(has_parts=True), mesh, with_parts=True)
    assert_equal(*(_take(it, 4) for it in pair))
