"""Evaluation protocols: what is ranked against what, and what is reported.

A protocol is named like its data set. `<name>:single_shot` ranks one random gallery
image of each identity instead of all of them, and takes the mean over 100 draws, or
over as many as `<name>:single_shot,repeats=10,seed=1` says.

Numbers of queries and pairings follow the evaluation code that the field uses (the
protocols of Market-1501 and of HPNet, Huang et al., "Human Parsing Based Alignment
with Multi-Task Learning for Occluded Person Re-Identification", 2020).
"""

import dataclasses
import re

from reid_jax.errors import UserError

SINGLE_SHOT_REPEATS = 100
"""Draws of a single-shot gallery, as in HPNet."""

_PARTIAL_RANKS = (1, 3, 5, 10)
_OPTIONS = re.compile(r"single_shot(?:,repeats=(\d{1,6}))?(?:,seed=(\d{1,9}))?")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a data set is evaluated.

    Attributes:
      name: how results are labelled.
      dataset: prepared data set that holds the query and gallery splits.
      train_dataset: prepared data set whose train split belongs to it.
      camera_filter: whether gallery images of the query's own identity and camera are
        left out of its ranking, as on Market-1501.
      ranks: ranks of the CMC curve that are reported.
      ap: `rectangle` (mean of the precision at each match) or `trapezoid`.
      query_split: split with the queries.
      gallery_split: split that is ranked.
      valid_queries: queries with a match in the published data set; None if the data
        set is not a published one.
      single_shot: ranks one gallery image of each identity, drawn at random, instead
        of all. Distractors (person 0) stay.
      repeats: how many galleries are drawn; figures are their mean.
      seed: of the draws.
    """

    name: str
    dataset: str
    train_dataset: str
    camera_filter: bool = True
    ranks: tuple[int, ...] = (1, 5, 10, 20)
    ap: str = "rectangle"
    query_split: str = "query"
    gallery_split: str = "gallery"
    valid_queries: int | None = None
    single_shot: bool = False
    repeats: int = 1
    seed: int = 0


def protocol(name: str) -> Protocol:
    """The protocol of a prepared data set, by name.

    A data set without a protocol of its own is evaluated like Market-1501 (Zheng et
    al., "Scalable Person Re-identification: A Benchmark", 2015), on itself. Whether
    it has been prepared shows when its records are opened.

    Args:
      name: that of the data set, with `:single_shot` where that is wanted.

    Raises:
      UserError: it is no name, or empty, or what follows its colon is not understood.
    """
    if not isinstance(name, str):
        raise UserError(
            f"{name!r} is no data set to evaluate: give its name, as in "
            "--config.evaluate_on=\"('market1501',)\""
        )
    dataset, colon, options = name.partition(":")
    if not dataset:
        raise UserError("The name of the data set to evaluate is empty.")
    if "," in dataset:
        raise UserError(
            f"{name!r} is not one data set; several are written like this: "
            "--config.evaluate_on=\"('market1501', 'occluded_reid')\""
        )
    made = _PUBLISHED.get(dataset) or _market_like(dataset)
    return _with_options(made, name, options) if colon else made


def _with_options(made: Protocol, name: str, options: str) -> Protocol:
    match = _OPTIONS.fullmatch(options)
    repeats = int(match[1] or SINGLE_SHOT_REPEATS) if match else 0
    if not match or repeats < 1:
        raise UserError(
            f"{name!r} is not a protocol: after {made.name}: there may be single_shot, "
            f"single_shot,repeats=<1 or more> or single_shot,repeats=10,seed=1; "
            f"got {options!r}."
        )
    return dataclasses.replace(
        made, name=name, single_shot=True, repeats=repeats, seed=int(match[2] or 0)
    )


def _market_like(
    dataset: str, *, valid_queries: int | None = None, train: str | None = None
) -> Protocol:
    """All cameras known, every gallery image ranked."""
    made = Protocol(
        name=dataset,
        dataset=dataset,
        train_dataset=train or dataset,
        valid_queries=valid_queries,
    )
    if dataset.startswith("synthetic/partial_"):
        # Papers report rank-3 on the partial sets.
        return dataclasses.replace(made, ranks=_PARTIAL_RANKS)
    return made


def _occluded(
    dataset: str,
    *,
    valid_queries: int,
    train: str | None = None,
    ranks: tuple[int, ...] = (1, 5, 10, 20),
) -> Protocol:
    """Occluded or partial queries against whole bodies.

    Cameras are unknown, so that there is nothing to filter by.
    """
    made = _market_like(dataset, valid_queries=valid_queries, train=train)
    return dataclasses.replace(made, camera_filter=False, ranks=ranks)


def _partial(dataset: str, *, valid_queries: int) -> Protocol:
    """Trained on Market-1501, without fine-tuning."""
    return _occluded(
        dataset, valid_queries=valid_queries, train="market1501", ranks=_PARTIAL_RANKS
    )


_PUBLISHED = {
    made.name: made
    for made in (
        _market_like("market1501", valid_queries=3368),
        _market_like("dukemtmc", valid_queries=2228),
        _market_like("occluded_duke", valid_queries=2210),
        # Trained with the validation images, and without them.
        _market_like("msmt17", valid_queries=11659),
        _market_like("msmt17_noval", valid_queries=11659),
        _market_like("cuhk03np_labeled", valid_queries=1400),
        _market_like("cuhk03np_detected", valid_queries=1400),
        _occluded("occluded_reid", valid_queries=1000, train="market1501"),
        # DROP trains on half of the identities and tests on the others; see
        # data_pipelines.readers.occluded_reid.
        _occluded("occluded_reid_half", valid_queries=500),
        _occluded("p_dukemtmc", valid_queries=2163),
        _partial("partial_reid", valid_queries=300),
        _partial("partial_reid_occluded", valid_queries=300),
        _partial("partial_ilids_119", valid_queries=119),
        _partial("partial_ilids_o", valid_queries=119),
        _partial("partial_ilids_p", valid_queries=119),
        _partial("partial_ilids_218", valid_queries=218),
    )
}
