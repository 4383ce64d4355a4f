"""How calls are timed: what is in a window, and what memory a plan has."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.benchmark import timing


class _Clock:
    """Time that passes by what calls say they take."""

    def __init__(self, seconds):
        self.now, self.seconds, self.calls = 0.0, iter(seconds), 0

    def call(self):
        self.calls += 1
        self.now += next(self.seconds)


@pytest.fixture
def clock(monkeypatch):
    def make(seconds):
        made = _Clock(seconds)
        fake = types.SimpleNamespace(perf_counter=lambda: made.now)
        monkeypatch.setattr(timing, "time", fake)
        return made

    return make


def test_compilation_and_warm_up_do_not_count(clock):
    # Two slow calls of warm-up, one that sets the window, then one call per window.
    made = clock([100.0, 50.0, 1.0, 1.0, 9.0, 2.0])
    timed = timing.time_calls(made.call, jax.devices()[:1], windows=3)
    assert (timed.seconds, timed.fastest, timed.slowest) == (2.0, 1.0, 9.0)
    assert (timed.windows, timed.calls) == (3, 1)
    assert made.calls == timing.WARM_UP + 1 + 3


def test_short_calls_are_repeated_until_they_fill_a_window(clock, monkeypatch):
    monkeypatch.setattr(timing, "WINDOW_SECONDS", 1.0)
    made = clock([1.0] * timing.WARM_UP + [0.25] * 100)
    timed = timing.time_calls(made.call, jax.devices()[:1], windows=2)
    assert timed.calls == 4
    assert timed.seconds == 0.25
    assert made.calls == timing.WARM_UP + 1 + 2 * 4


def test_the_plan_counts_inputs_outputs_and_workspace():
    def step(state, batch):
        hidden = jnp.tanh(batch @ state)
        return state * (hidden @ hidden.T).max(), hidden.sum()

    state = jax.ShapeDtypeStruct((64, 64), "float32")
    batch = jax.ShapeDtypeStruct((512, 64), "float32")
    kept = jax.jit(step).lower(state, batch).compile()
    donated = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    inputs_and_outputs = 4 * (64 * 64 + 512 * 64 + 64 * 64 + 1)
    # The hidden layer has to lie somewhere.
    assert timing.planned_bytes(kept) >= inputs_and_outputs + 4 * 512 * 64
    saved = timing.planned_bytes(kept) - timing.planned_bytes(donated)
    assert saved == 4 * 64 * 64


def test_an_allocators_peak_is_the_worst_devices():
    def device(peak, process=0):
        stats = None if peak is None else {"peak_bytes_in_use": peak, "bytes_in_use": 1}
        return types.SimpleNamespace(process_index=process, memory_stats=lambda: stats)

    assert timing.allocator_peak([device(5), device(7)]) == 7
    # Other processes' devices cannot be asked.
    assert timing.allocator_peak([device(5), device(9, process=1)]) == 5
    assert timing.allocator_peak([device(None)]) is None


def test_the_timed_work_is_finished_within_its_window():
    done = []

    def slow(x):
        return jax.pure_callback(
            lambda y: done.append(1) or np.asarray(y), jax.typeof(x), x
        )

    compiled = jax.jit(slow).lower(jnp.ones(3)).compile()
    timed = timing.time_calls(
        lambda: compiled(jnp.ones(3)), jax.devices()[:1], windows=2
    )
    assert len(done) == timing.WARM_UP + 1 + 2 * timed.calls
