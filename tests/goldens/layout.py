"""Our variables filled with the values that the golden vectors were made with."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from tests.goldens import filling

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean"}
LEAVES |= {"var": "running_var"}
"""PyTorch's names of what Flax calls otherwise."""


def torch_name(path):
    """`layer1_0/downsample_1/scale` is `layer1.0.downsample.1.weight`."""
    *modules, leaf = path
    name = ".".join([*modules, LEAVES.get(leaf, leaf)])
    return re.sub(r"_(?=\d)", ".", name)


def variables(module, image_shape):
    """Variables of `module` for images [H, W], with values by PyTorch's names."""
    images = jax.ShapeDtypeStruct((1, *image_shape, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda images: module.init(jax.random.key(0), images, train=False), images
    )

    def fill(path, leaf):
        name = torch_name([key.key for key in path[1:]])
        if path[-1].key != "kernel":
            return filling.tensor(name, leaf.shape)
        # Channels last and input before output, to the opposite of both.
        order = (3, 2, 0, 1) if leaf.ndim == 4 else (1, 0)
        values = filling.tensor(name, tuple(leaf.shape[axis] for axis in order))
        return np.transpose(values, np.argsort(order))

    return jax.tree_util.tree_map_with_path(fill, shapes)


def running_statistics(batch_stats):
    """The collection by PyTorch's names."""
    leaves = jax.tree_util.tree_leaves_with_path(batch_stats)
    return {torch_name([key.key for key in path]): leaf for path, leaf in leaves}


def assert_equal(found, expected, tolerance=2e-5):
    """Fails where a difference exceeds `tolerance` times the largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert relative(found, expected) < tolerance


def relative(found, expected):
    """The largest difference, as a fraction of the largest expected value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def flat(maps):
    """A network's maps with numbers after the names of tuples: `incre0`, `incre1`."""
    found = {}
    for name, value in maps.items():
        if isinstance(value, tuple):
            found |= {f"{name}{index}": item for index, item in enumerate(value)}
        else:
            found[name] = value
    return found


def vit_maps(model, variables, images):
    """Tokens of a ViT after every block and after the final norm, by golden name."""

    def apply(variables, images):
        _, state = model.apply(
            variables,
            images,
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: re.fullmatch(
                r"norm|blocks_\d+", "/".join(module.path)
            ),
        )
        return state["intermediates"]

    kept = jax.jit(apply)(variables, images)
    maps = {"norm": kept["norm"]["__call__"][0]}
    for index in range(model.depth):
        maps[f"block{index}"] = kept[f"blocks_{index}"]["__call__"][0][0]
    return maps


def golden(name):
    """The arrays of one golden file by name."""
    with np.load(pathlib.Path(__file__).parent / f"{name}.npz") as file:
        return dict(file)
