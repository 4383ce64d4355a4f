"""The config of a run that is there, as it was trained.

    python -m reid_jax.main --mode=evaluate --workdir=runs/aaformer-demo
    python -m reid_jax.main --config=configs/run.py:runs/aaformer-demo --mode=evaluate

are the same: evaluation and export take it where no config is named. Fields can be
changed on the command line as those of any config.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common
from reid_jax.errors import UserError
from reid_jax.runtime import trained


def get_config(arg: str | None = None) -> ConfigDict:
    """`:FOLDER` of a run, or of one of its checkpoints.

    Raises:
      UserError: if there is no checkpoint.
    """
    if not arg:
        raise UserError("name a run's folder: --config=configs/run.py:runs/NAME")
    return restored(trained.config(arg))


def restored(found: dict[str, Any]) -> ConfigDict:
    """A config that was kept as nested JSON."""
    found = _with_tuples(found)
    # A run of an earlier version lacks the fields that came after it.
    defaults = common.base(found["name"], common.parse("demo")).to_dict()
    defaults["stages"] = {name: common.stage().to_dict() for name in found["stages"]}
    for whole in ("augment", "model"):
        defaults.pop(whole)
    return ConfigDict(_merged(defaults, found))


def _merged(defaults: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    both = defaults | found
    for name in defaults.keys() & found.keys():
        if isinstance(defaults[name], dict) and isinstance(found[name], dict):
            both[name] = _merged(defaults[name], found[name])
    return both


def _with_tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
