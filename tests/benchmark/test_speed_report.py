"""Lines, efficiency, table and plot of measurements."""

import json

import cv2
import numpy as np
import pytest

from reid_jax.benchmark import speed_report
from reid_jax.benchmark.speed_report import Report, efficiencies
from reid_jax.errors import UserError


def _line(devices=1, batch=64, per_second=100.0, **changes):
    return {
        "config": "toy-demo",
        "what": "train:train",
        "sweep": {},
        "scaling": "strong",
        "devices": devices,
        "processes": 1,
        "device_kind": "TPU v4",
        "platform": "tpu",
        "unit": "images",
        "batch": batch,
        "seconds": batch / per_second,
        "per_second": per_second,
        "per_second_per_device": per_second / devices,
        "flops": 12_345_678_900,
        "mfu": 0.25,
        "peak_tflops": 275.0,
        "peak_source": "a data sheet",
        "peak_bytes": 3 * 2**30,
        "peak_bytes_from": "allocator",
        "compile_seconds": 12.5,
        **changes,
    }


def test_strong_scaling_compares_equal_batches():
    lines = [
        _line(1, 64, 100.0),
        _line(4, 64, 300.0),
        _line(4, 128, 390.0),  # nothing to compare with
        _line(2, 64, 180.0),
        _line(2, 64, 1e6, sweep={"model.dtype": "bfloat16"}),
    ]
    assert efficiencies(lines) == [1.0, 0.75, None, 0.9, None]


def test_weak_scaling_compares_equal_batches_per_device():
    weak = {"scaling": "weak"}
    lines = [
        _line(8, 512, 640.0, **weak),
        _line(2, 128, 200.0, **weak),  # the fewest devices need not be one, nor first
        _line(8, 128, 100.0, **weak),
    ]
    assert efficiencies(lines) == [0.8, 1.0, None]


def test_a_failed_point_has_no_efficiency():
    failed = _line(1) | {"error": "out of memory"}
    del failed["per_second_per_device"]
    assert efficiencies([failed, _line(2), _line(4, per_second=150.0)]) == [
        *(None, 1.0, 0.75)
    ]


def test_the_table_says_what_the_lines_say():
    failed = {"what": "embed", "error": "out of memory", "batch": 4096}
    lines = [
        _line(sweep={"model.dtype": "bfloat16"}, per_second=12_345.6),
        {**{n: _line()[n] for n in ("sweep", "scaling", "devices")}, **failed}
        | {"device_kind": "TPU v4"},
    ]
    header, _, first, second = speed_report.table(lines).splitlines()
    cells = [cell.strip() for cell in first.strip("| ").split("|")]
    assert dict(
        zip([c.strip() for c in header.strip("| ").split("|")], cells, strict=True)
    ) == {
        "what": "train:train",
        "fields": "dtype=bfloat16",
        "devices": "1",
        "batch": "64",
        "ms": "5.18",
        "per second": "12,346",
        "per device": "12,346",
        "efficiency": "",
        "GFLOPs": "12.3",
        "MFU": "25.0%",
        "peak memory": "3,072 MiB (a)",
        "compile": "12.5 s",
    }
    assert "4096" in second
    assert "out of memory" in second
    assert len(header) == len(first) == len(second)


def test_a_report_adds_up_and_replaces(tmp_path):
    config = {"model": {"width": 3}, "seed": 0}
    report = Report(tmp_path, config)
    other = Report(tmp_path, config)  # another launch at the same time
    report.add(_line(1))
    other.add(_line(2, per_second=150.0))
    later = Report(tmp_path, config)
    later.add(_line(2, per_second=190.0))
    later.add(_line(2, per_second=170.0, processes=2))
    text = report.finish()
    path = tmp_path / "benchmark.jsonl"
    stored = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["per_second"] for line in stored] == [100.0, 190.0, 170.0]
    assert "95.0%" in text
    table = (tmp_path / "table.md").read_text()
    assert table.startswith(text)
    assert "MFU against 275 TFLOP/s of dense bf16 per device (a data sheet)" in table
    picture = cv2.imread(str(tmp_path / "benchmark.png"))
    assert picture.shape[1] == 1000
    assert len(np.unique(picture)) > 10


def test_unknown_peaks_and_shared_cores_are_named(tmp_path):
    report = Report(tmp_path, {"seed": 0})
    unknown = {"mfu": None, "peak_tflops": None, "peak_source": None}
    report.add(_line(2, device_kind="cpu", platform="cpu", **unknown))
    report.finish()
    table = (tmp_path / "table.md").read_text()
    assert "on cpu: no MFU" in table
    assert "share its cores" in table


def test_another_config_is_refused(tmp_path):
    Report(tmp_path, {"model": {"width": 3}}).add(_line())
    with pytest.raises(UserError, match="another --workdir"):
        Report(tmp_path, {"model": {"width": 4}})


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "benchmark.jsonl").write_text('{"a":')
    with pytest.raises(UserError, match=r"benchmark\.jsonl is damaged"):
        Report(tmp_path, {})


@pytest.mark.parametrize("over", ["devices", "batch", "sweep"])
def test_plots_over_what_differs(tmp_path, drawn, over):
    values = {"devices": [1, 2], "batch": [64, 128], "sweep": [{"a.b": 1}, {"a.b": 2}]}
    speeds = (100.0, 160.0)
    pairs = zip(values[over], speeds, strict=True)
    lines = [_line(per_second=speed) | {over: value} for value, speed in pairs]
    for line in lines:
        line["per_second_per_device"] = line["per_second"] / line["devices"]
    speed_report.plot(tmp_path / "plot.png", lines)
    left, right = drawn[0].axes
    if over == "sweep":
        assert [bar.get_height() for bar in left.patches] == [100.0, 160.0]
        assert [t.get_text() for t in left.get_xticklabels()] == ["b=1", "b=2"]
    else:
        (curve,) = left.lines
        np.testing.assert_array_equal(curve.get_xdata(), values[over])
        np.testing.assert_array_equal(curve.get_ydata(), speeds)
    assert right.get_ylabel() == ("efficiency" if over == "devices" else "MFU")


OTHERS = {"device_kind": "GPU", "processes": 4}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        # As many processes as devices are no other series.
        ([{"devices": n, "processes": n} for n in (1, 2)], ["batch 64"]),
        (
            [{"devices": n, **more} for more in ({}, OTHERS) for n in (4, 8)],
            ["batch 64 TPU v4 processes=1", "batch 64 GPU processes=4"],
        ),
        (
            [{"batch": n, **more} for more in ({}, OTHERS) for n in (64, 128)],
            ["toy-demo TPU v4 processes=1", "toy-demo GPU processes=4"],
        ),
        ([{}, {"scaling": "weak"}], ["toy-demo strong", "toy-demo weak"]),
    ],
)
def test_a_series_is_of_one_kind(tmp_path, drawn, values, names):
    speed_report.plot(tmp_path / "plot.png", [_line(**each) for each in values])
    axes = drawn[0].axes[0]
    curves = [curve.get_label() for curve in axes.lines]
    assert names == (curves or [text.get_text() for text in axes.get_xticklabels()])
