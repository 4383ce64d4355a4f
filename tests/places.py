"""A run of the toy method and its export, for everything that loads a network."""

import dataclasses
import pathlib

from reid_jax.export import export
from reid_jax.training import train
from tests.launch import toy


@dataclasses.dataclass(frozen=True)
class Places:
    """Folders of one network."""

    run: pathlib.Path
    export: pathlib.Path


def make(folder: pathlib.Path, data_dir: pathlib.Path) -> Places:
    """Two steps of training, and the export of what came of it."""
    config = toy.get_config()
    config.data.data_dir = str(data_dir)
    config.data.resize = "pil-bilinear"
    config.max_steps = 2
    places = Places(folder / "run", folder / "export")
    train.train_and_evaluate(config, str(places.run))
    export.export_checkpoint(config, str(places.run), directory=places.export)
    return places
