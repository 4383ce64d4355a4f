"""Curves of runs: what is drawn is what was logged."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import curves
from reid_jax.errors import UserError


@pytest.fixture
def runs(tmp_path):
    """Two runs of seven rows, the second without parsing, and cut short by a kill."""
    rng = np.random.default_rng(0)
    folders = [tmp_path / "coupled", tmp_path / "stripes"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        rows = [
            {"step": 20 * i, "time": 1.0, "accuracy": float(rng.random())}
            | ({} if number else {"parsing_accuracy": float(rng.random())})
            for i in range(7)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text + '{"step": 140, "acc' * number)
    return folders


def test_points_are_the_rows_and_lines_their_means(runs):
    rows = {folder.name: curves.read(folder) for folder in runs}
    assert [len(found) for found in rows.values()] == [7, 7]
    figure = curves.draw(rows, ["parsing_accuracy", "accuracy"], window=3)
    parsing, identity = figure.axes
    assert len(parsing.lines) == 2
    assert [text.get_text() for text in identity.get_legend().texts] == [*rows]
    for (name, found), points, line in zip(
        rows.items(), identity.lines[::2], identity.lines[1::2], strict=True
    ):
        values = [row["accuracy"] for row in found]
        np.testing.assert_array_equal(points.get_xdata(), range(0, 140, 20), name)
        np.testing.assert_array_equal(points.get_ydata(), values, name)
        means = [np.mean(values[max(i - 1, 0) : i + 2]) for i in range(7)]
        np.testing.assert_allclose(line.get_ydata(), means)


@pytest.mark.parametrize(("window", "length"), [(1, 4), (4, 4), (9, 4), (3, 1)])
def test_a_mean_of_ones_is_one(window, length):
    np.testing.assert_allclose(curves.running_mean(np.ones(length), window), 1)


def test_command(runs, tmp_path):
    names = ",".join(map(str, runs))
    out = tmp_path / "new" / "curves.png"
    arguments = [f"--runs={names}", "--metrics=accuracy,parsing_accuracy"]
    curves.main([*arguments, f"--out={out}"])
    with Image.open(out) as image:
        assert image.size == (1000, 400)
    for wrong, message in (
        ([f"--runs={names},{tmp_path}"], "has no metrics.jsonl"),
        ([f"--runs={names}", "--metrics=los"], "'los'; there are: accuracy, parsing"),
        ([*arguments, "--window=0"], "at least one"),
    ):
        with pytest.raises(UserError, match=message):
            curves.main([*wrong, f"--out={tmp_path}/no.png"])
    assert not (tmp_path / "no.png").exists()
