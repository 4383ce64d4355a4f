"""The command line as a user meets it: one message, exit code 2, no traceback."""

import subprocess
import sys

import jax
import pytest

from tests.conftest import CHECKOUT
from tests.waiting import PATIENCE


def _run(*args):
    return subprocess.run(
        [sys.executable, "-m", "reid_jax.main", *args],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


DEMO = f"--config={CHECKOUT}/configs/aaformer.py:demo"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "no --config; for a first run:"),
        (("--config=configs/aaformed.py",), "aaformed.py"),
        (("--config=README.md",), "README.md is no Python file"),
        (("--config=configs/common.py",), "common.py has no get_config()"),
        (("--config=configs/run.py",), "name a run's folder"),
        ((DEMO + "x",), "unknown config argument ':demox'; known: :demo"),
        (("--config=configs/aaformed.py", "--config.seed=1"), "aaformed.py"),
        ((DEMO, "--config.model.widht=3"), "width"),
        ((*DEMO.split("="), "--config.model.widht=3"), "did you mean model.width?"),
        ((DEMO, "--config.model.width=wide"), "width"),
        (
            (DEMO, "--config.model.stride=(8,8)", "--config.model.stride=(8,)"),
            "2 times",
        ),
        ((DEMO, "--workdir=~nobodyx/run"), "~nobodyx/run: there is no such user"),
        ((DEMO, "--mode=trian"), "train"),
        ((DEMO, "--nosuchflag"), "nosuchflag"),
        ((DEMO, "--compilation_cache=README.md/cache"), "cannot write to README.md"),
        ((DEMO, "extra"), "unexpected argument 'extra'"),
    ],
)
def test_mistakes_on_the_command_line(args, message):
    done = _run(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 6


def test_the_papers_config_without_data_or_weights_says_what_to_do(tmp_path):
    config = f"--config={CHECKOUT}/configs/aaformer.py"
    done = _run(
        config, f"--config.data.data_dir={tmp_path}/data", f"--workdir={tmp_path}/run"
    )
    assert done.returncode == 2
    for hint in (
        "python -m data_pipelines.prepare --dataset=market1501",
        "jx_vit_base_p16_224",
        ":demo",
        "--config.pretrained=none",
    ):
        assert hint in done.stderr
    assert not list(tmp_path.iterdir())


def _imported(*modules):
    """What a fresh process has loaded after these."""
    code = f"import sys; import {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_no_tensorflow_is_imported():
    verbs = ("training.train", "evaluation.evaluate", "export.export")
    verbs += ("benchmark.benchmark", "main")
    assert "tensorflow" not in _imported(*(f"reid_jax.{verb}" for verb in verbs))


def test_flags_are_answered_before_anything_heavy_is_imported():
    heavy = {"flax", "grain", "matplotlib", "orbax", "tensorflow_datasets"}
    assert not heavy & _imported("reid_jax.main")
    assert "jax" not in _imported("reid_jax")


@pytest.mark.parametrize("platform", ["cuda", "gpu", "tpux"])
def test_devices_that_are_not_there(platform, monkeypatch, tmp_path):
    if jax.default_backend() != "cpu":
        pytest.skip("there may be such devices here")
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    done = _run(DEMO, f"--workdir={tmp_path}/run")
    assert done.returncode == 2
    assert f"JAX_PLATFORMS={platform} has no devices here: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
