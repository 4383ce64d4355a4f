"""What is said where a compiler or a topology is not there."""

import importlib.util

import jax
import pytest

from reid_jax.benchmark.peaks import PEAKS
from reid_jax.errors import UserError
from reid_jax.plan import topologies


@pytest.fixture
def nothing_installed(monkeypatch):
    def find_spec(name):
        if "." in name:  # as of a module in a package that is not there
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


@pytest.mark.parametrize(
    "name", ["v9:2x2", "v5e", "v5e:2", "v5e:2x2x1", "v5p:2x2", "h200:0", "h200:9", "x"]
)
def test_unknown_topologies_are_answered_with_known_ones(name):
    with pytest.raises(UserError, match=r"known are .*v5e:16x16.*h200:8"):
        topologies.find(name)


def test_a_slice_larger_than_a_pod():
    with pytest.raises(UserError, match="a pod has 256 chips"):
        topologies.find("v5e:16x32")


def test_jax_takes_three_quarters_of_a_gpu():
    assert topologies.CHIPS["h100"].usable_bytes == 60 * 10**9
    assert topologies.CHIPS["v5e"].usable_bytes == 16 << 30


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("v5e:2x2", f'pip install "jax[tpu]=={jax.__version__}"'),
        ("h200:1", f"jax-cuda13-plugin=={jax.__version__}"),
    ],
)
def test_a_compiler_that_is_not_installed(nothing_installed, name, command):
    with pytest.raises(UserError) as found:
        topologies.find(name)
    assert command in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ABORTED: Internal error when accessing libtpu multi-process lockfile.",
            "one at",
        ),
        ("UNAVAILABLE: No PTX compilation provider is available.", "nvidia-cuda-nvcc"),
        ("INVALID_ARGUMENT: Topology layout is not divisible", "known are"),
    ],
)
def test_what_compilers_raise(text, message):
    def fail():
        raise jax.errors.JaxRuntimeError(text)

    with pytest.raises(UserError, match=message):
        topologies.with_errors("v5e:2x2", fail)


def test_other_errors_keep_their_traceback():
    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        topologies.with_errors("v5e:2x2", fail)


def test_chips_have_a_peak():
    assert {chip.kind for chip in topologies.CHIPS.values()} <= set(PEAKS)
