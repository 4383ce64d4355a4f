"""The leaderboard as Markdown, with a picture of each bed."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.leaderboard.board import Board
from benchmarks.leaderboard.standings import (
    LEVEL,
    Difference,
    Estimate,
    Group,
    Line,
    difference,
    estimate,
)
from benchmarks.leaderboard.systems import DATASET, IMAGES, beds_and_sets
from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.runtime.workdir import write_text

HEAD = """\
# Leaderboard

Each paper's baseline and system on the [test beds](data.md#test-beds), written, and
put into `docs/` where `--docs` is added, by

```bash
{command}
```

They are the small networks of `:demo`, not the papers' own, trained on
`synthetic/{dataset}`, in which nobody of the beds is, but some of each difficulty. Each
saw {images:,} images in its training, by its demo's optimizer. Compare the rows of one
paper: those of different papers start from different weights, some of which know the
task better than others, and some see larger pictures. {origins}

Figures are mAP in percent: the mean over seeds ± half the width of its {level:.0%}
interval by Student's t. Differences are taken seed by seed, and p is that of the paired
t-test (`scipy.stats.ttest_rel`), not corrected for how many there are. Where there is
one seed, there is no interval, and nothing is claimed. Some lines are of the same
networks without what the paper adds at test: "CLS alone" leaves out AAformer's part
tokens, "before pairs" ranks by features of single images, and "global alone" by DROP's
embedding of the whole image. The oracle knows what everybody looks like, and which
parts a picture shows ([benchmarks/beds.py](../benchmarks/beds.py)): a ceiling. No
figure of a paper is claimed as ours.
"""

STYLES = {"baseline": ("s", "--", "C0"), "system": ("o", "-", "C2")}
PLAIN = ("^", "-.", "C1")
"""Role of a line -> its marker, how its points are joined, and its colour, the same in
every panel; `PLAIN` for others."""

Ceilings = Mapping[str, float]
"""The oracle's mAP in percent by set."""


def write(place: epath.Path, board: Board) -> epath.Path:
    """Writes `leaderboard.md` and `leaderboard/BED.svg`; returns the document's path.

    Raises:
      UserError: if no run has ended.
    """
    groups, ceilings = board.groups(), board.facts["ceilings"]
    if not groups:
        raise UserError(f"no run in {board.folder} has ended yet")
    (place / "leaderboard").mkdir(parents=True, exist_ok=True)
    for bed, sets in scored(groups).items():
        picture = chart(sets, groups, ceilings)
        storage.write_bytes(place / "leaderboard" / f"{bed}.svg", picture)
    path = place / "leaderboard.md"
    write_text(path, document(groups, board))
    return path


def scored(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The beds, and their sets, on which anything was scored."""
    lines = [line for group in groups for line in group.lines]
    return {
        bed: sets
        for bed, sets in beds_and_sets().items()
        if any(line.on(sets) for line in lines)
    }


def document(groups: Sequence[Group], board: Board) -> str:
    """All tables."""
    images, ceilings = board.facts["images"], board.facts["ceilings"]
    seeds = max(len(line.scores) for group in groups for line in group.lines)
    words = ["python -m benchmarks.leaderboard", f"--seeds={seeds}"]
    words += [f"--images={images}"] if images != IMAGES else []
    words += ["--", *board.facts["flags"]] if board.facts["flags"] else []
    head = HEAD.format(
        command=" ".join(words),
        dataset=DATASET,
        images=images,
        level=LEVEL,
        origins=board.origins(),
    )
    parts = [
        head,
        "## Systems\n\n" + _table(_systems(groups)),
        "## All beds\n\nMeans over the steps of each bed.\n\n"
        + _table(_standings(groups, ceilings)),
        "What each system gains on that, with p in brackets; bold where the interval "
        "excludes 0.\n\n" + _table(_gains(groups)),
    ]
    for bed, sets in scored(groups).items():
        picture = f"![mAP by step of the bed {bed}](leaderboard/{bed}.svg)"
        steps = _table(_steps(sets, groups, ceilings))
        parts.append(f"## Bed `{bed}`\n\n{picture}\n\n{steps}")
    return "\n".join(parts)


def _systems(groups: Sequence[Group]) -> Iterator[Sequence[str]]:
    yield ("system", "config", "seeds", "pixels", "parameters", "batches", "seconds")
    for group, line in _lines(groups):
        if net := line.network:
            yield (
                _named(group, line),
                f"`{net.config}`",
                str(len(line.scores)),
                net.pixels,
                f"{net.parameters:,}",
                f"{net.steps} of {net.batch}",
                str(net.seconds),
            )


def _standings(groups: Sequence[Group], ceilings: Ceilings) -> Iterator[Sequence[str]]:
    beds = scored(groups)
    yield ("system", *(f"`{bed}`" for bed in beds))
    for group, line in _lines(groups):
        yield _named(group, line), *(_overall(line, sets) for sets in beds.values())
    known = (_known(ceilings, sets) for sets in beds.values())
    yield "oracle", *(f"{statistics.mean(x):.1f}" if x else "" for x in known)


def _overall(line: Line, sets: Sequence[str]) -> str:
    """The mean over a bed's steps; with its seeds where some are missing."""
    found = [scores.mean() for scores in line.on(sets).values()]
    if not found:
        return ""
    fewer = len(found) < len(line.scores)
    return _shown(estimate(found)) + (f" (seeds: {len(found)})" if fewer else "")


def _known(ceilings: Ceilings, sets: Sequence[str]) -> list[float]:
    """Ceilings of all of the sets, or none."""
    known = all(name in ceilings for name in sets)
    return [ceilings[name] for name in sets] if known else []


def _gains(groups: Sequence[Group]) -> Iterator[Sequence[str]]:
    beds = scored(groups)
    yield ("difference", *(f"`{bed}`" for bed in beds))
    for group in groups:
        for other, system in group.comparisons():
            cells = []
            for sets in beds.values():
                means = (
                    {seed: float(scores.mean()) for seed, scores in x.on(sets).items()}
                    for x in (other, system)
                )
                cells.append(_gain(difference(*means)))
            yield f"{group.title} − {other.role}", *cells


def _gain(found: Difference | None) -> str:
    if found is None:
        return ""
    text = _shown(found.gain, sign="+")
    if found.gain.half is not None and abs(found.gain.mean) > found.gain.half:
        text = f"**{text}**"
    return f"{text} ({_p(found)})" if found.p is not None else text


def _steps(
    sets: Sequence[str], groups: Sequence[Group], ceilings: Ceilings
) -> Iterator[Sequence[str]]:
    """Every comparison on every step of a bed."""
    names = ("without", "with", "difference", "p", "oracle")
    yield ("system", "against", "step", "seeds", *names)
    for group in groups:
        for other, system in group.comparisons():
            for name in sets:
                scores = (
                    {seed: float(found[0]) for seed, found in x.on([name]).items()}
                    for x in (other, system)
                )
                if found := difference(*scores):
                    yield (
                        *(group.title, other.role, _step(name), str(found.seeds)),
                        *(_shown(found.baseline), _shown(found.system)),
                        *(_shown(found.gain, sign="+"), _p(found)),
                        f"{ceilings[name]:.1f}" if name in ceilings else "",
                    )


def _lines(groups: Sequence[Group]) -> Iterator[tuple[Group, Line]]:
    return ((group, line) for group in groups for line in group.lines)


def _named(group: Group, line: Line) -> str:
    """A system by its paper's name; other lines by what they are of it."""
    if line.role == "system":
        return f"**{group.title}**"
    row = f", `{line.row}`" if line.row else ""
    return f"{group.title}, {line.role}{row}"


def _step(name: str) -> str:
    return name.rpartition("_")[2]


def _shown(value: Estimate, *, sign: str = "") -> str:
    text = f"{value.mean:{sign}.1f}"
    return text if value.half is None else f"{text} ± {value.half:.1f}"


def _p(found: Difference) -> str:
    if found.p is None:
        return ""
    return "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"


def _table(rows: Iterator[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def chart(sets: Sequence[str], groups: Sequence[Group], ceilings: Ceilings) -> bytes:
    """An SVG of mAP over a bed's steps, a panel for each paper; the same every time."""
    fixed = {"svg.fonttype": "none", "svg.hashsalt": "leaderboard"}
    with matplotlib.rc_context(fixed):
        figure = Figure((2.6 * len(groups), 3.2), layout="constrained")
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, group in zip(panels, groups, strict=True):
            _panel(axes, sets, group, _known(ceilings, sets))
        panels[0].set_ylabel("mAP, %")
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _panel(
    axes: Axes, sets: Sequence[str], group: Group, ceilings: Sequence[float]
) -> None:
    steps = [_step(name) for name in sets]
    joined = all(step.isdigit() for step in steps)
    for line in group.lines:
        found = [estimate(x) for x in zip(*line.on(sets).values(), strict=True)]
        if not found:
            continue
        marker, dashes, colour = STYLES.get(line.role, PLAIN)
        axes.errorbar(
            range(len(steps)),
            [value.mean for value in found],
            yerr=[value.half or 0 for value in found],
            fmt=marker,
            linestyle=dashes if joined else "",
            color=colour,
            capsize=3,
            markersize=4,
            label=line.role,
        )
    if ceilings:
        axes.plot(range(len(steps)), ceilings, "_:", color="grey", label="oracle")
    axes.set_xticks(range(len(steps)), steps)
    axes.margins(x=0.15)
    axes.set_ylim(0, 105)
    axes.set_title(group.title, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
