"""Inspection: the figures, the suspicions, and the sheet."""

import cv2
import numpy as np
import pytest

from data_pipelines import images, inspect, store
from data_pipelines.entries import Entry, Split
from data_pipelines.inspection.suspicions import suspicions as suspected
from data_pipelines.part_labels import label_files
from tests import commands
from tests.data_pipelines.market_folder import jpeg

# Split -> (person, camera, picture); equal pictures have equal bytes.
CLEAN = {
    "train": [(1, 0, 0), (1, 1, 1), (1, 1, 2), (2, 0, 3)],
    "query": [(7, 0, 4), (8, 0, 5)],
    "gallery": [(7, 1, 6), (8, 2, 7), (8, 0, 8), (0, 0, 9)],
}


def prepared(folder, splits, *, labelled=()):
    """Stores pictures, those of `labelled` with part labels."""
    np.save(folder / "p.npy", np.full((36, 2, 1), 0.9, np.float32))
    label = label_files.Label(folder / "p.npy", "pifpaf")
    made = {}
    for name, rows in splits.items():
        entries = []
        for n, (person, camera, picture) in enumerate(rows):
            path = folder / f"{name[0]}{n}.jpg"
            path.write_bytes(jpeg(32 + picture, 16, seed=picture))
            has = label if (name, n) in labelled else None
            entries.append(Entry(path, person, camera, has))
        made[name] = Split(tuple(entries))
    store.builder(
        made, name="own", title="own", data_dir=folder, track=lambda e, _: e
    ).download_and_prepare()
    return folder


def found(folder):
    return inspect.inspect("own", folder, progress=False)


def suspicions(folder, **changes):
    return list(suspected(found(prepared(folder, CLEAN | changes))))


def test_figures_of_a_clean_data_set(tmp_path):
    prepared(tmp_path, CLEAN, labelled={("train", 0), ("train", 3), ("train", 1)})
    text = inspect.report(found(tmp_path))
    cells = [" ".join(line.split()) for line in text.splitlines()]
    assert cells[1] == "train 4 2 2 1 / 2 / 3 32 x 16 to 35 x 16 75.0%"
    assert cells[2] == "query 2 2 1 1 / 1 / 1 36 x 16 to 37 x 16 0.0%"
    assert "1 of them distractors" in text
    table = text.split("identities of each camera:\n")[1].splitlines()
    assert [line.split() for line in table[:4]] == [
        ["1", "2", "3"],
        ["train", "2", "1", "0"],
        ["query", "2", "0", "0"],
        ["gallery", "1", "1", "1"],
    ]
    assert text.endswith("Suspicious entries: none.")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"train": [(1, 0, 0), (1, 1, 0), (2, 0, 3)]},
            ["1 image is there several times within a split: train/t0.jpg = train/t1"],
        ),
        (
            {"train": [(1, 0, 4), (2, 1, 1)]},
            [
                "several times in several splits: train/t0.jpg = query/q0.jpg",
                "several times under several identities: train/t0.jpg = query/q0.jpg",
            ],
        ),
        (
            {"query": [(7, 1, 4), (8, 0, 5)]},
            ["1 identity was seen by one camera only", "no match: 7"],
        ),
        (  # seen by another camera in the query, which helps the other query only
            {"query": [(7, 0, 4), (7, 1, 10), (8, 0, 5)]},
            ["1 identity was seen by one camera only in the gallery", "no match: 7"],
        ),
        (
            {"query": [(7, 0, 4), (9, 0, 5)]},
            ["1 query identity is not", "gallery: 9"],
        ),
        (
            {"train": [(1, 0, 0), (8, 1, 1)]},
            ["1 identity is in train and in test: 8"],
        ),
        (
            {
                "train": [(1, 0, 0), (9, 1, 1)],
                "gallery": [*CLEAN["gallery"], (9, 1, 11)],
            },
            ["1 identity is in train and in test: 9"],
        ),
    ],
)
def test_suspicions(tmp_path, changes, words):
    got = suspicions(tmp_path, **changes)
    for text in words:
        assert any(text in line for line in got), got
    assert len(got) <= len(words)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    prepared(tmp_path, CLEAN)
    cut = (tmp_path / "t2.jpg").read_bytes()
    decode = images.decode

    def fail(encoded):
        if encoded == cut:
            raise ValueError("not a whole image")
        return decode(encoded)

    monkeypatch.setattr(images, "decode", fail)
    broken = found(tmp_path)
    got = list(suspected(broken))
    assert got == ["train: 1 image cannot be read: t2.jpg"]
    inspect.contact_sheet(broken, tmp_path / "broken.png")
    assert cv2.imread(str(tmp_path / "broken.png")) is not None


def test_the_sheet_has_a_row_for_each_identity_and_paints_labels(tmp_path):
    sheets = []
    for name, labelled in (("x", ()), ("y", {("train", 0)})):
        (tmp_path / name).mkdir()
        prepared(tmp_path / name, CLEAN, labelled=labelled)
        inspect.contact_sheet(found(tmp_path / name), tmp_path / f"{name}.png")
        sheets.append(cv2.imread(str(tmp_path / f"{name}.png")).astype(int))
    plain, painted = sheets
    assert plain.shape == painted.shape
    # Three captions, and two identities in each split.
    assert plain.shape[0] == 3 * 22 + 6 * (128 + 18)
    changed = np.argwhere((plain != painted).any(axis=2))
    # Only the first tile of the first row, and nearly all of it.
    assert changed.min(axis=0).tolist() == [22, 0]
    assert changed.max(axis=0).tolist() == [22 + 127, 63]
    assert len(changed) > 0.95 * 128 * 64


def test_command_line(tmp_path, capsys):
    prepared(tmp_path, CLEAN)
    out = tmp_path / "sheet.png"
    arguments = [f"--data_dir={tmp_path}", f"--out={out}"]
    assert commands.ended(inspect.main, ["own", *arguments]) == 0
    assert "Suspicious entries: none." in capsys.readouterr().out
    assert out.stat().st_size > 1000
    assert commands.ended(inspect.main, ["onw", *arguments]) == 2
    assert "Did you mean own?" in capsys.readouterr().err
    arguments[1] = f"--out={out / 'sheet.png'}"
    assert commands.ended(inspect.main, ["own", *arguments]) == 2
    assert "Cannot write --out" in capsys.readouterr().err
    arguments[1] = f"--out={tmp_path / 'sheet.jpg'}"
    assert commands.ended(inspect.main, ["own", *arguments]) == 2
    assert "ending in .png" in capsys.readouterr().err


def test_a_data_set_without_identities_in_a_split(tmp_path):
    splits = {"train": [(1, 0, 0), (1, 1, 1)], "gallery": [(0, 0, 2), (0, 3, 3)]}
    prepared(tmp_path, splits)
    text = inspect.report(found(tmp_path))
    assert "Suspicious entries: none." in text
    inspect.contact_sheet(found(tmp_path), tmp_path / "sheet.png")


def test_cameras_and_persons_have_the_names_of_the_source(tmp_path):
    splits = {
        name: Split(
            tuple(
                Entry(_image(tmp_path / f"{name[0]}{n}.jpg", n), person, camera)
                for n, (person, camera, _) in enumerate(rows)
            ),
            person_names={7: "anna", 8: "Bert"},
            camera_names={0: "door", 1: "hall", 2: "long corridor"},
        )
        for name, rows in (CLEAN | {"query": [(7, 0, 4), (9, 0, 5)]}).items()
    }
    store.builder(
        splits, name="own", title="own", data_dir=tmp_path, track=lambda e, _: e
    ).download_and_prepare()
    text = inspect.report(found(tmp_path))
    table = text.split("identities of each camera:\n")[1].splitlines()
    assert table[0].split() == ["door", "hall", "long", "corridor"]
    assert len(table[0]) == len(table[1])
    assert "Suspicious entries" in text


def _image(path, seed):
    path.write_bytes(jpeg(32 + seed, 16, seed=seed))
    return path


def test_the_sheet_lies_beside_the_data_set(tmp_path, monkeypatch):
    prepared(tmp_path, CLEAN)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert commands.ended(inspect.main, ["own", "--data_dir=.."]) == 0
    assert (tmp_path / "own.png").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_interruption_is_one_line(tmp_path, monkeypatch, capsys):
    prepared(tmp_path, CLEAN)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "decode", interrupt)
    assert commands.ended(inspect.main, ["own", f"--data_dir={tmp_path}"]) == 130
    assert capsys.readouterr().err.endswith("no contact sheet was written.\n")
