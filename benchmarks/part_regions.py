"""What the parts of a trained AAformer, as its pictures show them, tell of the body.

    python -m benchmarks.part_regions --run=runs/aaformer-demo

Reads the run's best checkpoint and its config. Prints, for the queries of its first
protocol and each granularity, the mutual information between the part that a patch is
assigned to, in the layer and head of `pictures/parts.png`, and the region of the body
at the patch's centre (head; torso and arms; legs and feet; the background is left out).
0 bits: the part says nothing of the region; the region's own entropy: all of it.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from configs import run as config_of_run
from data_pipelines import loader
from data_pipelines.part_labels import groupings, kinds
from reid_jax import errors, experiment
from reid_jax.runtime import checkpoint, sharding

REGIONS = "three_v"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="folder of a run of AAformer")
    run = pathlib.Path(parser.parse_args(argv).run)
    tables = measure(run)
    for title, table in tables.items():
        of_region = table.sum(0) / table.sum()
        print(
            f"{title}: {information(table):.3f} of "
            f"{information(np.diag(of_region)):.2f} bits, {table.sum():.0f} patches"
        )


def measure(run: pathlib.Path) -> dict[str, np.ndarray]:
    """Patches by part (rows) and region (columns), for each granularity."""
    folder = checkpoint.find(str(run))
    config = config_of_run.get_config(str(run))
    method, variables = experiment.restore(config, folder, sharding.make_mesh())
    variables = sharding.fetch(variables)
    protocol = experiment.build_protocols(config)[0]
    query = experiment.open_split(
        protocol.dataset, protocol.query_split, config.data.data_dir
    )
    experiment.check_parts(method, query, ("parts",))
    regions = groupings.grouping(REGIONS, query.parts_kind)
    tables: dict[str, np.ndarray] = {}
    for rows in np.array_split(np.arange(len(query)), -(-len(query) // 64)):
        batch = loader.image_batch(
            query, rows, image_size=experiment.image_size(config), with_parts=True
        )
        item = method.pictures(variables, batch)["parts"]
        label = _at_centres(groupings.reduce(batch["parts"], regions), item.values)
        for title, part in zip(
            item.titles, np.asarray(item.values).swapaxes(0, 1), strict=True
        ):
            known = (part >= 0) & (label > 0) & (label != kinds.UNLABELLED)
            table = np.zeros((len(item.groups), len(regions)))
            np.add.at(table, (part[known], label[known] - 1), 1)
            tables[title] = tables.get(title, 0) + table
    return tables


def _at_centres(labels: np.ndarray, maps: jax.Array) -> np.ndarray:
    """Labels [B, H, W] at the centres of a grid's cells: [B, h, w]."""
    for axis, count in ((1, maps.shape[-2]), (2, maps.shape[-1])):
        size = labels.shape[axis]
        labels = labels.take((2 * np.arange(count) + 1) * size // (2 * count), axis)
    return labels


def information(table: np.ndarray) -> float:
    """Mutual information of rows and columns in bits, from counts or shares."""
    joint = table / table.sum()
    alone = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / alone[seen])).sum())


if __name__ == "__main__":
    with errors.answered():
        main()
