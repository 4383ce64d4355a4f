"""docs/plans.md."""

import re

from benchmarks import full_size_plans
from benchmarks.plans_page import page


def line(chips, per_second, **changes):
    return {
        **{"what": "train:train", "dtype": "bfloat16", "scaling": "weak"},
        **{"topology": f"v5e:{chips}", "chip": "v5e", "device_kind": "TPU v5 lite"},
        **{"devices": chips, "batch": 16 * chips, "total_bytes": 3 * 2**29},
        **{"bound_per_second": per_second, "bound_by": "hbm", "share_of_links": 0.25},
        **changes,
    }


def cells(text, title):
    table = text[text.index(title) :]
    return [
        re.split(r" *\| *", row)[1:-1] for row in re.findall(r"^\| .*", table, re.M)
    ]


def test_the_page_is_that_of_the_plans_that_are_there():
    assert full_size_plans.PAGE.read_text() == page(full_size_plans.plans())


def test_efficiency_is_relative_to_the_fewest_chips():
    plans = {"ViT": [line(16, 1200.0, bound_by="links"), line(4, 400.0)]}
    head, rule, *rows = cells(page(plans), "## Scaling")
    assert rows == [
        ["ViT", "train", "v5e:4", "64", "1.50", "hbm", "400", "100%", "25%"],
        ["ViT", "train", "v5e:16", "256", "1.50", "links", "1,200", "75%", "25%"],
    ]
    assert len(head) == len(rule) == len(rows[0])


def test_what_no_chip_holds_has_a_row_without_figures():
    broken = line(4, 0.0, scaling="strong", dtype="float32", error="out of memory")
    text = page({"ViT-L": [broken]})
    assert "## bfloat16" not in text
    assert "## Scaling" not in text
    (row,) = cells(text, "## float32")[2:]
    assert row[:5] == ["ViT-L", "train", "v5e:4", "1.50", "no"]
    assert not any(row[5:])
