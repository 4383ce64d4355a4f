"""Where runs come from: their configs, and what differs; versions and command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from reid_jax.report.html import Html, element, folded, section, table
from reid_jax.report.runs import Run

_UNNAMED = ("name", "variant")
"""Fields that only name a run."""


def configs(runs: Sequence[Run]) -> Html:
    """Fields in which the runs differ, and below all of them."""
    names = sorted({name for run in runs for name in run.config})
    differing = [
        name
        for name in names
        if name not in _UNNAMED
        and any(run.config.get(name) != runs[0].config.get(name) for run in runs)
    ]
    shown: list[Html] = []
    if len(runs) > 1 and differing:
        shown.append(_fields(runs, differing))
    elif len(runs) > 1:
        shown.append(element("p", "The configs are the same."))
    shown.append(folded(f"all {len(names)} fields", _fields(runs, names)))
    title = "Config" if len(runs) == 1 else "What differs in the configs"
    return section(title, *shown)


def _fields(runs: Sequence[Run], names: Sequence[str]) -> Html:
    rows = [[n, *(_shown(run.config, n) for run in runs)] for n in names]
    return _worded(["field", *(run.name for run in runs)], rows)


def _shown(config: Mapping[str, Any], name: str) -> str:
    return str(config[name]) if name in config else "(absent)"


def versions(runs: Sequence[Run]) -> Html:
    """Command, versions and devices of each run's last start."""
    started = [_started(run) for run in runs]
    names = dict.fromkeys(name for facts in started for name in facts)
    rows = [[name, *(facts.get(name, "–") for facts in started)] for name in names]
    return section(
        "Command and versions", _worded(["", *(run.name for run in runs)], rows)
    )


def _started(run: Run) -> dict[str, str]:
    if not run.starts:
        return {}
    last = run.starts[-1]
    facts = {
        "command": shlex.join(last.get("command", [])),
        "started": str(last.get("started")),
        "starts": str(len(run.starts)),
        "revision": str(last.get("git_revision") or "unknown"),
        "devices": f"{last.get('device_count')} x {', '.join(last.get('devices', []))}",
        "processes": str(last.get("process_count")),
        "platform": str(last.get("platform")),
        "python": str(last.get("python")),
    }
    packages = last.get("packages", {})
    return facts | {name: str(version) for name, version in packages.items()}


def _worded(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table of words, which are broken where they are long."""
    return element("div", table(head, rows), class_="words")
