"""What a run starts from: its training data and pretrained weights."""

from __future__ import annotations

from typing import Any

from data_pipelines import prepared, protocols, records
from reid_jax import experiment, weights
from reid_jax.errors import UserError
from reid_jax.models.method import Method, Variables


def open_data(config: Any) -> records.Records:
    """The training split.

    Raises:
      UserError: if it is not prepared; says how to, and where weights come from.
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
        return experiment.open_split(config.data.data_dir, config.data.dataset, "train")
    except UserError as error:
        known = weights.KNOWN.get(config.pretrained)
        source = f"\nIts pretrained weights come from {known.url}." if known else ""
        raise UserError(f"{error}{source}{_hint(config)}") from error


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
    """Fresh variables with the pretrained values in their places; prints a report.

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
    return loaded


def _hint(config: Any) -> str:
    """What to try first, unless it is that already."""
    if config.variant.endswith("demo") or "demo-" in config.variant:
        return ""
    return (
        "\nTo see it work without any of this, append ':demo' to the config's path; "
        "--config.pretrained=none trains from scratch."
    )
