"""What a prepared data set holds, in words, and what to do with it next."""

import os
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines import protocols
from data_pipelines.records import Records, cameras_by_person

USUAL_BATCH = 16
"""Identities of a batch in most configs."""

_NO_FILTER = "--config.evaluation.camera_filter=False"


def report(
    dataset: str, opened: Mapping[str, Records], metadata: Mapping[str, Any]
) -> str:
    """Describes a prepared data set: images, identities, cameras, remarks.

    Args:
      dataset: its name, as in `synthetic/holistic_demo`.
      opened: its splits.
      metadata: what is stored beside them.
    """
    lines = [f"{'':8}{'images':>8}{'identities':>12}{'cameras':>9}"]
    for split, stored in opened.items():
        cameras = np.unique(stored.camera).size
        lines.append(
            f"{split:8}{len(stored):>8}{len(_identities(stored)):>12}{cameras:>9}"
        )
    if junk := sum(metadata.get("junk_dropped", {}).values()):
        lines.append(f"Junk images (person -1) that were left out: {junk}.")
    lines += [*metadata.get("remarks", []), *_remarks(opened)]
    if _own_camera_only(dataset, opened):
        lines.append(
            "Note: no query has a match that another camera than its own has seen; "
            f"evaluation needs {_NO_FILTER}."
        )
    return "\n".join(lines)


def next_command(
    dataset: str, opened: Mapping[str, Records], data_dir: str | os.PathLike
) -> str:
    """The command that trains on a prepared data set or, lacking that, evaluates.

    Args:
      dataset: its name.
      opened: its splits.
      data_dir: where it lies.
    """
    if "train" in opened and len(_identities(opened["train"])) == 1:
        return "Training needs images of two identities or more: these are of one."
    command = _command(dataset, opened, shlex.quote(os.fspath(data_dir)))
    return f"{command} {_NO_FILTER}" if _own_camera_only(dataset, opened) else command


def _command(dataset: str, opened: Mapping[str, Records], data_dir: str) -> str:
    train = protocols.protocol(dataset).train_dataset
    if train == dataset and "train" not in opened:
        return (
            "Next, with a trained run: python -m reid_jax.main "
            "--mode=evaluate --workdir=runs/aaformer-demo "
            f"--config.data.data_dir={data_dir} "
            f"--config.evaluate_on=\"('{dataset}',)\""
        )
    config = f"configs/aaformer.py:demo,dataset={train}"
    command = (
        f"Next: python -m reid_jax.main --config={config} "
        f"--config.data.data_dir={data_dir}"
    )
    if train == dataset:
        command += _smaller_batch(opened["train"])
        if {"query", "gallery"} <= opened.keys():
            return command
        return (
            f"{command} --config.evaluate_on=\"('NAME',)\", where NAME is a data set "
            "with queries: this one has none"
        )
    return f"{command} --config.evaluate_on=\"('{dataset}',)\""


def _smaller_batch(stored: Records) -> str:
    """What a training set of fewer identities than a usual batch needs beside."""
    count = len(_identities(stored))
    return f" --config.stages.train.identities={count}" if count < USUAL_BATCH else ""


def _own_camera_only(dataset: str, opened: Mapping[str, Records]) -> bool:
    """Whether the protocol's camera filter leaves out every match of every query."""
    if not {"query", "gallery"} <= opened.keys():
        return False
    asked, seen = map(cameras_by_person, (opened["query"], opened["gallery"]))
    both = asked.keys() & seen.keys()
    elsewhere = any(seen[p] - {camera} for p in both for camera in asked[p])
    camera_filter = protocols.protocol(dataset).camera_filter
    return camera_filter and bool(both) and not elsewhere


def _identities(stored: Records) -> set[int]:
    return set(stored.person[stored.person > 0].tolist())


def _remarks(opened: Mapping[str, Records]) -> list[str]:
    train, query, gallery = (
        _identities(opened[s]) if s in opened else set()
        for s in ("train", "query", "gallery")
    )
    remarks = []
    if "gallery" in opened:
        distractors = int((opened["gallery"].person == 0).sum())
        if distractors:
            remarks.append(f"Gallery images that are distractors: {distractors}.")
        if alone := len(query - gallery):
            remarks.append(f"Query identities without a gallery image: {alone}.")
    if shared := len(train & (query | gallery)):
        remarks.append(
            f"Note: identities in train and in query or gallery: {shared}; "
            "evaluation does not measure new identities."
        )
    return remarks
