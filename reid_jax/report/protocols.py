"""What runs scored on each protocol: figures, distances, cameras, queries, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from reid_jax.evaluation.results import STATES
from reid_jax.report import charts
from reid_jax.report.curves import keys
from reid_jax.report.html import Html, element, folded, grid, joined, section, table
from reid_jax.report.html import picture as picture_of
from reid_jax.report.runs import Run, label_of, state_of, way_of
from reid_jax.retrieval.histograms import Histograms

_QUERIES = 10
"""So many of the hardest queries are listed, and as many of the easiest."""
_CAMERAS = 32
"""A larger matrix is not shown."""

Entry = Mapping[str, Any]


def results(runs: Sequence[Run]) -> Html:
    """The figures of each protocol and way of scoring that any of the runs has."""
    parts = [_about, _figures, _verification]
    tables = []
    for label in _labels(runs):
        scored = _scored(runs, label)
        shown = (part(scored) for part in parts)
        tables.append(joined((element("h3", label), *shown)))
    return section("Results", *tables)


def details(runs: Sequence[Run]) -> Html:
    """A section for each protocol: distances, cameras, queries, pictures."""
    parts = [_distances, _cameras, _queries, _pictures]
    sections = []
    for label in _labels(runs):
        scored = _scored(runs, label)
        shown = [joined(list(part(scored))) for part in parts]
        sections.append(section(label, *shown))
    return joined(sections)


def _labels(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(label_of(entry) for run in runs for entry in run.entries))


def _scored(runs: Sequence[Run], label: str) -> list[tuple[Run, Entry]]:
    """All such entries, each with its run."""
    return [(run, entry) for run in runs for entry in run.labelled(label)]


def _about(scored: Sequence[tuple[Run, Entry]]) -> Html:
    """What was ranked, in a sentence."""
    entry = scored[0][1]
    shots = entry.get("shots", "all")
    text = (
        f"{entry.get('valid_queries', '?')} valid queries of "
        f"{entry.get('query_images', '?')}, {entry.get('gallery_images', '?')} gallery "
        f"images, {'one drawn for each person' if shots == 'single' else 'all ranked'}."
    )
    note = f" Note: {entry['note']}." if entry.get("note") else ""
    return element("p", text + note, class_="faint")


def _figures(scored: Sequence[tuple[Run, Entry]]) -> Html:
    """Runs x metrics, for each state, as it was re-ranked and before.

    Differences, in points, are to the first run that has the figure.
    """
    ways: dict[str, dict[str, tuple[int, Mapping[str, float]]]] = {}
    for run, entry in scored:
        for way, *found in _ways(entry, state_of(entry, run.folder)):
            # The latest entry comes first: it knows which state is the best.
            ways.setdefault(way, {}).setdefault(run.name, tuple(found))
    every = [metrics for named in ways.values() for _, metrics in named.values()]
    names = list(dict.fromkeys(name for metrics in every for name in metrics))
    rows = []
    for way, named in ways.items():
        columns = [_compared([m.get(n) for _, m in named.values()]) for n in names]
        for (run_name, (step, _)), *cells in zip(named.items(), *columns, strict=True):
            rows.append([f"{run_name} at step {step}, {way}", *cells])
    return table(["", *names], rows)


def _ways(entry: Entry, state: str) -> Iterator[tuple[str, int, Mapping[str, float]]]:
    """What an entry has figures of, and of which step."""
    step, way = entry["step"], way_of(entry, state)
    yield way, step, entry["metrics"]
    if best := entry.get("best"):
        yield way_of(entry, "best state"), best["step"], best.get("metrics") or {}
    for name, what in STATES.items():
        if before := entry.get(f"metrics_{name}"):
            begun = state if name == "before_reranking" else way
            yield f"{begun}, {what}", step, before


def _verification(scored: Sequence[tuple[Run, Entry]]) -> Html:
    """Same person or not by a threshold, where that was evaluated."""
    rows = [
        [run.called(entry), *_point(**point)]
        for run, entry in scored
        for point in entry.get("verification", {}).get("at", ())
    ]
    if not rows:
        return Html()
    what = (
        "One person or not, by a threshold on the distance of embeddings, so before "
        "k-reciprocal encoding: the share of pairs of different persons that it "
        "accepts (FPR), and of one person (TPR)."
    )
    head = ["", "FPR", "TPR", "distance at most"]
    return joined((element("p", what), table(head, rows)))


def _point(fpr: float, tpr: float, threshold: float | None) -> list[str]:
    reached = "none" if threshold is None else f"{threshold:.4g}"
    return [f"{fpr:g}", f"{tpr:.1%}", reached]


def _compared(values: Sequence[float | None]) -> list[Html]:
    """Cells of percentages, each with its difference to the first that is there."""
    first = next((i for i, value in enumerate(values) if value is not None), None)
    cells = []
    for i, value in enumerate(values):
        if value is None:
            cells.append(element("td", "–"))
            continue
        gap = 100 * (value - values[first])
        looks = "better" if gap > 0 else "worse" if gap < 0 else "faint"
        shown = element("small", f" {gap:+.1f}", class_=looks) if i != first else ""
        cells.append(element("td", f"{value:.1%}", shown))
    return cells


def _distances(scored: Sequence[tuple[Run, Entry]]) -> Iterator[Html]:
    """Histograms of right and wrong pairs, with the threshold between them."""
    drawn = []
    for run, entry in scored:
        details = run.details(entry)
        if details is None or not details["distances"]["right"]:
            continue
        found = Histograms(**{k: np.array(v) for k, v in details["distances"].items()})
        threshold, rate = found.equal_error()
        caption = (
            f"{run.called(entry)}: threshold {threshold:.4g}, where {rate:.2%} of the "
            "right pairs are missed and as many of the wrong ones let through"
        )
        drawn.append(
            charts.histogram(
                caption, found.edges, found.right, found.wrong, threshold=threshold
            )
        )
    if drawn:
        yield element("h3", "Distances of pairs")
        yield keys(["right pairs", "wrong pairs"], (charts.RIGHT, charts.WRONG))
        yield grid(*drawn)


def _cameras(scored: Sequence[tuple[Run, Entry]]) -> Iterator[Html]:
    """Rank-1 by the query's camera and the gallery's."""
    known = _detailed(scored)
    if known:
        title = "Rank-1 by camera of the query and camera of the gallery"
        yield element("h3", title)
    for called, details in known:
        yield element("p", f"{called}: each query asked of one camera's images")
        yield _matrix(**details["cameras"])


def _detailed(scored: Sequence[tuple[Run, Entry]]) -> list[tuple[str, dict[str, Any]]]:
    """What each is called, and its details, where it has any."""
    found = ((run.called(entry), run.details(entry)) for run, entry in scored)
    return [(called, details) for called, details in found if details is not None]


def _matrix(
    query: Sequence[str],
    gallery: Sequence[str],
    right: Sequence[Sequence[int]],
    asked: Sequence[Sequence[int]],
) -> Html:
    if max(len(query), len(gallery)) > _CAMERAS:
        size = f"{len(query)} x {len(gallery)}"
        return element("p", f"{size} cameras: too many to show", class_="faint")
    rows = [
        [f"query {name}", *map(_share, right[i], asked[i])]
        for i, name in enumerate(query)
    ]
    return table(["", *(f"gallery {name}" for name in gallery)], rows)


def _share(right: int, asked: int) -> Html:
    """A cell that is the greener the more first answers are right."""
    if not asked:
        return element("td", "–", title="no query has a right answer there")
    share = right / asked
    colour = f"background:hsl({120 * share:.0f} 60% 50% / .3)"
    return element("td", f"{share:.0%}", style=colour, title=f"{right} of {asked}")


def _queries(scored: Sequence[tuple[Run, Entry]]) -> Iterator[Html]:
    """The hardest and the easiest queries of each run."""
    known = _detailed(scored)
    if known:
        yield element("h3", "Hardest and easiest queries")
    # Where galleries are drawn, a first rank is a mean, and no answer right or wrong.
    drawn = any(entry.get("shots") == "single" for _, entry in scored)
    for called, details in known:
        order = sorted(details["queries"], key=lambda one: one["average_precision"])
        never = sum(one["first_rank"] > 1 for one in order)
        told = f"{never} of {len(order)} queries have a wrong first answer"
        yield element("p", called if drawn else f"{called}: {told}")
        yield _listed(order[:_QUERIES])
        yield folded("the easiest", _listed(order[::-1][:_QUERIES]))


def _listed(queries: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        [
            one["file"],
            one["person"],
            one["camera"],
            f"{one['average_precision']:.1%}",
            f"{one['first_rank']:g}",
        ]
        for one in queries
    ]
    return table(["query", "person", "camera", "AP", "first right answer"], rows)


def _pictures(scored: Sequence[tuple[Run, Entry]]) -> Iterator[Html]:
    """All pictures; the ranking lists of some and of the hardest queries unfolded."""
    heading = element("h3", "Pictures")
    for run, entry in scored:
        for name, path in run.pictures(entry).items():
            yield heading
            heading = Html()
            caption = f"{run.called(entry)}: {name.replace('_', ' ')}"
            yield folded(
                caption,
                picture_of(path, caption),
                opened=name in ("ranking", "hardest"),
            )
