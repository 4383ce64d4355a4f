r"""Shows what a prepared data set holds, and what looks wrong in it.

    python -m data_pipelines.inspect market1501 --data_dir=data

Prints counts, identities per camera, images per identity, sizes, the share of images
with part labels, and suspicious entries; writes a contact sheet with a few identities
of each split, their part labels drawn over the images, beside the data set. Every
image is decoded once. Suspicious entries do not change the exit code: they are for a
person to judge.
"""

import argparse
import pathlib
from collections.abc import Sequence

from data_pipelines.inspection.figures import report
from data_pipelines.inspection.reading import inspect
from data_pipelines.inspection.sheet import contact_sheet
from reid_jax import errors, storage
from reid_jax.errors import UserError


def _out(given: argparse.Namespace) -> str | pathlib.Path:
    """Where the contact sheet is written: what `--out` says, or beside the data set."""
    if given.out and not given.out.lower().endswith(".png"):
        raise UserError(f"--out={given.out}: name a file ending in .png")
    return given.out or _beside(given.dataset, given.data_dir)


def _beside(dataset: str, data_dir: str) -> pathlib.Path:
    """A place in the folder of the data sets, which is not in a bucket."""
    if storage.in_bucket(data_dir):
        raise UserError(
            "Name the contact sheet, since the data set is in a bucket: --out"
        )
    return storage.expanded(data_dir) / f"{dataset.replace('/', '-')}.png"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints what a data set holds, and writes the contact sheet.

    Raises:
      UserError: if it is not prepared, or damaged, or the sheet cannot be written.
      KeyboardInterrupt: after Ctrl-C, with what to say.
    """
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", help="name or name/config of a prepared data set")
    parser.add_argument("--data_dir", default="data", help="default: %(default)s")
    parser.add_argument(
        "--out", help="contact sheet, PNG; default: beside the data set"
    )
    given = parser.parse_args(argv)
    try:
        out = _out(given)
        found = inspect(given.dataset, given.data_dir)
        print(report(found))
        contact_sheet(found, out)
    except KeyboardInterrupt:
        told = "interrupted; no contact sheet was written."
        raise KeyboardInterrupt(told) from None
    print(f"Contact sheet: {out}")


if __name__ == "__main__":
    with errors.answered():
        main()
