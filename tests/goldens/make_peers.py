"""Makes golden embeddings with the peers' own networks and random weights.

In a virtual environment of its own, beside clones of three repositories:

    pip install torch torchvision scipy h5py tensorboard opencv-python-headless gdown
    pip install yacs scikit-learn termcolor tabulate faiss-cpu
    pip install --no-deps torchreid==0.2.5
    git clone https://github.com/damo-cv/TransReID                      # dec5504
    git clone https://github.com/michuanhaohao/reid-strong-baseline     # 3da7e6f
    git clone https://github.com/JDAI-CV/fast-reid                      # c9bc3ce
    python tests/goldens/make_peers.py --clones=.

writes `peers.npz`, of small networks. With `--full FOLDER` it writes the networks at
full size as the peers save them, and their embeddings, for
`python -m tests.goldens.compare_peers FOLDER`.
"""

import argparse
import collections.abc
import importlib
import json
import pathlib
import sys
import types

import filling
import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import nn

HERE = pathlib.Path(__file__).parent
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLASSES, CAMERAS = 5, 6


def torchreid_networks(small):
    """OSNet and ResNet-50, by kind."""
    from torchreid.reid.models import osnet, osnet_ain, resnet

    common = {"num_classes": CLASSES, "pretrained": False}
    if small:
        yield (
            "torchreid-osnet",
            osnet.OSNet(
                CLASSES,
                blocks=[osnet.OSBlock] * 3,
                layers=[2, 2, 2],
                channels=[16, 64, 96, 128],
                feature_dim=32,
            ),
        )
    else:
        for name in ("x1_0", "x0_75", "x0_5", "x0_25", "ibn_x1_0"):
            yield "torchreid-osnet", getattr(osnet, f"osnet_{name}")(**common)
        yield "torchreid-osnet_ain", osnet_ain.osnet_ain_x1_0(**common)
        yield "torchreid-resnet50", resnet.resnet50(**common)
    yield (
        "torchreid-resnet50_fc512",
        resnet.ResNet(
            CLASSES,
            "softmax",
            resnet.Bottleneck,
            [1, 1, 1, 1] if small else [3, 4, 6, 3],
            last_stride=1,
            fc_dims=[512],
        ),
    )


def transreid_networks(small):
    """TransReID with both modules, and at full size its baseline and stride 12."""
    # What it imports of PyTorch is no more.
    six = types.ModuleType("torch._six")
    six.container_abcs = collections.abc
    sys.modules["torch._six"] = six
    from model.backbones import vit_pytorch

    make_model = importlib.import_module("model.make_model")

    def network(stride, jpm, cameras, height=256):
        cfg = types.SimpleNamespace(
            MODEL=types.SimpleNamespace(
                **{"PRETRAIN_PATH": "", "PRETRAIN_CHOICE": "none", "COS_LAYER": False},
                **{"NECK": "bnneck", "SIE_CAMERA": cameras > 0, "SIE_VIEW": False},
                **{"TRANSFORMER_TYPE": "vit", "SIE_COE": 3.0, "JPM": jpm},
                **{"NAME": "transformer", "STRIDE_SIZE": [stride, stride]},
                **{"DROP_PATH": 0.1, "DROP_OUT": 0.0},
                **{"ATT_DROP_RATE": 0.0, "ID_LOSS_TYPE": "softmax", "LAST_STRIDE": 1},
                **{"SHUFFLE_GROUP": 2, "SHIFT_NUM": 5, "DEVIDE_LENGTH": 4},
            ),
            TEST=types.SimpleNamespace(NECK_FEAT="before"),
            INPUT=types.SimpleNamespace(SIZE_TRAIN=[height, 128]),
        )
        factory = {"vit": tiny if small else vit_pytorch.vit_base_patch16_224_TransReID}
        arguments = (CLASSES, cameras, 0, cfg, factory)
        if jpm:
            model = make_model.build_transformer_local(*arguments, rearrange=True)
        else:
            model = make_model.build_transformer(*arguments)
        return narrowed(model) if small else model

    def tiny(**kwargs):
        sizes = {"embed_dim": 64, "depth": 2, "num_heads": 1, "qkv_bias": True}
        norm = vit_pytorch.partial(nn.LayerNorm, eps=1e-6)
        return vit_pytorch.TransReID(**kwargs, **sizes, norm_layer=norm)

    def narrowed(model):
        """Its necks and classifiers are 768 wide whatever the network is."""
        for name, _ in list(model.named_children()):
            if name.startswith("bottleneck"):
                setattr(model, name, nn.BatchNorm1d(64))
            elif name.startswith("classifier"):
                setattr(model, name, nn.Linear(64, CLASSES, bias=False))
        return model

    yield "transreid", network(16, jpm=True, cameras=CAMERAS)
    if not small:
        yield "transreid", network(16, jpm=False, cameras=0)
        yield "transreid", network(12, jpm=True, cameras=CAMERAS, height=384)


def bot_networks(small):
    """reid-strong-baseline's ResNet-50, with and without IBN-a."""
    from modeling import baseline
    from modeling.backbones import resnet

    arguments = (CLASSES, 1, "", "bnneck", "after")
    model = baseline.Baseline(*arguments, "resnet50", "none")
    if small:
        model.base = resnet.ResNet(1, resnet.Bottleneck, [1, 1, 1, 1])
    else:
        yield "bot", baseline.Baseline(*arguments, "resnet50_ibn_a", "none")
    yield "bot", model


def fastreid_networks(small):
    """BoT, AGW and SBS on ResNet-50, the last with IBN."""
    from fastreid.modeling.backbones import resnet
    from fastreid.modeling.heads.embedding_head import EmbeddingHead

    def network(pool, ibn, non_local):
        blocks, extra = [3, 4, 6, 3], [0, 2, 3, 0]
        if small:
            blocks, extra = [1, 2, 2, 1], [0, 1, 2, 0]
        model = nn.Module()
        model.backbone = resnet.ResNet(
            1, "BN", ibn, False, non_local, resnet.Bottleneck, blocks, extra
        )
        model.heads = EmbeddingHead(
            **{"feat_dim": 2048, "embedding_dim": 0, "num_classes": CLASSES},
            **{"neck_feat": "after", "pool_type": pool, "cls_type": "Linear"},
            **{"scale": 1, "margin": 0, "with_bnneck": True, "norm_type": "BN"},
        )
        model.forward = lambda images: model.heads(model.backbone(images))
        return model

    if not small:
        yield "fastreid-bot", network("GlobalAvgPool", ibn=False, non_local=False)
        yield "fastreid-agw", network("GeneralizedMeanPooling", False, True)
    yield "fastreid-sbs", network("GeneralizedMeanPoolingP", ibn=True, non_local=True)


BILINEAR, BICUBIC = T.InterpolationMode.BILINEAR, T.InterpolationMode.BICUBIC
PEERS = {
    torchreid_networks: (IMAGENET, BILINEAR, (256, 128)),
    transreid_networks: (HALF, BILINEAR, None),
    bot_networks: (IMAGENET, BILINEAR, (256, 128)),
    fastreid_networks: (IMAGENET, BICUBIC, (256, 128)),
}
"""Networks -> mean and deviation, resampling, image size (None: the network's)."""


def fill(model):
    """Gives every tensor the values of its name."""
    state = model.state_dict()
    for name, value in state.items():
        filled = filling.peers_tensor(name, tuple(value.shape))
        state[name] = torch.from_numpy(filled)
    model.load_state_dict(state)


def embedded(kind, model, pictures, statistics, resampling, size):
    """The peer's test feature of pictures, float32 [B, D]."""
    transform = T.Compose(
        [
            T.Resize(size, interpolation=resampling),
            T.ToTensor(),
            T.Normalize(*statistics),
        ]
    )
    batch = torch.stack([transform(Image.fromarray(one)) for one in pictures])
    cameras = torch.arange(len(pictures)) % CAMERAS
    given = {"cam_label": cameras} if kind == "transreid" else {}
    with torch.no_grad():
        return model.eval()(batch, **given).numpy()


def main():
    """Writes goldens of small networks, or files and embeddings of full ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clones", required=True, type=pathlib.Path)
    parser.add_argument("--full", metavar="FOLDER", type=pathlib.Path)
    parser.add_argument("--only", default="", help="kinds that begin with it")
    args = parser.parse_args()
    for name in ("TransReID", "reid-strong-baseline", "fast-reid"):
        sys.path.append(str(args.clones / name))
    kept = {}
    for networks, (statistics, resampling, size) in PEERS.items():
        if not f"{networks.__name__}".startswith(args.only):
            continue
        for index, (kind, model) in enumerate(networks(small=not args.full)):
            fill(model)
            where = size or tuple(model.base.patch_embed.img_size)
            if kind == "fastreid-sbs":
                where = (384, 128)
            if not args.full and kind != "transreid":
                where = (64, 32)
            found = embedded(
                kind, model, filling.pictures(), statistics, resampling, where
            )
            state = model.state_dict()
            if args.full:
                args.full.mkdir(exist_ok=True, parents=True)
                torch.save({"state_dict": state}, args.full / f"{kind}-{index}.pth.tar")
                np.save(args.full / f"{kind}-{index}.npy", found)
            else:
                shapes = {name: tuple(value.shape) for name, value in state.items()}
                kept[f"{kind}/shapes"] = json.dumps(shapes)
                kept[f"{kind}/embedding"] = found
            print(kind, index, where, found.shape, flush=True)
    if not args.full:
        np.savez_compressed(HERE / "peers.npz", **kept)


if __name__ == "__main__":
    main()
