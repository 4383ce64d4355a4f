"""What all augmentation steps share."""

import numpy as np

Pair = tuple[np.ndarray, np.ndarray | None]
"""Image uint8 [H, W, 3] and its part labels uint8 [H, W], if there are any."""


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message), which `transforms.build` shows to the user."""
    if not condition:
        raise ValueError(message)


def require_probability(value: float, name: str = "p") -> None:
    """Raises ValueError unless `value` is one."""
    require(0 <= value <= 1, f"{name} must lie in [0, 1]")


def require_range(
    bounds: tuple[float, float], name: str, greatest: float = float("inf")
) -> None:
    """Raises ValueError unless `bounds` are (least, greatest), in (0, greatest]."""
    where = "above 0" if greatest == float("inf") else f"in (0, {greatest:g}]"
    require(
        len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= greatest,
        f"{name} must be (least, greatest), both {where}",
    )
