"""State dicts under the names of other libraries, small and random."""

import numpy as np


def timm_vit(
    *, width: int = 24, depth: int = 2, patch: int = 8, tokens: int = 17, seed: int = 0
) -> dict[str, np.ndarray]:
    """timm's ViT: names and shapes as in its published files."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for index in range(depth):
        block = f"blocks.{index}"
        for norm in ("norm1", "norm2"):
            shapes[f"{block}.{norm}.weight"] = shapes[f"{block}.{norm}.bias"] = (width,)
        for name, out, into in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"{block}.{name}.weight"] = (out, into)
            shapes[f"{block}.{name}.bias"] = (out,)
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"head.weight": (10, width), "head.bias": (10,)}
    return fill(shapes, seed)


def fill(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 arrays; variances are positive."""
    rng = np.random.default_rng(seed)
    state = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return {n: abs(a) if n.endswith("running_var") else a for n, a in state.items()}
