r"""Shows what a prepared data set holds, and what looks wrong in it.

    python -m data_pipelines.inspect market1501 --data_dir=data --out=market1501.png

Prints counts, identities per camera, images per identity, sizes, the share of images
with part labels, and suspicious entries; writes a contact sheet with a few identities
of each split, their part labels drawn over the images. Every image is decoded once.
Suspicious entries do not change the exit code: they are for a person to judge.
"""

import argparse
import sys
from collections.abc import Sequence

from data_pipelines.inspection.figures import report
from data_pipelines.inspection.reading import inspect
from data_pipelines.inspection.sheet import contact_sheet
from reid_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", help="name or name/config of a prepared data set")
    parser.add_argument("--data_dir", default="data", help="default: %(default)s")
    parser.add_argument("--out", help="contact sheet; default: <dataset>.png")
    given = parser.parse_args(argv)
    out = given.out or f"{given.dataset.replace('/', '-')}.png"
    try:
        found = inspect(given.dataset, given.data_dir)
        print(report(found))
        contact_sheet(found, out)
    except UserError as error:
        print(f"inspect: {error}", file=sys.stderr)
        return 2
    print(f"Contact sheet: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
