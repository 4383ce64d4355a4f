"""Entries of `results.json`: what they say, how they are kept, a line for each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax import storage
from reid_jax.retrieval.steps import STEPS
from reid_jax.runtime import workdir as workdirs


def describe(
    protocol: Protocol, query: Records, gallery: Records, step: int
) -> dict[str, Any]:
    """What an entry of `results.json` says beside its figures.

    The camera filter is false as well where no camera took both queries and gallery
    images: it leaves nothing out.
    """
    shared = np.intersect1d(query.camera, gallery.camera).size > 0
    entry = {
        "dataset": protocol.dataset,
        "protocol": protocol.name,
        "step": step,
        "ap": protocol.ap,
        "camera_filter": protocol.camera_filter and shared,
        "shots": "single" if protocol.single_shot else "all",
        "query_images": len(query),
        "gallery_images": len(gallery),
    }
    if protocol.single_shot:
        entry |= {"repeats": protocol.repeats, "seed": protocol.seed}
    return entry


def write(workdir: str, entries: list[dict[str, Any]]) -> None:
    """Writes `results.json` (process 0 only).

    Entries of other runs, protocols, steps and model fields that are there stay; one of
    the same is replaced, but keeps the `best` of its run, and a `verification` of the
    same figures that it has none of.
    """
    if jax.process_index() != 0:
        return
    path = storage.absolute(workdir) / "results.json"
    with workdirs.alone_with(path):
        merged = {_identity(entry): entry for entry in workdirs.read_objects(path)}
        for entry in entries:
            before = merged.pop(_identity(entry), {})
            kept = ["best"]
            if before.get("metrics") == entry.get("metrics"):
                kept.append("verification")
            stays = {name: before[name] for name in kept if name in before}
            merged[_identity(entry)] = stays | entry
        workdirs.write_json(path, list(merged.values()))


BEFORE_RERANKING, BEFORE_PAIRS = "before_reranking", "before_pairs"
STATES = {BEFORE_RERANKING: "before re-ranking", BEFORE_PAIRS: "before pairs"}
"""Of an entry's further metrics, `metrics_NAME`, and what they are called."""

_PROTOCOL = ("protocol", "ap", "camera_filter", "averaged", "rerank", "search")


def same_protocol(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the figures of two entries may be compared."""
    return all(entry.get(name) == other.get(name) for name in _PROTOCOL)


def _identity(entry: dict[str, Any]) -> str:
    """What makes an entry of the results another one."""
    names = (*_PROTOCOL, "run", "step", "changed")
    return json.dumps([entry.get(name) for name in names])


def picture_folder(protocol: str, rerank: Mapping[str, Mapping[str, Any]]) -> str:
    """Where an evaluation draws, below `pictures/`: each re-ranking for itself.

    An evaluation replaces what an earlier one of the same has drawn.

    Args:
      protocol: its name.
      rerank: options of each step, as an entry has them.
    """
    folder = protocol.replace(":", "-")
    steps = "-".join(",".join(step) for step in _unusual(rerank))
    return f"reranked-{steps}/{folder}" if steps else folder


def _unusual(rerank: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Each step, and its options that are not the usual ones."""
    for step, options in rerank.items():
        made = STEPS.get(step)
        usual = dataclasses.asdict(made()) if made else {}
        yield (step, *(f"{k}={v}" for k, v in options.items() if usual.get(k) != v))


def reranking(entry: Mapping[str, Any]) -> str:
    """The steps of an entry's re-ranking, with options that are not the usual ones."""
    steps = [" ".join(step) for step in _unusual(entry.get("rerank", {}))]
    if search := entry.get("search"):
        steps.append(f"neighbours by {search['by']} of recall {search['recall']}")
    return ", ".join(steps)


def summary(entry: dict[str, Any]) -> str:
    """One line for the terminal."""
    figures = ", ".join(f"{k} {v:.1%}" for k, v in entry["metrics"].items())
    note = f"; {entry['note']}" if "note" in entry else ""
    for name, what in STATES.items():
        if before := entry.get(f"metrics_{name}"):
            note += f"; {what}: mAP {before['mAP']:.1%}"
    for point in entry.get("verification", {}).get("at", ()):
        note += f"; TPR {point['tpr']:.1%} at FPR {point['fpr']:g}"
    return f"{entry['protocol']}: {figures} ({entry['valid_queries']} queries{note})"
