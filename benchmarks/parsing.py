"""What a trained DROP sees and what it finds people by: parsing and retrieval.

    python -m benchmarks.parsing --run=runs/drop-demo

Reads the run's best checkpoint and its config. Prints, for the queries of its first
protocol, which share of the places of each part the network finds (pixel accuracy, at
the resolution of the parsing features), how well the parts overlap (IoU) and how many
queries show them; then the retrieval by global (G), foreground (F) and part embeddings
(P), together and one by one, from the same parameters, as in Table 6. `parsing.json` in
the run's folder has the same figures.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import run as config_of_run
from data_pipelines import loader
from data_pipelines.records import Records
from reid_jax import errors, experiment
from reid_jax.errors import UserError
from reid_jax.evaluation.embedding import Embedder
from reid_jax.evaluation.scoring import Ranking
from reid_jax.losses.parsing import UNLABELLED, part_targets
from reid_jax.models.method import Embedding, Method, Variables
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
BLOCK = 256
"""Queries ranked at once."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="folder of a finished run of DROP")
    run = pathlib.Path(parser.parse_args(argv).run)
    figures = measure(run)
    print(report(figures))
    workdirs.write_json(run / "parsing.json", figures)


def measure(run: pathlib.Path) -> dict[str, Any]:
    """All figures of a run's best checkpoint."""
    folder = checkpoint.find(str(run))
    config = config_of_run.get_config(str(run))
    if "embeddings" not in config.model:
        raise UserError(f"{run} is no run of DROP: it has no config.model.embeddings")
    config.model.embeddings = COMBINATIONS["G+F+P"]
    mesh = sharding.make_mesh()
    method, variables = experiment.restore(config, folder, mesh)
    protocol = experiment.build_protocols(config)[0]
    embed = Embedder(
        method,
        mesh,
        image_size=experiment.image_size(config),
        batch_size=config.evaluation.batch_size,
    )
    query, gallery = (
        experiment.open_split(protocol.dataset, split, config.data.data_dir)
        for split in (protocol.query_split, protocol.gallery_split)
    )
    embedded = (
        embed(variables, query, "query"),
        embed(variables, gallery, "gallery"),
    )
    figures: dict[str, Any] = {"protocol": protocol.name, "checkpoint": folder.name}
    if method.options.regions == "parsing":
        figures["parsing"] = parsing(config, method, variables, query)
        visible = embedded[0]["visibility"][:, 2:].mean(0)
        for name, share in zip(method.options.parts, visible, strict=True):
            figures["parsing"]["parts"][name]["visible"] = float(share)
    figures["retrieval"] = {
        title: retrieval(method, embedded, names, Ranking(protocol, query, gallery))
        for title, names in (
            COMBINATIONS | {name: (name,) for name in method.options.parts}
        ).items()
    }
    return figures


def parsing(
    config: Any, method: Method, variables: Variables, records: Records
) -> dict[str, Any]:
    """Pixel accuracy and IoU of the background and every part, over some images."""
    experiment.check_parts(method, records, ("parts",))

    @jax.jit
    def count(variables: Variables, batch: dict[str, jax.Array]) -> jax.Array:
        """Places by target (rows) and prediction (columns)."""
        predicted = method.pictures(variables, batch)["parts"].values[:, 0] + 1
        size = predicted.shape[1:]
        targets = part_targets(batch["parts"], method.options.part_groups, size)
        targets = jnp.where(batch["mask"][:, None, None], targets, UNLABELLED)
        classes = len(method.options.part_groups) + 1
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
    titles = ("background", *method.options.parts)
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
    method: Method,
    embedded: tuple[Embedding, Embedding],
    names: tuple[str, ...],
    ranking: Ranking,
) -> dict[str, float]:
    """Metrics when images are compared by some of G, F and the parts, all embedded."""
    known = ("global", "foreground", *method.options.parts)
    parts = method.options.parts if "parts" in names else ()
    kept = np.isin(known, (*names, *parts))
    query, gallery = (
        {name: values[:, kept] for name, values in embedding.items()}
        for embedding in embedded
    )
    for start in range(0, len(query["parts"]), BLOCK):
        rows = slice(start, start + BLOCK)
        block = {name: values[rows] for name, values in query.items()}
        numbers = np.arange(start, start + len(block["parts"]))
        ranking.update(numbers, method.distance(block, gallery))
    return ranking.figures()["metrics"]


def report(figures: dict[str, Any]) -> str:
    """The figures as two tables."""
    lines = [f"{figures['protocol']}, checkpoint {figures['checkpoint']}", ""]
    if "parsing" in figures:
        parsing = figures["parsing"]
        lines += [
            "| part | pixel accuracy | IoU | share of the places | visible in |",
            "|---|---|---|---|---|",
        ]
        for name, part in parsing["parts"].items():
            keys = ("accuracy", "iou", "share", "visible")
            cells = [f"{part[key]:.1%}" if key in part else "" for key in keys]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += [
            f"| all | {parsing['pixel_accuracy']:.1%} | | | |",
            f"| all parts | {parsing['pixel_accuracy_of_parts']:.1%} | | | |",
            "",
        ]
    lines += ["| embeddings | rank-1 | mAP |", "|---|---|---|"]
    lines += [
        f"| {name} | {metrics['rank1']:.1%} | {metrics['mAP']:.1%} |"
        for name, metrics in figures["retrieval"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with errors.answered():
        main()
