"""Prints how far our networks are from the originals at full size.

`python -m tests.goldens.compare_full_size FILE`, with the file that
`make_goldens.py --full FILE` has written.
"""

import sys

import jax
import numpy as np

from reid_jax.backbones import patches, vit
from reid_jax.backbones.hrnet import HRNet
from reid_jax.backbones.resnet import ResNet
from tests.goldens import filling, layout

NETWORKS = {
    "resnet50": ResNet(),
    "resnet50_stride2": ResNet(last_stride=2),
    "resnet50_ibn_a": ResNet(ibn=True),
    "hrnet_w32": HRNet(),
}


def vit_outputs(images):
    """Tokens of ViT-B after every block and after the final norm."""
    model = vit.VisionTransformer((256, 128), stride=(12, 12), **vit.SIZES["base"])
    variables = layout.variables(model, (256, 128))
    position = filling.tensor("pos_embed", (1, 197, 768))
    position = patches.resize_position_embedding(position, (14, 14), (21, 10))
    variables["params"]["pos_embed"] = position
    return layout.vit_maps(model, variables, images)


def main():
    """One line per map: network, map and relative difference."""
    images = filling.images(256, 128, 1)
    with np.load(sys.argv[1]) as expected:
        for name, model in NETWORKS.items():
            variables = layout.variables(model, (256, 128))
            apply = jax.jit(lambda v, x, model=model: model.apply(v, x, train=False))
            compare(name, layout.flat(apply(variables, images)), expected)
        compare("vit_base_stride12", vit_outputs(images), expected)


def compare(name, maps, expected):
    """Prints the maps of one network."""
    for key, value in maps.items():
        difference = layout.relative(np.asarray(value), expected[f"{name}/{key}"])
        print(f"{name:18} {key:9} {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()
