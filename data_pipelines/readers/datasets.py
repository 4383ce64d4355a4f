"""Every data set that can be prepared from a source, by name.

The module of a reader says what `--source` should be and what was published; one line
here offers it.
"""

from data_pipelines.readers import (
    cuhk03,
    dukemtmc,
    market1501,
    msmt17,
    occluded_duke,
    occluded_reid,
    p_dukemtmc,
    partial_ilids,
    partial_reid,
    table,
)
from data_pipelines.readers.sources import DataSet

_ALL: tuple[DataSet, ...] = (
    market1501.MARKET1501,
    dukemtmc.DUKEMTMC,
    occluded_duke.OCCLUDED_DUKE,
    msmt17.MSMT17,
    msmt17.MSMT17_NOVAL,
    cuhk03.LABELED,
    cuhk03.DETECTED,
    occluded_reid.OCCLUDED_REID,
    occluded_reid.OCCLUDED_REID_HALF,
    p_dukemtmc.P_DUKEMTMC,
    partial_reid.PARTIAL_REID,
    partial_reid.PARTIAL_REID_OCCLUDED,
    partial_ilids.PARTIAL_ILIDS_119,
    partial_ilids.PARTIAL_ILIDS_O,
    partial_ilids.PARTIAL_ILIDS_P,
    partial_ilids.PARTIAL_ILIDS_218,
    table.TABLE,
)

DATASETS: dict[str, DataSet] = {data_set.name: data_set for data_set in _ALL}
"""Name for `--dataset` -> reader, expected source and published counts."""
