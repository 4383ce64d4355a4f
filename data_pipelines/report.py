"""What a prepared data set holds, in words, and what to do with it next."""

import os
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines import prepared, protocols, records

USUAL_BATCH = 16
"""Identities of a batch in most configs."""


def report(dataset: str, path: str | os.PathLike) -> str:
    """Describes a prepared data set: images, identities, cameras, remarks.

    Args:
      dataset: its name, as in `synthetic/holistic_demo`.
      path: its folder, as `data_pipelines.prepare.prepare` returns it.

    Raises:
      UserError: the data set is not there or is damaged.
    """
    info = tfds.builder_from_directory(path).info
    data_dir = _data_dir(dataset, path)
    opened = {s: prepared.open_records(dataset, s, data_dir) for s in info.splits}
    lines = [f"{'':8}{'images':>8}{'identities':>12}{'cameras':>9}"]
    for split, stored in opened.items():
        cameras = np.unique(stored.camera).size
        lines.append(
            f"{split:8}{len(stored):>8}{len(_identities(stored)):>12}{cameras:>9}"
        )
    metadata = info.metadata or {}
    if junk := sum(metadata.get("junk_dropped", {}).values()):
        lines.append(f"{junk} junk images (person -1) were left out.")
    return "\n".join([*lines, *metadata.get("remarks", []), *_remarks(opened)])


def next_command(dataset: str, path: str | os.PathLike) -> str:
    """The command that trains on a prepared data set or, lacking that, evaluates."""
    train = protocols.protocol(dataset).train_dataset
    if train == dataset and "train" not in prepared.split_names(
        dataset, _data_dir(dataset, path)
    ):
        return (
            "Next, with a trained run: python -m reid_jax.main "
            "--mode=evaluate --workdir=runs/aaformer-demo "
            f"--config.data.data_dir={_data_dir(dataset, path)} "
            f"--config.evaluate_on=\"('{dataset}',)\""
        )
    config = f"configs/aaformer.py:demo,dataset={train}"
    command = (
        f"Next: python -m reid_jax.main --config={config} "
        f"--config.data.data_dir={_data_dir(dataset, path)}"
    )
    if train == dataset:
        return command + _smaller_batch(dataset, path)
    return f"{command} --config.evaluate_on=\"('{dataset}',)\""


def _smaller_batch(dataset: str, path: str | os.PathLike) -> str:
    """What a training set of fewer identities than a usual batch needs beside."""
    stored = prepared.open_records(dataset, "train", _data_dir(dataset, path))
    count = len(_identities(stored))
    return f" --config.stages.train.identities={count}" if count < USUAL_BATCH else ""


def _data_dir(dataset: str, path: str | os.PathLike) -> pathlib.Path:
    """`path` is `<data_dir>/<dataset>/<version>`."""
    return pathlib.Path(path).parents[dataset.count("/") + 1]


def _identities(stored: records.Records) -> set[int]:
    return set(stored.person[stored.person > 0].tolist())


def _remarks(opened: dict[str, records.Records]) -> list[str]:
    train, query, gallery = (
        _identities(opened[s]) if s in opened else set()
        for s in ("train", "query", "gallery")
    )
    remarks = []
    if "gallery" in opened:
        distractors = int((opened["gallery"].person == 0).sum())
        if distractors:
            remarks.append(f"{distractors} gallery images are distractors.")
        if alone := len(query - gallery):
            remarks.append(f"{alone} query identities have no gallery image.")
    if shared := len(train & (query | gallery)):
        remarks.append(
            f"Note: {shared} identities are in train and in query or gallery; "
            "evaluation does not measure new identities."
        )
    return remarks
