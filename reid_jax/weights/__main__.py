"""Converts weights: a file to an Orbax folder, or our parameters to PyTorch's names.

python -m reid_jax.weights --from=jx_vit_base_p16_224-80ecf9dd.pth --to=weights/vit_base
python -m reid_jax.weights --from=runs/baseline-market1501 --to=vit.safetensors
python -m reid_jax.weights --from=osnet_x1_0.pth --as=torchreid-osnet --to=runs/osnet
python -m reid_jax.weights --from=runs/pretrain-vit --ship=vit

A folder holds {"params": {"backbone": ...}, "batch_stats": ...} and is what
--config.pretrained takes. A file ending in .safetensors gets the backbone under the
names of timm, torchvision, IBN-Net or HRNet, to be read by PyTorch.

With --as, the file is a trained re-ID network of another library, and the folder a run
that --mode=evaluate and --mode=export take, and --config.pretrained. With --as=shipped
it is one that this library brings, as --from=shipped/vit.

With --ship, a run goes into the library's own folder, in half
precision and with a card; --config.pretrained and reid_jax.load take shipped/NAME then.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from reid_jax import errors
from reid_jax.errors import UserError
from reid_jax.runtime import processes
from reid_jax.weights import fetch, files, folders, load, mapping, peers, runs, shipping


def convert(source: str, target: str) -> str:
    """Converts weights, and says what was done.

    Args:
      source: a path that `files.read` knows, or a known name.
      target: a folder to be made, or a file ending in `.safetensors`.

    Raises:
      UserError: a source that cannot be read or holds no known architecture, or a
        target that exists.
    """
    path = _target(target)
    file = files.read(fetch.locate(source))
    mapped = mapping.to_ours(file)
    architecture = mapping.describe(mapped.arrays)
    if architecture is None:
        raise UserError(
            f"{file.path} holds the weights of no known architecture (ViT, ResNet, "
            f"HRNet, OSNet); its names start with: {', '.join(list(file.arrays)[:4])}"
        )
    grid = load.known_grid(file, mapped)
    arrays = {name: _float32(array) for name, array in mapped.arrays.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            arrays = mapping.to_pytorch(arrays)
            files.write_safetensors(path, arrays, grid)
        else:
            folders.write(path, _nest(arrays), grid)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    numbers = sum(array.size for array in arrays.values())
    skipped = f", {len(mapped.skipped)} arrays left out" if mapped.skipped else ""
    return (
        f"{file.path}: {architecture}\n"
        f"wrote {path}: {len(arrays)} arrays, {numbers:,} numbers{skipped}\n"
        f"use it with --config.pretrained={path}"
    )


def _target(text: str) -> pathlib.Path:
    """A path that can be written and is not there."""
    if "://" in text:
        raise UserError(
            f"--to={text}: weights are written to a disk; name a folder there, and "
            "copy it to the bucket"
        )
    try:
        path = pathlib.Path(text).expanduser()
        exists = bool(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        exists = False
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, no user
        raise UserError(f"--to={text!r}: {error}") from error
    if exists:
        raise UserError(f"{path} exists; remove it or choose another --to")
    if path.suffix in (".pth", ".pt", ".tar", ".npz", ".bin"):
        raise UserError(
            f"--to={path}: {path.suffix} cannot be written; name a folder, or a file "
            "ending in .safetensors"
        )
    return path


def _run_target(text: str) -> pathlib.Path:
    """The same for the folder of a run."""
    path = _target(text)
    if path.suffix == ".safetensors":
        raise UserError(
            f"--to={path}: with --as a run's folder is written; name a folder"
        )
    return path


def _float32(array: np.ndarray) -> np.ndarray:
    """Our parameters' type."""
    return np.asarray(array, np.float32, order="C")


def _nest(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Nested dictionaries from paths.

    Raises:
      UserError: for an array whose path goes through another's.
    """
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        node = tree
        for above in pathlib.PurePosixPath(path).parents:
            if str(above) in arrays:
                raise UserError(f"{above} is an array, and so is {path} within it")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    return tree


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reid_jax.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        help=f"file, folder, or known name: {', '.join(fetch.KNOWN)}",
    )
    kinds = "\n".join(f"  {name}: {kind.about}" for name, kind in peers.KINDS.items())
    parser.add_argument(
        "--as", dest="kind", metavar="KIND", help="of a trained network, see below"
    )
    own = "  shipped: what the library brings, --from=shipped/NAME"
    parser.epilog = f"kinds of trained networks:\n{kinds}\n{own}"
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", help="new folder, or FILE.safetensors")
    where.add_argument("--ship", metavar="NAME", help="for the library to bring")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Converts or ships weights, and says what was done.

    Raises:
      UserError: for a mistake in the arguments or in the files.
      KeyboardInterrupt: after Ctrl-C, with what to say.
    """
    args = _parser().parse_args(argv)
    try:
        processes.check_devices()
        if args.ship and args.kind:
            raise UserError("--ship takes a run of this library: leave out --as")
        if args.ship:
            print(shipping.ship(args.source, args.ship))
        elif args.kind == "shipped":
            print(shipping.as_run(args.source, _run_target(args.to)))
        elif args.kind:
            print(runs.convert(args.source, args.kind, _run_target(args.to)))
        else:
            print(convert(args.source, args.to))
    except KeyboardInterrupt:
        told = "interrupted; a download goes on where it stopped."
        raise KeyboardInterrupt(told) from None


if __name__ == "__main__":
    with errors.answered():
        main()
