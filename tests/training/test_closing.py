"""What is printed when a run begins and ends."""

import jax.numpy as jnp

from reid_jax.training import closing


def test_parameters_are_counted_by_module():
    params = {
        "backbone": {"a": {"kernel": jnp.ones((300, 4)), "bias": jnp.ones(4)}},
        "token": jnp.ones(5),
    }
    assert closing.overview("toy", params).splitlines() == [
        "parameters",
        "toy         1,209",
        "  backbone  1,204",
        "  token         5",
    ]


def test_the_end_of_a_run_has_last_beside_best_and_what_comes_next():
    entries = [
        {
            "protocol": "tiny",
            "step": 10,
            "metrics": {"rank1": 0.5, "mAP": 0.4},
            "valid_queries": 15,
            "metrics_before_reranking": {"rank1": 0.125, "mAP": 0.1},
            "metrics_before_pairs": {"rank1": 0.25, "mAP": 0.2},
            "best": {"step": 6, "metrics": {"rank1": 1.0, "mAP": 0.75}},
        },
        {
            "protocol": "other",
            "step": 10,
            "metrics": {"rank3": 0.5, "mAP": 0.1},
            "valid_queries": 4,
        },
    ]
    text = closing.summary(entries, "runs/a b")
    assert "runs/a b/pictures" in text
    assert "pictures" not in closing.summary(entries, "runs/a b", pictured=False)
    assert text.splitlines() == [
        "protocol  step                  rank1    mAP  rank3  queries",
        "tiny      10 (last)             50.0%  40.0%              15",
        "          before re-ranking     12.5%  10.0%",
        "          before pairs          25.0%  20.0%",
        "          6 (best)             100.0%  75.0%",
        "other     10 (last)                    10.0%  50.0%        4",
        "          best: not evaluated",
        "",
        "report      runs/a b/report.html",
        "results     runs/a b/results.json",
        "pictures    runs/a b/pictures",
        "checkpoint  runs/a b/checkpoints/best/6 (the best)",
        "evaluate    python -m reid_jax.main --mode=evaluate --workdir='runs/a b'",
        "export      python -m reid_jax.main --mode=export --workdir='runs/a b'",
    ]
    averaged = [entries[0] | {"averaged": True}]
    assert "best/6 (the best); evaluated: moving averages" in closing.summary(
        averaged, "runs/a"
    )
