"""Makes the golden vectors with torchvision and timm; the tests need neither.

In a virtual environment of its own:

    pip install torch==2.13.0 numpy pyyaml safetensors tqdm packaging
    pip install --no-deps torchvision==0.28.0 timm==1.0.31 huggingface_hub pillow
    python tests/goldens/make_goldens.py

With `--full FILE` it writes the outputs of the networks at full size instead, for
`python -m tests.goldens.compare_full_size FILE`.
"""

import argparse
import pathlib

import filling
import numpy as np
import torch
from torch import nn
from torch.nn import functional

# torchvision's wheel expects its compiled operators, which CPU builds of PyTorch
# lack; declaring them is enough for the networks, which use none.
_OPERATORS = torch.library.Library("torchvision", "DEF")
for _operator in ("nms", "qnms"):
    _OPERATORS.define(f"{_operator}(Tensor dets, Tensor scores, float t) -> Tensor")

import timm.models.hrnet  # noqa: E402
import timm.models.vision_transformer  # noqa: E402
import torchvision.models.resnet  # noqa: E402

HERE = pathlib.Path(__file__).parent


class ResNet(torchvision.models.resnet.ResNet):
    """torchvision's blocks at any width and with either last stride."""

    def __init__(self, blocks, width, last_stride):
        """Builds what torchvision's constructor builds, with its own methods."""
        nn.Module.__init__(self)
        self._norm_layer = nn.BatchNorm2d
        self.inplanes, self.dilation, self.groups, self.base_width = width, 1, 1, 64
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        strides = (1, 2, 2, last_stride)
        for index, (count, stride) in enumerate(zip(blocks, strides, strict=True)):
            bottleneck = torchvision.models.resnet.Bottleneck
            layer = self._make_layer(bottleneck, width * 2**index, count, stride)
            setattr(self, f"layer{index + 1}", layer)

    def forward(self, x):
        """The maps that `reid_jax.backbones.resnet.ResNet` returns, by their names."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = {"stem": x}
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
            maps[f"layer{index}"] = x
        return maps


class IBN(nn.Module):
    """IBN-Net's layer: instance normalisation for the first half of the channels."""

    def __init__(self, channels):
        super().__init__()
        self.half = channels // 2
        self.IN = nn.InstanceNorm2d(self.half, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.half)

    def forward(self, x):
        """Normalises [B, C, H, W]."""
        first, second = x[:, : self.half].contiguous(), x[:, self.half :].contiguous()
        return torch.cat([self.IN(first), self.BN(second)], dim=1)


def resnet(blocks, width, last_stride, ibn):
    """A torchvision ResNet, or IBN-Net's variant a of it."""
    model = ResNet(blocks, width, last_stride)
    if ibn:
        for layer in (model.layer1, model.layer2, model.layer3):
            for block in layer:
                block.bn1 = IBN(block.bn1.num_features)
    return model


class HRNet(nn.Module):
    """timm's HRNet, whose head has one width only, with `incre_modules` of any."""

    def __init__(self, width, modules, blocks, incre):
        super().__init__()
        stages = {"stem_width": 64, "stage1": _stage(1, 1, blocks, 64, "BOTTLENECK")}
        for index, count in enumerate(modules, start=2):
            stages[f"stage{index}"] = _stage(count, index, blocks, width, "BASIC")
        self.net = timm.models.hrnet.HighResolutionNet(stages, head="")
        bottleneck = timm.models.hrnet.Bottleneck
        self.net.incre_modules = nn.ModuleList(
            self.net._make_layer(bottleneck, width * 2**index, incre * 2**index, 1)
            for index in range(4)
        )

    def forward(self, x):
        """The maps that `reid_jax.backbones.hrnet.HRNet` returns, numbered."""
        net = self.net
        x = net.act1(net.bn1(net.conv1(x)))
        x = net.act2(net.bn2(net.conv2(x)))
        streams = net.stages(x)
        maps = {f"streams{index}": stream for index, stream in enumerate(streams)}
        for index, (module, stream) in enumerate(
            zip(net.incre_modules, streams, strict=True)
        ):
            maps[f"incre{index}"] = module(stream)
        return maps


def _stage(modules, branches, blocks, width, kind):
    return {
        "num_modules": modules,
        "num_branches": branches,
        "block_type": kind,
        "num_blocks": (blocks,) * branches,
        "num_channels": tuple(width * 2**index for index in range(branches)),
        "fuse_method": "SUM",
    }


class ViT(nn.Module):
    """timm's ViT with TransReID's overlapping patches and resized positions."""

    def __init__(self, image_size, stride, old_grid, **sizes):
        super().__init__()
        grid = tuple((side - 16) // stride + 1 for side in image_size)
        self.net = timm.models.vision_transformer.VisionTransformer(
            img_size=tuple(16 * side for side in grid), num_classes=0, **sizes
        )
        self.net.patch_embed.proj.stride = (stride, stride)
        self.net.patch_embed.strict_img_size = False
        self.old_grid, self.grid = old_grid, grid

    def load(self):
        """Fills the network; the stored positions are for another grid."""
        fill(self.net, except_for=("pos_embed",))
        rows, columns = self.old_grid
        width = self.net.embed_dim
        stored = filling.tensor("pos_embed", (1, 1 + rows * columns, width))
        stored = torch.from_numpy(stored)
        places = stored[:, 1:].reshape(1, rows, columns, width).permute(0, 3, 1, 2)
        places = functional.interpolate(
            places, size=self.grid, mode="bilinear", align_corners=False
        )
        places = places.permute(0, 2, 3, 1).reshape(1, -1, width)
        with torch.no_grad():
            self.net.pos_embed.copy_(torch.cat([stored[:, :1], places], dim=1))

    def forward(self, x):
        """Tokens after every block, and after the final norm."""
        maps = {}
        x = self.net._pos_embed(self.net.patch_embed(x))
        for index, block in enumerate(self.net.blocks):
            x = maps[f"block{index}"] = block(x)
        maps["norm"] = self.net.norm(x)
        return maps


def fill(module, except_for=()):
    """Gives every tensor of the state dict the values of its name."""
    state = module.state_dict()
    for name, value in state.items():
        if name.endswith("num_batches_tracked") or name in except_for:
            continue
        state[name] = torch.from_numpy(filling.tensor(name, tuple(value.shape)))
    module.load_state_dict(state)


def outputs(model, images):
    """The maps of channels-last `images`, channels last."""
    with torch.no_grad():
        maps = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    return {
        name: (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).numpy()
        for name, value in maps.items()
    }


def both_modes(model, images, keep):
    """Maps of two images in evaluation; then of one training step with all images
    those named by `keep`, and the running statistics after it."""
    first = outputs(model.eval(), images[:2])
    found = {f"eval/{k}": v for k, v in first.items()}
    trained = outputs(model.train(), images)
    found |= {f"train/{k}": v for k, v in trained.items() if k.startswith(keep)}
    for name, value in model.state_dict().items():
        if "running" in name:
            found[f"after/{name.removeprefix('net.')}"] = value.numpy()
    return found


def small():
    """The networks of the tests: the same topology at a small size."""
    images = filling.images(40, 24)
    for name, ibn in (("resnet", False), ("resnet_ibn_a", True)):
        model = resnet((2, 1, 1, 2), 4, 1, ibn)
        fill(model)
        yield name, both_modes(model, images, "layer4")
    model = resnet((1, 1, 1, 1), 4, 2, False)
    fill(model)
    yield "resnet_stride2", {"layer4": outputs(model.eval(), images)["layer4"]}
    model = HRNet(4, (1, 2, 1), 1, 2)
    fill(model.net)
    yield "hrnet", both_modes(model, filling.images(64, 32, 6), "incre")
    model = ViT((64, 32), 12, (6, 6), embed_dim=24, depth=3, num_heads=3)
    model.load()
    yield "vit", outputs(model.eval(), filling.images(64, 32))


def full():
    """The networks at full size, in evaluation: 256 x 128 pixels, one image."""
    images = filling.images(256, 128, 1)
    for name, stride, ibn in (
        ("resnet50", 1, False),
        ("resnet50_stride2", 2, False),
        ("resnet50_ibn_a", 1, True),
    ):
        model = resnet((3, 4, 6, 3), 64, stride, ibn)
        fill(model)
        yield name, outputs(model.eval(), images)
    model = HRNet(32, (1, 4, 3), 4, 32)
    fill(model.net)
    yield "hrnet_w32", outputs(model.eval(), images)
    model = ViT((256, 128), 12, (14, 14), embed_dim=768, depth=12, num_heads=12)
    model.load()
    yield "vit_base_stride12", outputs(model.eval(), images)


def main():
    """Writes one file per small network, or one for all full-size networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", metavar="FILE")
    path = parser.parse_args().full
    torch.manual_seed(0)
    if path:
        maps = {f"{name}/{k}": v for name, found in full() for k, v in found.items()}
        np.savez(path, **maps)
        return
    for name, found in small():
        np.savez_compressed(HERE / f"{name}.npz", **found)
        print(name, (HERE / f"{name}.npz").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
