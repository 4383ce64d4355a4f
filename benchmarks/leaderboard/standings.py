"""What was scored, seed by seed, and what that says: means, intervals, paired tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Network:
    """What a line's networks have in common, for the table of systems."""

    config: str
    pixels: str
    batch: int
    steps: int
    parameters: int
    seconds: int


@dataclasses.dataclass(frozen=True)
class Line:
    """A network, or one way of using it.

    Attributes:
      role: "baseline", "system", or what the system is without what its paper adds at
        test, such as "before pairs".
      row: of the paper's config, "" for the paper's system.
      scores: mAP in percent by seed and set.
      network: None where another line has the same.
    """

    role: str
    row: str
    scores: Mapping[int, Mapping[str, float]]
    network: Network | None = None

    def on(self, sets: Sequence[str]) -> dict[int, np.ndarray]:
        """Seed -> scores on these sets, of the seeds that have them all."""
        return {
            seed: np.array([scores[name] for name in sets])
            for seed, scores in self.scores.items()
            if all(name in scores for name in sets)
        }


@dataclasses.dataclass(frozen=True)
class Group:
    """The lines of a paper; the last one is the paper's system, once it is there."""

    title: str
    lines: tuple[Line, ...]

    def comparisons(self) -> list[tuple[Line, Line]]:
        """Each other line, and the system."""
        *others, last = self.lines
        return [(other, last) for other in others] if last.role == "system" else []


class Estimate(NamedTuple):
    """A mean over seeds; half the width of its interval, None with one seed."""

    mean: float
    half: float | None


class Difference(NamedTuple):
    """Of the same seeds, with p of the paired t-test; None where there is no test."""

    seeds: int
    baseline: Estimate
    system: Estimate
    gain: Estimate
    p: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, and half of its interval by Student's t."""
    number, mean = len(values), float(np.mean(values))
    if number < 2:
        return Estimate(mean, None)
    quantile = stats.t.ppf((1 + LEVEL) / 2, number - 1)
    return Estimate(mean, float(quantile * stats.sem(values)))


def difference(
    baseline: Mapping[int, float], system: Mapping[int, float]
) -> Difference | None:
    """What a system gains, by seed; None without a seed that both have."""
    seeds = sorted(baseline.keys() & system.keys())
    if not seeds:
        return None
    a, b = (np.array([one[seed] for seed in seeds]) for one in (baseline, system))
    p = None
    if len(seeds) > 1 and np.ptp(b - a) > 0:
        p = float(stats.ttest_rel(b, a).pvalue)
    return Difference(len(seeds), estimate(a), estimate(b), estimate(b - a), p)
