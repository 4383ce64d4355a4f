"""The least time that a program can take on chips, and what binds it.

A chip's matrix unit, its memory and its links work at the same time at best, so that
the slowest of them bounds the program. It is a bound and no estimate: nothing is said
of latency, of work that waits for other work, nor of what vector units do.

Source: Williams et al., "Roofline: an insightful visual performance model", CACM 2009.
"""

from __future__ import annotations

import dataclasses

from reid_jax.benchmark.peaks import Peak
from reid_jax.plan.topologies import Chip


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that a call takes at least.

    Attributes:
      matrix, hbm, links: that each of a chip's resources is busy.
    """

    matrix: float
    hbm: float
    links: float

    @property
    def seconds(self) -> float:
        """Of the call."""
        return max(self.matrix, self.hbm, self.links)

    @property
    def binds(self) -> str:
        """The resource that is busy all the time."""
        times = dataclasses.asdict(self)
        return max(times, key=times.__getitem__)

    @property
    def share_of_links(self) -> float:
        """What the links' time would be of a call that computes nothing meanwhile."""
        busy = max(self.matrix, self.hbm) + self.links
        return self.links / busy if busy else 0.0


def bound(
    *, flops: float, hbm_bytes: float, link_bytes: float, chip: Chip, peak: Peak
) -> Bound:
    """The bound of a program.

    Args:
      flops: of a chip, in matrix products and convolutions.
      hbm_bytes: that a chip moves from and to its memory.
      link_bytes: that a chip sends to others.
      chip: how fast it moves them.
      peak: of its matrix unit, in bf16 whatever is computed in.
    """
    return Bound(
        matrix=flops / (peak.tflops * 1e12),
        hbm=hbm_bytes / chip.hbm_rate,
        links=link_bytes / chip.link_rate,
    )
