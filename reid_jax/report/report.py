"""The report: everything that runs have left, as one HTML file that loads nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.report import curves, html, origins, protocols
from reid_jax.report.html import Html, element
from reid_jax.report.runs import Run, names

NAME = "report.html"
"""In a run's folder."""


def write(paths: Sequence[str], output: str | os.PathLike[str]) -> list[str]:
    """Writes the report of one run, or of several side by side.

    Args:
      paths: folders of runs, also in a bucket; differences are to the first one.
      output: the HTML file; replaced as a whole.

    Returns:
      what the runs lack, which the report says too.

    Raises:
      UserError: if one is no run or is named twice, one of its files is damaged, or
        the output is a folder.
    """
    file = storage.absolute(output)
    if file.is_dir():
        raise UserError(f"{output} is a folder; name an HTML file in it")
    runs = [Run.read(*given) for given in zip(paths, names(paths), strict=True)]
    # A file's name may hold bytes that are no text.
    content = page(runs).encode(errors="replace")
    storage.check_writable(file.parent)
    storage.write_bytes(file, content)
    return [f"{run.name}: {absent}" for run in runs for absent in run.missing]


def page(runs: Sequence[Run]) -> str:
    """The file's content."""
    return html.page(
        " · ".join(run.name for run in runs),
        *(_missing(run) for run in runs if run.missing),
        protocols.results(runs),
        curves.curves(runs),
        protocols.details(runs),
        origins.configs(runs),
        origins.versions(runs),
    )


def _missing(run: Run) -> Html:
    listed = element("ul", *(element("li", absent) for absent in run.missing))
    return element("div", f"{run.name} lacks:", listed, class_="missing")
