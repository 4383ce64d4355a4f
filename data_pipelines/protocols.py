"""Evaluation protocols: what is ranked against what, and what is reported."""

import dataclasses

from reid_jax.errors import UserError

_PARTIAL_RANKS = (1, 3, 5, 10)


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
    """

    name: str
    dataset: str
    train_dataset: str
    camera_filter: bool = True
    ranks: tuple[int, ...] = (1, 5, 10, 20)
    ap: str = "rectangle"
    query_split: str = "query"
    gallery_split: str = "gallery"


def protocol(name: str) -> Protocol:
    """The protocol of a prepared data set.

    A data set without a protocol of its own is evaluated like Market-1501 (Zheng et
    al., "Scalable Person Re-identification: A Benchmark", 2015), on itself. Whether
    it has been prepared shows when its records are opened.

    Raises:
      UserError: the name is empty.
    """
    if not name:
        raise UserError("The name of the data set to evaluate is empty.")
    made = Protocol(name=name, dataset=name, train_dataset=name)
    if name.startswith("synthetic/partial_"):
        # Papers report rank-3 on the partial sets.
        return dataclasses.replace(made, ranks=_PARTIAL_RANKS)
    return made
