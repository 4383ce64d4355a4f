"""Shared fixtures. Eight simulated CPU devices, set before JAX starts."""

import pathlib

import jax
import pytest
from absl import flags

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Grain's worker processes read absl flags, which only app.run would parse.
flags.FLAGS.mark_as_parsed()

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Real data kept beside the checkout; tests that need it skip where it is absent."""
    path = CHECKOUT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return path
