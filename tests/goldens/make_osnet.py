"""Makes the golden vectors of OSNet with torchreid; the tests need neither.

In a virtual environment of its own:

    pip install torch torchvision scipy h5py tensorboard opencv-python-headless gdown
    pip install --no-deps torchreid==0.2.5
    python tests/goldens/make_osnet.py

The networks have torchreid's smallest width, a shorter feature, and images of 64 x 32;
they run in float64.
"""

import pathlib

import filling
import numpy as np
import torch
from torch import nn
from torchreid.reid.models import osnet, osnet_ain

HERE = pathlib.Path(__file__).parent
SMALL = {"num_classes": 3, "channels": [16, 64, 96, 128], "feature_dim": 32}
IN_IN, PLAIN = osnet_ain.OSBlockINin, osnet_ain.OSBlock


def networks():
    """The three architectures, by golden name."""
    common = {"blocks": [osnet.OSBlock] * 3, "layers": [2, 2, 2]}
    yield "osnet", osnet.OSNet(**SMALL, **common)
    yield "osnet_ibn", osnet.OSNet(**SMALL, **common, IN=True)
    layout = [[IN_IN, IN_IN], [PLAIN, IN_IN], [IN_IN, PLAIN]]
    yield (
        "osnet_ain",
        osnet_ain.OSNet(**SMALL, blocks=layout, layers=[2, 2, 2], conv1_IN=True),
    )


class Featured(nn.Module):
    """osnet_x1_0, which gives its feature in training, too; for speed side by side."""

    def __init__(self):
        super().__init__()
        self.net = osnet.osnet_x1_0(num_classes=3, pretrained=False, loss="triplet")

    def forward(self, images):
        """The feature [B, 512], by name."""
        found = self.net(images)
        return {"feature": found[1] if self.training else found}


def fill(module):
    """Gives every tensor of the state dict the values of its name."""
    state = module.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            state[name] = torch.from_numpy(filling.tensor(name, tuple(value.shape)))
    module.load_state_dict(state)
    module.double()


def outputs(model, images):
    """The last map, channels last, and the feature, of channels-last `images`."""
    kept = []
    hook = model.global_avgpool.register_forward_hook(
        lambda module, inputs, output: kept.append(inputs[0])
    )
    model.loss = "triplet"  # returns the feature in training, too
    with torch.no_grad():
        found = model(torch.from_numpy(images).double().permute(0, 3, 1, 2))
    hook.remove()
    feature = found[1] if model.training else found
    maps = {"conv5": kept[0].permute(0, 2, 3, 1), "feature": feature}
    return {name: value.float().numpy() for name, value in maps.items()}


def both_modes(model, images):
    """Two images in evaluation; a training step with all; the statistics after it."""
    fill(model)
    found = {f"eval/{k}": v for k, v in outputs(model.eval(), images[:2]).items()}
    trained = outputs(model.train(), images)
    found |= {"train/conv5": trained["conv5"][:2], "train/feature": trained["feature"]}
    for name, value in model.state_dict().items():
        if "running" in name:
            found[f"after/{name}"] = value.float().numpy()
    return found


def main():
    """Writes one file per network."""
    for name, model in networks():
        found = both_modes(model, filling.images(64, 32, 16))
        np.savez_compressed(HERE / f"{name}.npz", **found)
        print(name, (HERE / f"{name}.npz").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
