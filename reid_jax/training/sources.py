"""What a run starts from: its training data and pretrained weights."""

from __future__ import annotations

from typing import Any

import jax

from data_pipelines import prepared, protocols, records
from reid_jax import experiment, weights
from reid_jax.errors import UserError
from reid_jax.models.method import Method, Variables


def open_data(config: Any) -> records.Records:
    """The training split.

    Raises:
      UserError: if it is not prepared, or what the run is evaluated on; says how to,
        and where weights come from.
    """
    for name in prepared.joined_names(config.data.dataset):
        paired = protocols.protocol(name).train_dataset
        if paired != name:
            raise UserError(
                f"{name} has no training images; by its protocol, models are trained "
                f"on {paired}: --config.data.dataset={paired} "
                f"--config.evaluate_on={name}"
            )
    try:
        data = config.data
        # Before anything is rendered or trained for it.
        for protocol in experiment.build_protocols(config):
            if not protocol.dataset.startswith("synthetic/"):
                prepared.check_there(protocol.dataset, data.data_dir)
        return experiment.open_split(
            data.dataset, "train", data.data_dir, resize=data.resize
        )
    except UserError as error:
        known = weights.KNOWN.get(config.pretrained)
        source = f"\nIts pretrained weights come from {known.url}." if known else ""
        raise UserError(f"{error}{source}{_hint(config)}") from error


def check_unchanged(
    split: records.Records, trained: dict[str, Any] | None, *, workdir: str
) -> None:
    """Checks that a run goes on with the images that it has begun with.

    Args:
      split: the training split as it is now.
      trained: fingerprint of the split in the run's checkpoint; None or empty in those
        of older versions and of converted networks.
      workdir: of the run.

    Raises:
      UserError: if they differ: schedule, batches and classes would be others.
    """
    now = split.fingerprint
    if not trained or trained == now:
        return
    there, here = (
        f"{data['images']} images of {data['identities']} identities"
        for data in (trained, now)
    )
    others = "; as many, but others" if there == here else ""
    raise UserError(
        f"the training images have changed under the run in {workdir}: {there} there, "
        f"{here} here{others}. Prepare them as they were to go on; or name another "
        f"--workdir, where --config.pretrained={workdir} starts from what it has "
        "learned"
    )


def wants_pretrained(config: Any) -> bool:
    """Whether the config names weights to start from."""
    return str(config.pretrained).lower() not in ("none", "")


def check_pretrained(config: Any) -> None:
    """Finds the pretrained weights, or downloads them, before anything else is done.

    Raises:
      UserError: if they cannot be had.
    """
    if not wants_pretrained(config):
        return
    try:
        weights.locate(config.pretrained)
    except UserError as error:
        raise UserError(f"{error}{_hint(config)}") from error


def load_pretrained(config: Any, method: Method, variables: Variables) -> Variables:
    """The variables with the pretrained values in their places; prints a report.

    Says so where the weights are known to want images that are standardised otherwise.

    Raises:
      UserError: if the weights do not fit the method's backbone.
    """
    loaded, _ = weights.load_pretrained(
        variables,
        config.pretrained,
        position_grid=method.position_grid,
        pretrained_grid=config.pretrained_grid,
        copies=method.pretrained_copies,
        allow_unexpected=config.allow_unexpected,
    )
    if jax.process_index() == 0 and "mean" in config.model:
        statistics = config.model.mean, config.model.std
        if note := weights.other_statistics(config.pretrained, *statistics):
            print(note)
    return loaded


def _hint(config: Any) -> str:
    """What to try first, unless it is that already."""
    if config.variant.endswith("demo") or "demo-" in config.variant:
        return ""
    return (
        "\nTo see it work without any of this, append ':demo' to the config's path; "
        "--config.pretrained=none trains from scratch."
    )
