"""What a run prints at its beginning and at its end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from clu import parameter_overview

from reid_jax.evaluation.results import STATES


def overview(name: str, params: Mapping[str, Any]) -> str:
    """Parameters of a network and of each of its modules, a line for each."""
    counts = {name: parameter_overview.count_parameters(params)} | {
        f"  {module}": parameter_overview.count_parameters({module: arrays})
        for module, arrays in params.items()
    }
    rows = [[module, f"{count:,}"] for module, count in counts.items()]
    return _table([["parameters", ""], *rows], left=1)


def summary(
    entries: Sequence[Mapping[str, Any]], workdir: str, *, pictured: bool = True
) -> str:
    """Figures of the last state and of the best, where all lies, what comes next.

    Args:
      entries: of `results.json`, as `Run.finish` returns them; the best checkpoint is
        the best by the first one's protocol.
      workdir: of the run.
      pictured: whether pictures were drawn.
    """
    best = entries[0]["best"]["step"]
    folder = shlex.quote(workdir)
    parameters = "; evaluated: moving averages" if "averaged" in entries[0] else ""
    places = [
        ["report", f"{workdir}/report.html"],
        ["results", f"{workdir}/results.json"],
        *([["pictures", f"{workdir}/pictures"]] if pictured else []),
        ["checkpoint", f"{workdir}/checkpoints/best/{best} (the best){parameters}"],
        ["evaluate", f"python -m reid_jax.main --mode=evaluate --workdir={folder}"],
        ["export", f"python -m reid_jax.main --mode=export --workdir={folder}"],
    ]
    return f"{_figures(entries)}\n\n{_table(places)}"


def _figures(entries: Sequence[Mapping[str, Any]]) -> str:
    """Protocol x metrics: the last state, and below it the best."""
    names = list(dict.fromkeys(name for e in entries for name in e["metrics"]))
    rows = [["protocol", "step", *names, "queries"]]
    for entry in entries:
        label = entry["protocol"]
        for step, metrics in _states(entry):
            figures = [f"{metrics[n]:.1%}" if n in metrics else "" for n in names]
            queries = str(entry["valid_queries"]) if label else ""
            rows.append([label, step, *figures, queries])
            label = ""
    return _table(rows)


def _states(entry: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """What an entry has figures of, by what it is called in the table."""
    states = [(f"{entry['step']} (last)", entry["metrics"])]
    for name, what in STATES.items():
        if before := entry.get(f"metrics_{name}"):
            states.append((what, before))
    if best := entry.get("best"):
        states.append((f"{best['step']} (best)", best["metrics"]))
    else:
        states.append(("best: not evaluated", {}))
    return states


def _table(rows: Sequence[Sequence[str]], *, left: int = 2) -> str:
    """Columns as wide as what stands in them; so many to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if i >= left else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
