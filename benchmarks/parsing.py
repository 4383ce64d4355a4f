"""What a trained DROP sees and what it finds people by: parsing and retrieval.

    python -m benchmarks.parsing --run=runs/drop-demo

Reads the run's best checkpoint and its config. Prints, for the queries of its first
protocol, which share of the places of each part the network finds (pixel accuracy, at
the resolution of the parsing features) and how well the parts overlap (IoU); then the
retrieval by global (G), foreground (F) and part embeddings (P), together and one by
one, from the same parameters, as in Table 6. `parsing.json` in the run's folder has the
same figures.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import loader
from data_pipelines.protocols import Protocol
from reid_jax import evaluate, experiment
from reid_jax.errors import UserError
from reid_jax.losses.parsing import UNLABELLED, part_targets
from reid_jax.models.method import Method, Variables
from reid_jax.runtime import checkpoint, sharding
from reid_jax.runtime import workdir as workdirs

COMBINATIONS = {
    "G": ("global",),
    "F": ("foreground",),
    "P": ("parts",),
    "G+F": ("global", "foreground"),
    "F+P": ("foreground", "parts"),
    "G+F+P": ("global", "foreground", "parts"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="folder of a finished run of DROP")
    run = pathlib.Path(parser.parse_args(argv).run)
    try:
        figures = measure(run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(figures))
    workdirs.write_json(run / "parsing.json", figures)
    return 0


def measure(run: pathlib.Path) -> dict[str, Any]:
    """All figures of a run's best checkpoint."""
    folder = checkpoint.find(str(run))
    config = ConfigDict(workdirs.read_json(run / "config.json"))
    mesh = sharding.make_mesh()
    method, variables = experiment.restore(config, folder, mesh)
    protocol = experiment.build_protocols(config)[0]
    names = getattr(method, "part_names", None)
    if names is None:
        raise UserError(f"{run} is no run of DROP: its method has no parts")
    figures: dict[str, Any] = {"protocol": protocol.name, "checkpoint": folder.name}
    if method.regions == "parsing":
        figures["parsing"] = parsing(config, method, variables, protocol)
    step = checkpoint.read_meta(folder)["global_step"]
    figures["retrieval"] = {
        title: retrieval(config, embeddings, folder, protocol, mesh, step)
        for title, embeddings in (COMBINATIONS | {n: (n,) for n in names}).items()
    }
    return figures


def parsing(
    config: ConfigDict, method: Method, variables: Variables, protocol: Protocol
) -> dict[str, Any]:
    """Pixel accuracy and IoU of the background and every part, over the queries."""
    records = experiment.open_split(config, protocol.dataset, protocol.query_split)
    experiment.check_parts(method, records, ("parts",))

    @jax.jit
    def count(variables: Variables, batch: dict[str, jax.Array]) -> jax.Array:
        """Places by target (rows) and prediction (columns)."""
        predicted = method.pictures(variables, batch)["parts"].values[:, 0] + 1
        size = predicted.shape[1:]
        targets = part_targets(batch["parts"], method.part_groups, size)
        targets = jnp.where(batch["mask"][:, None, None], targets, UNLABELLED)
        classes = len(method.part_groups) + 1
        kinds = jnp.where(targets == UNLABELLED, classes, targets)
        flat = kinds * classes + predicted
        counts = jnp.bincount(flat.ravel(), length=(classes + 1) * classes)
        return counts.reshape(classes + 1, classes)[:classes]

    batches = loader.eval_batches(
        records,
        image_size=experiment.image_size(config),
        batch_size=config.evaluation.batch_size,
        process_index=0,
        process_count=1,
        with_parts=True,
    )
    places = sum(np.asarray(count(variables, dict(batch)), int) for batch in batches)
    right, wanted, found = places.diagonal(), places.sum(1), places.sum(0)
    titles = ("background", *method.part_names)
    return {
        "pixel_accuracy": right.sum() / places.sum(),
        "pixel_accuracy_of_parts": right[1:].sum() / wanted[1:].sum(),
        "parts": {
            title: {
                "accuracy": right[i] / max(wanted[i], 1),
                "iou": right[i] / max(wanted[i] + found[i] - right[i], 1),
                "share": wanted[i] / places.sum(),
            }
            for i, title in enumerate(titles)
        },
    }


def retrieval(
    config: ConfigDict,
    embeddings: tuple[str, ...],
    folder: pathlib.Path,
    protocol: Protocol,
    mesh: jax.sharding.Mesh,
    step: int,
) -> dict[str, float]:
    """Metrics of the checkpoint when images are compared by `embeddings`."""
    config = ConfigDict(config.to_dict())
    config.model.embeddings = embeddings
    method, variables = experiment.restore(config, folder, mesh)
    evaluator = evaluate.Evaluator(config, method, mesh)
    (entry,) = evaluate.evaluate_protocols(
        evaluator, (protocol,), variables, stage=method.stages[0], step=step
    )
    return entry["metrics"]


def report(figures: dict[str, Any]) -> str:
    """The figures as two tables."""
    lines = [f"{figures['protocol']}, checkpoint {figures['checkpoint']}", ""]
    if "parsing" in figures:
        parsing = figures["parsing"]
        lines += [
            "| part | pixel accuracy | IoU | share of the pixels |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {name} | "
            + " | ".join(f"{part[key]:.1%}" for key in ("accuracy", "iou", "share"))
            + " |"
            for name, part in parsing["parts"].items()
        ]
        lines += [
            f"| all | {parsing['pixel_accuracy']:.1%} | | |",
            f"| all parts | {parsing['pixel_accuracy_of_parts']:.1%} | | |",
            "",
        ]
    lines += ["| embeddings | rank-1 | mAP |", "|---|---|---|"]
    lines += [
        f"| {name} | {metrics['rank1']:.1%} | {metrics['mAP']:.1%} |"
        for name, metrics in figures["retrieval"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
