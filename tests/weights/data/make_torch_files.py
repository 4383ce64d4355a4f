"""Writes the files of this folder with PyTorch itself.

    python tests/weights/data/make_torch_files.py    # torch 2.13.0

Values are counted up, so that the tests know them without another file.
"""

import argparse
import pathlib

import numpy
import torch

FOLDER = pathlib.Path(__file__).parent


def counted(*shape: int, start: int = 0, dtype: torch.dtype = torch.float32):
    count = torch.Size(shape).numel()
    return (
        torch.arange(start, start + count, dtype=torch.float32).reshape(shape).to(dtype)
    )


def plain() -> dict[str, object]:
    """A state dict as a module gives it: ordered, with metadata."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
    for index, tensor in enumerate(module.state_dict().values()):
        tensor.copy_(counted(*tensor.shape, start=100 * index))
    return module.state_dict()


def strange() -> dict[str, object]:
    """What else checkpoints have: views, other types, wrapping, an optimizer."""
    whole = counted(4, 6)
    parameter = torch.nn.Parameter(counted(3, start=7))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimizer.step()
    parameter.data = counted(3, start=7)
    return {
        "epoch": 3,
        "arch": "net",
        "best": torch.tensor(0.5),
        "optimizer": optimizer.state_dict(),
        "state_dict": {
            "module.whole": whole,
            "module.transposed": whole.T,
            "module.slice": whole[1:3, ::2],
            "module.half": counted(5, dtype=torch.float16),
            "module.brain": counted(5, dtype=torch.bfloat16),
            "module.double": counted(5, dtype=torch.float64),
            "module.long": torch.arange(3),
            "module.flags": torch.tensor([True, False]),
            "module.scalar": torch.tensor(4.0),
            "module.empty": torch.zeros(0, 3),
            "module.parameter": parameter,
        },
    }


def beside() -> dict[str, object]:
    """As torchreid's and DINO's trainings save them."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 3))
    for tensor in module.state_dict().values():
        tensor.copy_(counted(*tensor.shape))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[20, 40])
    return {
        "state_dict": module.state_dict(),
        "epoch": 60,
        "rank1": numpy.float64(0.9),
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "args": argparse.Namespace(arch="net", lr=0.1),
    }


FILES = {"plain": plain, "strange": strange, "beside": beside}

if __name__ == "__main__":
    torch.manual_seed(0)
    for name, make in FILES.items():
        content = make()
        torch.save(content, FOLDER / f"{name}_zip.pth")
        torch.save(
            content, FOLDER / f"{name}_legacy.pth", _use_new_zipfile_serialization=False
        )
