"""Where a run's data and weights come from."""

import pytest

from configs import aaformer, cpacol
from reid_jax import experiment, weights
from reid_jax.training import sources


@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.485, 0.456, 0.406)])
def test_weights_that_want_other_statistics_say_so(mean, monkeypatch, capsys):
    monkeypatch.setattr(weights, "load_pretrained", lambda *_, **__: ({}, None))
    config = aaformer.get_config("demo")
    config.pretrained = "deit_base_patch16_224"
    config.model.mean, config.model.std = mean, (0.229, 0.224, 0.225)
    method = experiment.build_method(config, num_classes=3)
    sources.load_pretrained(config, method, {})
    said = "note: deit_base_patch16_224-b5f2ef4d.pth was trained with mean" in (
        capsys.readouterr().out
    )
    assert said == (mean == (0.5, 0.5, 0.5))


def test_weights_are_placed_as_the_method_and_the_config_say(monkeypatch):
    given = {}
    monkeypatch.setattr(
        weights, "load_pretrained", lambda *_, **named: (given.update(named), None)
    )
    config = cpacol.get_config("demo")
    config.pretrained_grid, config.allow_unexpected = (7, 3), ("head",)
    method = experiment.build_method(config, num_classes=3)
    sources.load_pretrained(config, method, {})
    assert given == {
        "position_grid": method.position_grid,
        "pretrained_grid": (7, 3),
        "copies": method.pretrained_copies,
        "allow_unexpected": ("head",),
    }
    assert given["copies"]


def test_images_are_resized_as_the_config_says(toy_config):
    toy_config.data.resize = "pil-bicubic"
    assert sources.open_data(toy_config).resize == "pil-bicubic"
