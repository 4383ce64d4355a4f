"""Parameters of a layer, without what flax's own way costs each time one is read."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
from flax.errors import ScopeParamShapeError

FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""torchvision's start of convolutions: Kaiming, fan out, normal and not cut off."""


def parameter(
    module: nn.Module,
    name: str,
    init: nn.initializers.Initializer,
    shape: tuple[int, ...],
) -> jax.Array:
    """`module.param(name, init, shape)`, whose shape alone is compared.

    flax traces the initializer anew, each time, to know what shape it would give, which
    takes as long as many a layer (docs/results.md, "Time to trace").

    Raises:
      ScopeParamShapeError: flax's, if the parameter that is there has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape)
    value = module.get_variable("params", name)
    if np.shape(value) != shape:
        place = module.scope.path_text
        raise ScopeParamShapeError(name, place, np.shape(value), shape)
    return value
