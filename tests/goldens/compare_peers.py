"""Prints how far converted networks are from the peers' own at full size.

`python -m tests.goldens.compare_peers FOLDER`, with the folder that
`make_peers.py --full FOLDER` has written: each file is converted as a user would, and
the embeddings of eight pictures are compared, resampling included. A second argument,
such as `transreid*`, takes some of the files.
"""

import contextlib
import io
import pathlib
import sys
import tempfile

import jax
import numpy as np

from configs import run as run_config
from data_pipelines import images
from reid_jax import experiment
from reid_jax.runtime import checkpoint, sharding
from reid_jax.weights import runs
from tests.goldens import filling, layout


def embeddings(folder, how):
    """Of the run in a folder, with pictures resized in one of the ways."""
    config = run_config.get_config(str(folder))
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    step = checkpoint.find(str(folder))
    method, variables = experiment.restore(config, step, mesh)
    size = experiment.image_size(config)
    embed = jax.jit(method.embed)
    camera = np.arange(8, dtype=np.int32) % 6
    return config, [
        np.asarray(
            embed(
                variables,
                np.stack([images.resize(x, size, h) for x in filling.pictures()]),
                camera,
            )["vector"]
        )
        for h in (config.data.resize, *how)
    ]


def main():
    """One line per file: the network, the difference, and with OpenCV's resampling."""
    folder, pattern = pathlib.Path(sys.argv[1]), (sys.argv[2:] or ["*"])[0]
    for file in sorted(folder.glob(f"{pattern}.pth.tar")):
        name = file.name.removesuffix(".pth.tar")
        kind = name.rpartition("-")[0]
        expected = np.load(file.with_name(f"{name}.npy"))
        with tempfile.TemporaryDirectory() as place:
            with contextlib.redirect_stdout(io.StringIO()):
                runs.convert(str(file), kind, pathlib.Path(place) / "run")
            config, found = embeddings(pathlib.Path(place) / "run", ["bilinear"])
        if config.model.normalise:
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        own, opencv = (layout.relative(one, expected) for one in found)
        size = f"{config.data.height} x {config.data.width}"
        print(
            f"{kind:26} {config.model.backbone:15} {size} {own:.1e}  "
            f"OpenCV's bilinear {opencv:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
