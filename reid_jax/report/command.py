"""`reid-jax report RUN ...`: one HTML file for a run, or for several side by side."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from reid_jax import storage


def main(argv: Sequence[str]) -> None:
    """Writes a report.

    Raises:
      UserError: if a folder is no run, or damaged, or nothing can be written.
    """
    parser = argparse.ArgumentParser(prog="reid-jax report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--output",
        help="HTML file; default report.html in the run's folder, of several runs in "
        "this folder",
    )
    given = parser.parse_args(argv)
    # It takes a second, and --help is to be answered at once.
    from reid_jax.report import report

    folder = given.runs[0] if len(given.runs) == 1 else os.curdir
    output = given.output or storage.absolute(folder) / report.NAME
    with storage.written(storage.absolute(output).parent):
        missing = report.write(given.runs, output)
    for absent in missing:
        print(f"note: {absent}")
    print(f"wrote {output}")
