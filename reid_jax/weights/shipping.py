"""A trained run as weights that the library brings: half precision, with a card.

    python -m reid_jax.weights --from=runs/pretrain-vit --ship=vit
    python -m reid_jax.weights --from=shipped/vit --as=shipped --to=runs/vit

`config.pretrained` and `reid_jax.load` take the name `shipped/vit` then. The second
command is the way back, to a run that every verb takes.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from configs import run as run_config
from reid_jax import experiment, staging, storage
from reid_jax.errors import UserError
from reid_jax.runtime import checkpoint, digests, sharding, trained
from reid_jax.runtime import workdir as workdirs
from reid_jax.weights import files, grids, included, mapping, runs

_CLASSIFIER = "params/heads/classifier/"
"""Of the people that it was trained on; nobody else has a use for it."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ABOUT = {
    "licence": "Apache-2.0, as the library's code; so are the pictures that it renders",
    "limits": (
        "It has seen rendered people and never a real one. It is to start from, where "
        "ImageNet's weights would be, and no model for real people: nothing that it "
        "says of them can be relied on."
    ),
}


def ship(place: str, name: str) -> str:
    """Writes `included.FOLDER / name`, and says what is in it.

    Args:
      place: a run's folder, of which its best checkpoint is taken, or one step's.
      name: the last part of `shipped/NAME`.

    Raises:
      UserError: a name that cannot be, or is there already; a run without figures, or
        whose network is not whole without classifier; numbers beyond half precision.
    """
    folder = included.FOLDER / name
    if not _NAME.fullmatch(name):
        raise UserError(f"--ship={name!r}: small letters, digits and _ make a name")
    if folder.exists():
        raise UserError(f"{included.PREFIX}{name} exists; remove {folder} first")
    step = checkpoint.find(place)
    config = run_config.get_config(place)
    _, variables = experiment.restore(config, step, sharding.make_mesh())
    arrays = _halved(variables, place)
    runs.complete(arrays, config, origin=place)  # what loading will do with them
    card = {"name": included.PREFIX + name} | _card(place, step, config, arrays)
    _write(folder, arrays, card, grids.of_run(workdirs.flatten(card["config"])))
    figures = "".join(
        f"\n  {protocol}: rank-1 {100 * of['rank1']:.1f} %, mAP {100 * of['mAP']:.1f} %"
        for protocol, of in card["metrics"].items()
    )
    megabytes = (folder / included.WEIGHTS).stat().st_size / 1e6
    return (
        f"{card['network']}, {card['numbers']:,} numbers, {megabytes:.1f} MB{figures}\n"
        f"wrote {folder}\nuse it with --config.pretrained={card['name']}, or "
        f'reid_jax.load("{card["name"]}")'
    )


def _card(
    place: str, step: epath.Path, config: Any, arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What is said of the weights."""
    meta = checkpoint.read_meta(step)
    return {
        "network": mapping.describe(arrays),
        "numbers": sum(array.size for array in arrays.values()),
        "type": "float16",
        "data": {"name": config.data.dataset, **meta.get("data", {})},
        "recipe": f"configs/{config.name}.py, {config.variant}",
        "batches": meta["global_step"],
        "metrics": _metrics(step, meta["global_step"]),
        **_ABOUT,
        "method": meta["method"],
        "config": _portable(trained.config(place)),
    }


def read(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The card of shipped weights, and their arrays by our path.

    Raises:
      UserError: there are none of that name, or they are damaged.
    """
    return included.card(name), files.read(included.locate(name)).arrays


def as_run(name: str, target: pathlib.Path) -> str:
    """Writes the folder of a run, and says what is done with it.

    Args:
      name: `shipped/NAME`.
      target: the folder; must not be there.

    Raises:
      UserError: there are none of that name, they are damaged, or nothing can be
        written at the target.
    """
    card, arrays = read(name)
    config = run_config.restored(card["config"])
    config.pretrained = "none"  # what it started from has no part in it any more
    variables, filled = runs.complete(arrays, config, origin=name)
    runs.write(target, config, variables, {"file": name, "filled": filled})
    return (
        f"{name}: {card['network']}\nwrote {target}; try it with\n"
        f"  python -m reid_jax.main --mode=evaluate --workdir={target} "
        "--config.evaluate_on=\"('synthetic/holistic_demo',)\""
    )


def _halved(variables: Mapping[str, Any], place: str) -> dict[str, np.ndarray]:
    """What embedding needs, in half precision."""
    halved = {}
    for path, array in files.flatten(dict(variables)).items():
        if path.startswith(_CLASSIFIER):
            continue
        whole = np.asarray(jax.device_get(array), np.float32)
        with np.errstate(over="ignore"):
            halved[path] = whole.astype(np.float16)
        if not np.isfinite(halved[path]).all():
            raise UserError(f"{place}: {path} has numbers that float16 cannot hold")
    return halved


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """The config without the place of the data on the machine that trained."""
    return config | {"data": config["data"] | {"data_dir": "data"}}


def _metrics(step: epath.Path, global_step: int) -> dict[str, dict[str, float]]:
    """The figures of a checkpoint by protocol, as its run has written them."""
    results = trained.run_folder(step) / "results.json"
    found = {
        entry["protocol"]: state["metrics"]
        for entry in workdirs.read_objects(results)
        for state in (entry, entry.get("best", {}))
        if state.get("step") == global_step
        and "metrics" in state
        and not (entry.get("changed") or entry.get("rerank") or entry.get("run"))
    }
    if not found:
        raise UserError(
            f"there are no figures of step {global_step} in {results}; the card needs "
            f"them: python -m reid_jax.main --mode=evaluate --workdir={results.parent}"
        )
    return found


def _write(
    folder: pathlib.Path,
    arrays: dict[str, np.ndarray],
    card: dict[str, Any],
    grid: grids.Grid | None,
) -> None:
    """The folder, whole or not at all."""
    storage.check_writable(folder.parent)
    with storage.written(folder.parent), staging.built(folder, doing="shipping") as new:
        files.write_safetensors(new / included.WEIGHTS, arrays, grid)
        workdirs.write_json(new / included.CARD, card)
        digests.write(new)
