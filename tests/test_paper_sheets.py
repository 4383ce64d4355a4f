"""The committed sheets of the papers against what the command would write today."""

import importlib
import re

import pytest

from benchmarks import paper_sheets
from data_pipelines.readers.datasets import DATASETS
from tests.models import test_cpacol_rows as cpacol_rows
from tests.models import test_drop_rows as drop_rows
from tests.models import test_sanet_rows as sanet_rows

NUMERALS = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")

ONE_RIGHT_ANSWER = "partial_ilids"
"""Data sets where a query has one, whose AP is then at least what rank-1 counts."""

# Config, data set, two rows, and by how much the paper's running text says that rank-1
# and mAP of the second are higher (None: it does not).
DIFFERENCES = [
    ("aaformer", "msmt17", "table4-vit", "table4-pt-mgn", 2.8, 4.5),
    ("aaformer", "msmt17", "table4-pt-mgn", "table4-aaformer", 1.9, 2.2),
    ("cpacol", "occluded_duke", "fig7-baseline", "fig7-idenattn", None, 1.1),
    ("cpacol", "occluded_duke", "fig7-idenattn", "fig7-contrastattn", None, 2.5),
    ("cpacol", "occluded_duke", "fig7-inter", "fig7-contrastattn", None, 0.9),
    ("cpacol", "occluded_duke", "table5-end-to-end", "", None, 2.4),
    ("cpacol", "occluded_reid", "table5-end-to-end", "", None, 2.7),
    ("cpacol", "occluded_duke", "table6-baseline", "table6-attention", None, 3.6),
    ("cpacol", "occluded_duke", "table6-attention", "", None, 4.5),
    ("sanet", "partial_ilids_p", "table3-hpnet", "table3-global", 3.4, 3.1),
    ("sanet", "partial_ilids_p", "table3-global", "table3-fixed", 1.6, 1.0),
    ("sanet", "partial_ilids_p", "table3-fixed", "", None, 1.0),
]


def config_file(name):
    return importlib.import_module(f"configs.{name}")


def test_every_config_with_rows_has_a_sheet():
    files = (paper_sheets.ROOT / "configs").glob("*.py")
    with_rows = {file.stem for file in files if "\nROWS" in file.read_text()}
    sheets = {file.stem for file in (paper_sheets.ROOT / "docs/papers").glob("*.md")}
    assert with_rows == sheets == {*paper_sheets.papers()}


@pytest.mark.parametrize("name", paper_sheets.papers())
def test_the_committed_sheet_is_what_the_command_writes(name):
    committed = (paper_sheets.ROOT / "docs" / "papers" / f"{name}.md").read_text()
    known = paper_sheets.traced_cells(committed)
    assert set(known) == {"the paper's system"} | {
        f"`{row}`" for row in config_file(name).ROWS
    }
    command = f"python -m benchmarks.paper_sheets --papers={name} --texts_only"
    assert committed == paper_sheets.sheet(name, known), command


@pytest.mark.parametrize("name", paper_sheets.papers())
def test_what_a_paper_reports_is_of_its_rows_and_of_known_data_sets(name):
    for table, rows in config_file(name).REPORTED.items():
        assert set(rows) <= {"", *config_file(name).ROWS}
        for row, by_dataset in rows.items():
            kind, number = re.match(r"(table|fig|)(\d*)", row).groups()
            assert {"": table, "fig": f"Fig. {number}"}.get(kind, table) == table
            if kind == "table":
                assert table in (f"Table {number}", f"Table {NUMERALS[int(number)]}")
            assert set(by_dataset) <= set(DATASETS)
            for dataset, (rank1, mean_ap) in by_dataset.items():
                if None not in (rank1, mean_ap):
                    assert 0 < min(rank1, mean_ap) < max(rank1, mean_ap) < 100
                    assert (mean_ap > rank1) == dataset.startswith(ONE_RIGHT_ANSWER)


@pytest.mark.parametrize(
    ("name", "dataset", "lower", "higher", "rank1", "mean_ap"), DIFFERENCES
)
def test_differences_that_the_papers_texts_name(
    name, dataset, lower, higher, rank1, mean_ap
):
    (rows,) = [r for r in config_file(name).REPORTED.values() if lower in r]
    wanted = (rank1, mean_ap)
    for below, above, difference in zip(
        rows[lower][dataset], rows[higher][dataset], wanted, strict=True
    ):
        assert difference is None or above - below == pytest.approx(difference)


def test_sizes_are_traced():
    """CpaCol's baseline, by hand: ViT, CLS, 243 positions, five heads of 702."""
    config = config_file("cpacol").get_config("row=table4-baseline")
    by_hand = cpacol_rows.TABLE6_BASELINE + cpacol_rows.EMBEDDINGS + cpacol_rows.HEADS
    products = cpacol_rows.BASELINE_MACS + cpacol_rows.INSIDE_ATTENTION
    flops = 2 * (products + cpacol_rows.CLASSIFIERS)
    assert paper_sheets.measure(config) == (by_hand, flops, 0)
    _, correlated, pair = paper_sheets.measure(config_file("cpacol").get_config())
    assert correlated > flops
    # The similarities and 4D convolutions of docs/results.md, and a small MLP.
    assert pair / 2e9 == pytest.approx(0.045 + 0.057, abs=1e-3)


def test_the_committed_parameters_are_those_counted_by_hand():
    by_hand = {
        "sanet": sanet_rows.PARAMETERS,
        "drop": {row: count for row, (count, _) in drop_rows.ROWS.items()},
    }
    for name, counts in by_hand.items():
        sheet = paper_sheets.ROOT / "docs" / "papers" / f"{name}.md"
        committed = paper_sheets.traced_cells(sheet.read_text())
        for row, count in counts.items():
            cells = committed[f"`{row}`" if row else "the paper's system"]
            assert cells.startswith(f"| {count:,} |"), row
