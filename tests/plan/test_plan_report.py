"""The lines of plans as a table and a plot."""

import json

import pytest

from reid_jax.errors import UserError
from reid_jax.plan.plan_report import Report, notes, plot, table

CONFIG = {"model": {"width": 6}}


def line(**changes):
    return {
        **{"config": "toy-demo", "what": "train:train", "unit": "images", "batch": 64},
        **{"sweep": {"model.dtype": "bfloat16"}, "scaling": "strong", "devices": 4},
        **{"topology": "v5e:2x2", "chip": "v5e", "device_kind": "TPU v5 lite"},
        **{"program": "abc", "compiler": "libtpu 1", "fits": True},
        **{"hbm_bytes": 2**34, "total_bytes": 3 * 2**30, "argument_bytes": 2**30},
        **{"workspace_bytes": 2**31, "code_bytes": 0, "flops_per_chip": 1.97e12},
        **{"output_bytes": 2**30, "alias_bytes": 2**30},
        **{"hbm_traffic_bytes": 16.38e9, "link_bytes": 1e9, "unknown": []},
        "collectives": {
            "all-reduce": {"count": 7, "bytes": 1e9},
            "all-gather": {"count": 3, "bytes": 0.0},
        },
        **{"bound_seconds": 0.02, "bound_by": "hbm", "bound_per_second": 3200.0},
        "bound_parts": {"matrix": 0.01, "hbm": 0.02, "links": 0.005},
        **{"share_of_links": 0.2, "mfu_at_bound": 0.5, "compile_seconds": 60.0},
        "peaks": {
            **{"tflops": 197.0, "hbm_rate": 819e9, "link_rate": 200e9},
            "sources": ["a data sheet", "another"],
        },
        **changes,
    }


def too_large(**changes):
    """As of a program that its compiler refuses."""
    names = ("what", "unit", "batch", "sweep", "scaling", "devices", "topology", "chip")
    names += ("config", "device_kind", "program", "compiler", "hbm_bytes")
    kept = {name: value for name, value in line().items() if name in names}
    error = {"error": "out of memory", "fits": False, "total_bytes": None}
    return {**kept, **error, "compile_seconds": 60.0, **changes}


def cells(text):
    return [[c.strip() for c in row.split("|")[1:-1]] for row in text.splitlines()]


def test_rows():
    wide = line(devices=16, topology="v5e:4x4", bound_per_second=6400.0)
    titles, _, four, sixteen, refused = cells(table([line(), wide, too_large()]))
    row = dict(zip(titles, four, strict=True))
    assert row["GiB per chip"] == "3.00"
    assert (row["of"], row["fits"], row["bound by"]) == ("16", "yes", "hbm")
    assert (row["bound, ms"], row["at most per second"]) == ("20", "3,200")
    assert (row["MFU"], row["TFLOPs"], row["HBM GB"]) == ("50.0%", "1.970", "16.4")
    assert (row["links MB"], row["collectives"]) == ("1,000", "7 + 3")
    # Four times the chips, twice as fast: half as efficient.
    efficiency = titles.index("efficiency")
    assert (four[efficiency], sixteen[efficiency]) == ("100.0%", "50.0%")
    assert refused[titles.index("fits")] == "no"


def test_of_a_gpu_s_memory_a_run_has_a_part():
    gpu = {"chip": "h200", "hbm_bytes": 141 * 10**9}
    for one in (line(**gpu), too_large(**gpu)):
        titles, _, row = cells(table([one]))
        assert row[titles.index("of")] == "98"  # GiB, three quarters of 141 GB


def test_the_change_that_fits_is_said():
    change = {"shard_parameters": True, "model.remat": True}
    (*_, row) = cells(table([too_large(fits_with=change)]))
    assert "with shard_parameters=True remat=True" in row


def test_notes_name_peaks_and_what_is_not_known():
    text = notes([line(unknown=["autotuning"]), line(), too_large()])
    assert "nothing was run" in text
    assert (
        "197 TFLOP/s of dense bf16, 819 GB/s of HBM, 200 GB/s sent over links" in text
    )
    assert text.count("a data sheet; another") == 1
    assert "TPU v5 lite, not known here: autotuning." in text


def test_a_line_stays_until_program_or_compiler_change(tmp_path):
    report = Report(tmp_path, CONFIG)
    report.add(line())
    again = Report(tmp_path, CONFIG)
    assert again.find(line(bound_seconds=None))["bound_seconds"] == 0.02
    for other in ({"program": "b"}, {"compiler": "libtpu 2"}, {"topology": "v5e:4x4"}):
        assert again.find(line(**other)) is None
    again.add(line(program="b"))
    assert [one["program"] for one in Report(tmp_path, CONFIG).lines] == ["b"]
    stored = (tmp_path / "plan.jsonl").read_text().splitlines()
    assert [json.loads(text)["program"] for text in stored] == ["b"]


def test_another_config_s_plans_are_left_alone(tmp_path):
    Report(tmp_path, CONFIG).add(line())
    with pytest.raises(UserError, match="plans of a config with other fields"):
        Report(tmp_path, {"model": {"width": 7}})


@pytest.mark.parametrize("newer", [{}, {"pool": "mean"}])
def test_plans_from_before_a_field_came_stay(tmp_path, newer):
    older = {"width": 5, "remat": True, **newer}
    now = {**older, "pool": "mean", "gradient_dtype": "compute"}
    Report(tmp_path, {"model": older}).add(line())
    assert len(Report(tmp_path, {"model": now}).lines) == 1
    for changed in ({"gradient_dtype": "float32"}, {"remat": False}):
        with pytest.raises(UserError, match="with other fields"):
            Report(tmp_path, {"model": now | changed})


def test_bars_of_one_name_are_told_apart(tmp_path, drawn):
    own = {"output_bytes": 3 * 2**30, "total_bytes": 5 * 2**30}
    plot(tmp_path / "plan.png", [line(), line(batch=128, **own)])
    for axes in drawn[0].axes:
        assert [text.get_text() for text in axes.get_yticklabels()] == [
            "v5e:2x2 dtype=bfloat16 batch 64",
            "v5e:2x2 dtype=bfloat16 batch 128",
        ]
    memory = drawn[0].axes[0]
    ends = {bar.get_y(): bar.get_x() + bar.get_width() for bar in memory.patches}
    assert list(ends.values()) == [3.0, 5.0]  # the line's total
    assert list(memory.lines[0].get_xdata()) == [16.0, 16.0]


def test_batches_scale_each_by_itself(tmp_path, drawn):
    wide = {"devices": 16, "topology": "v5e:4x4"}
    batches = [{"batch": 64}, {"batch": 128}]
    lines = [line(**size, **more) for size in batches for more in ({}, wide)]
    lines += [line(scaling="weak", batch=256), line(scaling="weak", batch=1024, **wide)]
    plot(tmp_path / "plan.png", lines)
    curves = drawn[0].axes[0].lines
    assert [curve.get_label() for curve in curves] == [
        f"v5e dtype=bfloat16 batch {size}" for size in ("64", "128", "64 per device")
    ]
    assert all(list(curve.get_xdata()) == [4, 16] for curve in curves)


@pytest.mark.parametrize("scaling", [True, False])
def test_a_plot(tmp_path, scaling):
    report = Report(tmp_path, CONFIG)
    report.add(line())
    if scaling:
        report.add(line(devices=16, topology="v5e:4x4", bound_per_second=6400.0))
    report.finish()
    assert (tmp_path / "plan.png").stat().st_size > 5000
    assert (tmp_path / "table.md").read_text().startswith("| what")
