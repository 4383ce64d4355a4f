"""Which systems convert to ONNX: largest difference to the model, size, seconds.

python -m benchmarks.onnx_export --configs=baseline:demo,aaformer:demo

Variables are random: what is measured is the conversion. A config's own commas are
written as +, as in baseline:demo+backbone=pcb.
"""

import argparse
import importlib
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.export import artifacts, onnx
from reid_jax.models.method import Method, Variables

IDENTITIES = 751


def variables_of(method: Method, config: Any) -> Variables:
    """What `init` would return, filled with normal numbers."""
    rng = np.random.default_rng(0)

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        # Outputs of a layer are about as large as its inputs.
        fan_in = max(np.prod(leaf.shape[:-1]), 1) if name == "kernel" else 25
        values = rng.normal(0, fan_in**-0.5, leaf.shape)
        if name in ("var", "scale"):
            values = 1 + np.abs(values)
        return values.astype(leaf.dtype)

    batch = experiment.example_batch(config, 8)
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def convert(text: str, folder: pathlib.Path) -> dict[str, float]:
    """Artifact -> its largest difference to the model, of a config with `+` for `,`."""
    name, _, argument = text.replace("+", ",").partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(argument)
    method = experiment.build_method(config, num_classes=IDENTITIES)
    recorder = onnx.Recorder(folder)
    artifacts.write(
        recorder,
        method,
        variables_of(method, config),
        stage=method.stages[-1],
        image_size=experiment.image_size(config),
    )
    return recorder.differences


def main() -> None:
    """Prints a row for each config and artifact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", required=True, help="names, with commas")
    configs = parser.parse_args().configs.split(",")
    print("| config | artifact | MB | largest difference | seconds |")
    print("|---|---|---|---|---|")
    for text in configs:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                differences = convert(text, pathlib.Path(folder))
            except UserError as error:
                print(f"| {text} | {error} | | | |", flush=True)
                continue
            seconds = f"{time.monotonic() - start:.0f}"
            for file, difference in differences.items():
                size = (pathlib.Path(folder) / file).stat().st_size / 1e6
                print(
                    f"| {text} | {file} | {size:.2f} | {difference:.1e} | {seconds} |"
                )
                text, seconds = "", ""
        print(end="", flush=True)


if __name__ == "__main__":
    main()
