"""Two processes, one after the other, with one compilation cache."""

import json
import os
import subprocess
import sys

from reid_jax.runtime import compilation
from tests.conftest import CHECKOUT
from tests.waiting import PATIENCE

# A step; prints its result and what JAX counted.
_PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from reid_jax.runtime import compilation

counts = {}
def count(event, **_):
    counts[event.rpartition("/")[2]] = counts.get(event.rpartition("/")[2], 0) + 1
jax.monitoring.register_event_listener(count)
compilation.use_cache(sys.argv[1])
# How long it takes to compile is not to matter.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

def loss(weights, x):
    for w in weights:
        x = jnp.tanh(x @ w) + jnp.sort(x, -1)
    return jnp.square(x).mean()

key = jax.random.key(0)
weights = list(jax.random.normal(key, (8, 16, 16)))
value, gradients = jax.jit(jax.value_and_grad(loss))(weights, jnp.ones((4, 16)))
print(json.dumps([counts, [x.tobytes().hex() for x in (value, *gradients)]]))
"""


def _run(folder):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder)],
        cwd=CHECKOUT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_second_process_reads_what_the_first_has_compiled(tmp_path):
    (first, result), (second, again) = _run(tmp_path / "c"), _run(tmp_path / "c")
    assert first["cache_misses"] > 0
    assert first.get("cache_hits", 0) == 0
    assert second["cache_hits"] == first["cache_misses"]
    assert again == result


def test_notes_are_left_out_unless_the_user_asks(monkeypatch):
    for given, found in (("1", "3"), ("0", "0"), ("2", "2")):
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", given)
        compilation.silence_notes()
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == found
