"""Small networks to start from, trained on rendered people.

    python -m reid_jax.main --config=configs/pretrain.py:backbone=vit
    python -m reid_jax.weights --from=runs/pretrain-vit --ship=vit

The papers start from ImageNet's weights; the demos, which are smaller than any that
were published, can start from these. Each is the backbone of the demos named here,
trained by BoT's losses alone, without parts, on the people of `synthetic/pretrain`:

- `vit`: AAformer, CpaCol, the baselines `vit` and `transreid`; width 192, depth 4
- `vit_deep`: no demo's; the same with depth 8
- `resnet`: CACE-Net, SANet, DROP's ResNet, baselines `resnet50`, `pcb`; width 16
- `hrnet`: DROP and the baseline `hrnet_w32`; width 8

The schedules take half an hour to an hour and a quarter of one core each; that of
`vit_deep`, which the library does not bring, as long as the longest. A run that is
interrupted goes on when its command is given again. `:demo` takes a minute or two, to
see it work.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import baseline, common


class Recipe(NamedTuple):
    """A backbone of `configs/baseline.py`, other options than its demo's, epochs."""

    backbone: str
    options: dict[str, Any]
    epochs: float


RECIPES = {
    "vit": Recipe("vit", {}, 8.0),
    "vit_deep": Recipe("vit", {"depth": 8}, 4.0),
    "resnet": Recipe("resnet50", {}, 4.0),
    "hrnet": Recipe("hrnet_w32", {}, 6.0),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`:backbone=NAME` of `RECIPES`, `:dataset=NAME`, `:demo`."""
    arguments = common.parse(arg, backbone="vit")
    name = common.choice(arguments, "backbone", RECIPES)
    recipe, demo = RECIPES[name], arguments["demo"]
    config = baseline.get_config(f"demo,scratch,backbone={recipe.backbone}")
    config.name, config.variant = "pretrain", f"{name}-demo" if demo else name
    config.model.options.update(recipe.options)
    if "dataset=" in (arg or ""):
        config.data.dataset = arguments["dataset"]
        config.variant += f"-{arguments['dataset'].replace('/', '-')}"
    else:
        config.data.dataset = f"synthetic/pretrain{'_demo' if demo else ''}"
    train = config.stages.train
    train.epochs = 5.0 if demo else recipe.epochs
    train.optimizer.warmup_epochs = 0.5
    config.evaluation.every_epochs = 2.0
    # Of new people by the same cameras, and of new people by new cameras.
    config.evaluate_on = (config.data.dataset, common.DEMO_DATASET)
    return config
