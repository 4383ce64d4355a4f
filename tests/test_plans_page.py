"""docs/plans.md."""

import re

from benchmarks import full_size_plans
from benchmarks.plans_page import page


def line(chips, per_second, **changes):
    return {
        **{"what": "train:train", "dtype": "bfloat16", "scaling": "weak"},
        **{"sweep": {"model.dtype": "bfloat16"}},
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
    """Of one dtype, one batch per chip, and the same other fields."""
    split = {"sweep": {"model.dtype": "bfloat16", "shard_parameters": True}}
    half = {"dtype": "float32", "sweep": {"model.dtype": "float32"}}
    lines = [
        *(line(16, 1200.0, bound_by="links"), line(4, 400.0)),
        *(line(4, 200.0, **half), line(16, 800.0, **half)),
        *(line(4, 480.0, batch=128), line(16, 960.0, batch=512)),
        line(4, 300.0, **split),
    ]
    head, rule, *rows = cells(page({"ViT": lines}), "## Scaling")
    assert [" ".join(row) for row in rows] == [
        "ViT train bfloat16 v5e:4 64 1.50 hbm 400 100% 25%",
        "ViT train bfloat16 v5e:16 256 1.50 links 1,200 75% 25%",
        "ViT train bfloat16 v5e:4 128 1.50 hbm 480 100% 25%",
        "ViT train bfloat16 v5e:16 512 1.50 hbm 960 50% 25%",
        "ViT train float32 v5e:4 64 1.50 hbm 200 100% 25%",
        "ViT train float32 v5e:16 256 1.50 hbm 800 100% 25%",
        "ViT train shard_parameters=True bfloat16 v5e:4 64 1.50 hbm 300  25%",
    ]
    assert len(head) == len(rule) == len(rows[0])


def test_a_change_that_fits_is_no_second_plain_row():
    broken = line(4, 0.0, scaling="strong", error="out of memory")
    changed = {**broken, "sweep": {"model.dtype": "bfloat16", "model.remat": True}}
    rows = cells(page({"ViT": [broken, changed]}), "## bfloat16")[2:]
    assert [row[1] for row in rows] == ["train", "train remat=True"]


def test_what_no_chip_holds_has_a_row_without_figures():
    broken = line(4, 0.0, scaling="strong", dtype="float32", error="out of memory")
    text = page({"ViT-L": [broken]})
    assert "## bfloat16" not in text
    assert "## Scaling" not in text
    (row,) = cells(text, "## float32")[2:]
    assert row[:5] == ["ViT-L", "train", "v5e:4", "1.50", "no"]
    assert not any(row[5:])
