"""A report shows what runs have left on disk, and loads nothing."""

import base64
import html.parser
import io
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from reid_jax import __main__ as verbs
from reid_jax.errors import UserError
from reid_jax.report import charts, command, report


def _run(folder, *, rank1=0.5, rate=0.1, evaluated=True, name="tiny"):
    """A run's folder as training leaves it, made by hand."""
    folder.mkdir(parents=True)

    def write(file, value):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(value))

    optimizer = {"learning_rate": rate, "name": "sgd"}
    write("config.json", {"seed": 0, "stages": {"train": {"optimizer": optimizer}}})
    manifest = {"command": ["main.py", "--a=b c"], "git_revision": "abc", "devices": []}
    write("manifest.json", [manifest | {"packages": {"jax": "0.10.2"}}])
    rows = [{"step": i, "time": 0.0, "loss": 4.0 / i} for i in range(1, 20)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines + '{"step": 20, "lo')  # killed here
    if not evaluated:
        return folder
    entry = {"protocol": name, "step": 19, "ap": "rectangle", "camera_filter": True}
    metrics = {"metrics": {"rank1": rank1, "mAP": 0.25}, "valid_queries": 2}
    entry |= metrics
    write("results.json", [entry | {"best": {"step": 9, "metrics": {}}}])
    queries = [
        {"file": f"{i}.jpg", "person": "7", "camera": "1"}
        | {"average_precision": 0.1 * i, "first_rank": 4.0 - i}
        for i in (3, 1, 2)
    ]
    cameras = {"query": ["c1"], "gallery": ["c1", "c2"]}
    cameras |= {"right": [[0, 3]], "asked": [[0, 4]]}
    distances = {"edges": [0, 0.5, 1, 1.5], "right": [8, 2, 0], "wrong": [0, 1, 9]}
    details = {"queries": queries, "cameras": cameras, "distances": distances}
    pictured = f"pictures/{name.replace(':', '-')}"
    write(f"{pictured}/details.json", entry | details)
    Image.new("RGB", (40, 20), "red").save(folder / pictured / "ranking.png")
    return folder


class _Reader(html.parser.HTMLParser):
    """Text of a page, and whether every element is closed where it was opened."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.sources = [], "", []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.sources += [v for k, v in attrs if k in ("src", "href", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def test_two_runs_side_by_side(tmp_path, capsys):
    one = _run(tmp_path / "one", rank1=0.5, rate=0.1)
    other = _run(tmp_path / "other", rank1=0.625, rate=0.2)
    out = tmp_path / "both.html"
    command.main([str(one), str(other), "--output", str(out)])
    assert capsys.readouterr().out == f"wrote {out}\n"
    page = out.read_text()
    seen = _Reader(page)
    lines = seen.text.split("\n")
    # The difference is in points, and only the other run has one.
    assert (lines.count("50.0%"), lines.count("62.5%"), lines.count(" +12.5")) == (
        *(1, 1, 1),
    )
    # What differs comes before all fields.
    assert lines.index("stages.train.optimizer.learning_rate") < lines.index("seed")
    assert lines.count("stages.train.optimizer.name") == 1
    # 3 of the 4 queries that camera 2 was asked, and none of camera 1.
    assert page.count('title="3 of 4">75%</td>') == 2
    # The hardest query first, the easiest after a click.
    assert lines.index("1.jpg") < lines.index("2.jpg") < lines.index("3.jpg")
    assert seen.text.count("2 of 3 queries have a wrong first answer") == 2
    assert "main.py '--a=b c'" in lines
    assert "0.10.2" in lines
    # Below 0.5 lie 8 of 10 right pairs and no wrong one; below 1 all, and 1 of 10.
    threshold = "threshold 1, where 5.00% of the right pairs are missed"
    assert f"one at step 19, last state: {threshold}" in seen.text
    assert seen.sources
    assert all(source.startswith("data:image/") for source in seen.sources)
    assert not re.search(r"url\(|@import|<script|<link", page)
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)
    with pytest.raises(UserError, match="a run is named twice"):
        command.main([str(one), f"{one}/", "--output", str(out)])


def test_where_galleries_are_drawn_no_first_answer_is_wrong(tmp_path):
    """Its rank is a mean over the draws."""
    run = _run(tmp_path / "run")
    (entry,) = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps([entry | {"shots": "single"}]))
    command.main([str(run), "--output", str(tmp_path / "r.html")])
    seen = _Reader((tmp_path / "r.html").read_text())
    assert "1.jpg" in seen.text
    assert "wrong first answer" not in seen.text


def test_states_and_reranking_have_rows_and_pictures_of_their_own(tmp_path):
    run = _run(tmp_path / "run")
    (last,) = json.loads((run / "results.json").read_text())
    best = {k: v for k, v in last.items() if k != "best"}
    last["best"]["metrics"] = {"rank1": 0.625, "mAP": 0.375}
    best |= last["best"] | {"checkpoint": str(run / "checkpoints" / "best" / "9")}
    steps = {"flip": {}, "k_reciprocal": {"k1": 20, "k2": 6, "lambda_value": 0.3}}
    points = [
        {"fpr": 0.001, "tpr": 0.875, "threshold": 1.25},
        {"fpr": 0.0001, "tpr": 0.0, "threshold": None},
    ]
    reranked = best | {
        "rerank": steps,
        "metrics": {"rank1": 0.75, "mAP": 0.5},
        "metrics_before_reranking": best["metrics"],
        "verification": {"at": points},
    }
    steps = steps | {"k_reciprocal": steps["k_reciprocal"] | {"k1": 10}}
    narrow = reranked | {"rerank": steps, "metrics": {"rank1": 0.875, "mAP": 0.625}}
    other = best | {"step": 5, "metrics": {"rank1": 0.0, "mAP": 0.125}}
    other["checkpoint"] = str(tmp_path / "other" / "checkpoints" / "best" / "5")
    namesake = str(tmp_path / "away" / "run")
    away = other | {"run": namesake, "metrics": {"rank1": 0.25, "mAP": 0.0625}}
    away["checkpoint"] = f"{namesake}/checkpoints/best/5"
    entries = [last, best, reranked, narrow | {"verification": {}}, other, away]
    (run / "results.json").write_text(json.dumps(entries))
    # The evaluations that drew: of the best state, but not the one with other options.
    names = ("tiny", "reranked-flip-k_reciprocal")
    plain, apart = (run / "pictures" / name for name in names)
    details = json.loads((plain / "details.json").read_text())
    for folder, entry in ((plain, best), (apart / "tiny", reranked)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "details.json").write_text(json.dumps(details | entry))
    Image.new("RGB", (40, 20)).save(apart / "tiny" / "ranking_reranked.png")

    (missing,) = report.write([str(run)], tmp_path / "out.html")
    assert f"no details in pictures/{names[1]},k1=10/tiny" in missing
    page = (tmp_path / "out.html").read_text()
    lines = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in lines]
    both = "run at step 9, best state, re-ranked (flip, k_reciprocal)"
    for row in (
        ["run at step 19, last state", "50.0%", "25.0%"],
        ["run at step 9, best state", "62.5%", "37.5%"],
        [both, "75.0%", "50.0%"],
        ["run at step 9, best state, before re-ranking", "62.5%", "37.5%"],
        [both.replace("ocal)", "ocal k1=10)"), "87.5%", "62.5%"],
        ["run at step 5, best state of other", "0.0%", "12.5%"],
        [f"run at step 5, best state of {namesake}", "25.0%", "6.2%"],
        [both, "0.001", "87.5%", "1.25"],
        [both, "0.0001", "0.0%", "none"],
    ):
        assert rows.count(row) == 1
    text = _Reader(page).text
    assert re.findall(r"(?m)^(run.*): ranking( reranked)?$", text) == [
        ("run at step 9, best state", ""),
        (both, " reranked"),
    ]


def test_names_are_text(tmp_path):
    run = _run(tmp_path / "<b>&run", name="<i>x")
    report.write([str(run)], tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text()
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;&amp;run" in page


def test_a_run_without_an_evaluation_says_so(tmp_path, capsys):
    run = _run(tmp_path / "run", evaluated=False)
    command.main([str(run)])
    note = capsys.readouterr().out.splitlines()[0]
    assert note == "note: run: it was not evaluated (--mode=evaluate does)"
    text = _Reader((run / "report.html").read_text()).text
    assert "it was not evaluated" in text
    assert "loss: 0.2105 at the end" in text


def test_details_of_another_evaluation_are_not_shown(tmp_path):
    run = _run(tmp_path / "run")
    (entry,) = json.loads((run / "results.json").read_text())
    later = entry | {"step": 30, "metrics": {"rank1": 1.0}}
    (run / "results.json").write_text(json.dumps([entry, later]))
    missing = report.write([str(run)], tmp_path / "out.html")
    assert "evaluate it once more" in missing[0]
    text = _Reader((tmp_path / "out.html").read_text()).text
    assert "100.0%" in text
    assert "1.jpg" not in text


def _entry(**fields):
    return json.dumps([{"protocol": "tiny", "step": 19, "metrics": {}} | fields])


def _cameras(**fields):
    cameras = {"query": ["c1"], "gallery": ["c1", "c2"]}
    return cameras | {"right": [[0, 3]], "asked": [[0, 4]]} | fields


def _distances(**fields):
    return {"edges": [0, 0.5, 1, 1.5], "right": [8, 2, 0], "wrong": [0, 1, 9]} | fields


def _details(**fields):
    whole = {"queries": [], "cameras": _cameras(), "distances": _distances()}
    return json.dumps(whole | fields)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "is no run: it has no config.json"),
        ("metrics.jsonl", "{}\n{}\n", "metrics.jsonl, line 1, is no row of a run"),
        ("results.json", "[{]", "results.json is damaged"),
        ("results.json", '[{"step": 1}]', r"results.json is .*: \[0\] has no protocol"),
        (
            "results.json",
            _entry(step="x"),
            r"results.json .*: \[0\].step is not a whole",
        ),
        ("results.json", _entry(step=-1e308), r"\[0\].step is not a whole number"),
        ("results.json", _entry(metrics=None), r"results.json .* \[0\].metrics is no"),
        ("results.json", _entry(metrics={"mAP": 10**400}), "metrics.mAP is not a numb"),
        ("results.json", _entry(protocol=5), r"\[0\].protocol is not a name"),
        ("results.json", _entry(changed=[]), r"\[0\].changed is no object"),
        ("results.json", _entry(best="x"), r"\[0\].best is no object"),
        ("manifest.json", '[{"command": null}]', r"manifest.json .*: \[0\].command is"),
        ("metrics.jsonl", '{"step": 1e308}\n' * 2, r"metrics.jsonl .*: \[0\].step is"),
        ("metrics.jsonl", '{"step": NaN}\n' * 2, r"metrics.jsonl .*: \[0\].step is"),
        ("pictures/tiny/details.json", _details(queries=[{}]), r"\[0\] has no file"),
        ("pictures/tiny/details.json", _details(cameras=None), "cameras is no object"),
        (
            *("pictures/tiny/details.json", _details(cameras=_cameras(asked=[[4]]))),
            "details.json is damaged: cameras.asked is no table",
        ),
        (
            *("pictures/tiny/details.json", _details(distances=_distances(right=[1]))),
            "details.json is damaged: distances are no bins",
        ),
        (
            "pictures/tiny/details.json",
            _details(distances=_distances(edges=[0, 1, 2, -1])),
            "details.json is damaged: distances are no bins",
        ),
        ("pictures/tiny/details.json", "x", "details.json is damaged"),
        ("pictures/tiny/details.json", "{}", "details.json is damaged"),
        ("pictures/tiny/ranking.png", "x", "ranking.png is no picture"),
    ],
)
def test_what_is_damaged_is_named(tmp_path, file, content, message):
    run = _run(tmp_path / "run")
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    with pytest.raises(UserError, match=message):
        report.write([str(run)], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("value", [1e308, -1e308, 5e-324, 10**400, 1e-310, 3e38])
def test_no_number_of_a_curve_is_a_crash(tmp_path, value):
    """It is drawn, or left out as infinities are."""
    run = _run(tmp_path / "run", evaluated=False)
    rows = [{"step": i, "loss": y} for i, y in enumerate((0.0, value, value))]
    for kept in (rows, rows[1:], [*rows, {"step": 3, "loss": -value}]):
        text = "".join(json.dumps(row) + "\n" for row in kept)
        (run / "metrics.jsonl").write_text(text)
        report.write([str(run)], tmp_path / "out.html")
        page = (tmp_path / "out.html").read_text()
        points = re.findall(r'points="([^"]*)"|c[xy]="([^"]*)"', page)
        assert "nan" not in str(points)
        assert "inf" not in str(points)


def test_a_picture_larger_than_a_webp(tmp_path):
    run = _run(tmp_path / "run")
    Image.new("RGB", (10, 20_000), "red").save(run / "pictures/tiny/ranking.png")
    report.write([str(run)], tmp_path / "out.html")
    data = re.search(
        r"data:image/webp;base64,([^\"]*)", (tmp_path / "out.html").read_text()
    )
    assert Image.open(io.BytesIO(base64.b64decode(data[1]))).height == 16383


def test_a_picture_of_more_pixels_than_can_be_meant(tmp_path, monkeypatch):
    run = _run(tmp_path / "run")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(UserError, match=r"ranking\.png is no picture .*bomb"):
        report.write([str(run)], tmp_path / "out.html")


def test_where_a_report_cannot_be_written(tmp_path):
    run = _run(tmp_path / "run")
    with pytest.raises(UserError, match="run is a folder; name an HTML file in it"):
        report.write([str(run)], run)
    with pytest.raises(UserError, match=r"cannot write to .*config\.json"):
        report.write([str(run)], run / "config.json" / "out.html")


def test_a_file_name_that_is_no_text(tmp_path):
    run = _run(tmp_path / "run")
    details = run / "pictures" / "tiny" / "details.json"
    details.write_text(details.read_text().replace("1.jpg", "\\udcff.jpg"))
    report.write([str(run)], tmp_path / "out.html")
    assert "?.jpg" in (tmp_path / "out.html").read_text()


def test_lines_are_drawn_to_scale_and_keep_their_peaks():
    values = np.zeros(5000)
    values[1234], values[4000] = 8.0, -2.0
    drawn = charts.lines("x", [("#000", list(enumerate(values)))])
    points = re.search(r'points="([^"]*)"', drawn)[1].split()
    x, y = np.array([point.split(",") for point in points], float).T
    assert len(points) < 700
    top, bottom = y.min(), y.max()
    assert x[y.argmin()] == pytest.approx(x[0] + (x[-1] - x[0]) * 1234 / 4999, abs=0.2)
    assert x[y.argmax()] == pytest.approx(x[0] + (x[-1] - x[0]) * 4000 / 4999, abs=0.2)
    assert y[0] == pytest.approx(top + 0.8 * (bottom - top), abs=0.1)


def test_the_verb(tmp_path, capsys):
    run = _run(tmp_path / "run")
    verbs.main(["report", str(run)])
    assert capsys.readouterr().out == f"wrote {run / 'report.html'}\n"
    with pytest.raises(SystemExit) as ended:
        verbs.main(["report", str(tmp_path)])
    assert ended.value.code == 2
    assert "is no run" in capsys.readouterr().err
