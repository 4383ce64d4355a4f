"""Runs of the toy draw nothing here: drawing takes longer than they do."""

import pytest


@pytest.fixture
def toy_config(toy_config):
    toy_config.evaluation.pictures = False
    return toy_config
