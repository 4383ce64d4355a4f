"""What is drawn where: frames, colours and sizes, found in the picture itself."""

import os
import stat

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from reid_jax import pictures
from reid_jax.models.method import Maps, Segments

GREY = 128


def read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def boxes(picture, colour, *, smallest=60):
    """Rectangles (top, left, height, width) around areas of a colour, in reading
    order; `smallest` leaves out the legend and letters."""
    labelled, _ = ndimage.label((picture == colour).all(-1), np.ones((3, 3)))
    found = [
        (y.start, x.start, y.stop - y.start, x.stop - x.start)
        for y, x in ndimage.find_objects(labelled)
    ]
    return sorted(box for box in found if min(box[2:]) >= smallest)


def flat(*shape):
    return np.full((*shape, 64, 32, 3), GREY, np.uint8)


@pytest.fixture
def lists(tmp_path):
    correct = np.array([[True, False, True], [False, False, False]])
    present = np.array([[True, True, True], [True, True, False]])
    path = tmp_path / "new" / "folder" / "ranking.png"
    pictures.ranking_lists(
        path,
        flat(2),
        flat(2, 3),
        correct,
        present,
        ["person 1, camera 0", "person 22, camera 5"],
        title="market1501: rank-1 50.0%, mAP 61.2%",
    )
    return path


def test_frames_say_right_and_wrong(lists):
    picture = read(lists)
    query, right, wrong = (
        boxes(picture, colour)
        for colour in (pictures.QUERY, pictures.RIGHT, pictures.WRONG)
    )
    assert [len(query), len(right), len(wrong)] == [2, 2, 3]
    # 128 x 64 pixels with a frame of 4 on each side.
    assert {box[2:] for box in query + right + wrong} == {(136, 72)}
    # Reading order: query, right, wrong, right; then query, wrong, wrong, nothing.
    first, second = query[0][0], query[1][0]
    assert [box[0] for box in right] == [first, first]
    assert [box[0] for box in wrong] == [first, second, second]
    assert query[0][1] < right[0][1] < wrong[0][1] < right[1][1]
    assert wrong[1][1] == right[0][1]


def test_image_lies_within_its_frame(lists):
    picture = read(lists)
    top, left, height, width = boxes(picture, pictures.RIGHT)[0]
    inside = picture[top + 4 : top + height - 4, left + 4 : left + width - 4]
    assert (inside == GREY).all()
    border = picture[top : top + height, left : left + 4]
    assert (border == pictures.RIGHT).all()


def test_captions_and_title_leave_ink(lists):
    picture = read(lists)
    dark = (picture < 60).all(-1)
    (top, left, height, width), below = boxes(picture, pictures.QUERY)
    assert dark[top + height : below[0], left : left + width].any()
    assert not dark[top + height : below[0], left + width + 8 :].any()
    assert dark[: top - 60].any()


def test_notes_stand_under_their_images_and_are_broken_to_fit(tmp_path):
    names = [["a_very_long_name_of_a_file.jpg\n0.25", ""], ["b.jpg\n0.5", "d.jpg\n1"]]
    sure = np.ones((2, 2), bool)
    pictures.ranking_lists(
        tmp_path / "lists.png", flat(2), flat(2, 2), sure, sure, ["", ""], notes=names
    )
    picture = read(tmp_path / "lists.png")
    lines = []
    for top, left, height, width in boxes(picture, pictures.RIGHT):
        under = picture[top + height : top + height + 52, left : left + width + 8]
        ink = (under < 200).all(-1)
        assert not ink[:, -8:].any()  # within its column
        starts = np.diff(np.append(0, ink.any(1)).astype(int)) == 1
        lines.append(starts.sum())
    assert lines[0] >= 4
    assert lines[1] == 0
    assert lines[2:] == [2, 2]


def test_written_whole_and_readable_by_others(lists, monkeypatch):
    assert [path.name for path in lists.parent.iterdir()] == ["ranking.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(lists.stat().st_mode) == 0o666 & ~umask

    def fail(*_, **__):
        raise OSError("disk full")

    # A new file takes the name; whoever has the old one open keeps it whole.
    before = lists.read_bytes()
    opened = lists.with_name("opened")
    opened.hardlink_to(lists)
    pictures.draw(lists, flat(1), Maps(np.zeros((1, 1, 2, 2)), ("zero",)))
    assert opened.read_bytes() == before != lists.read_bytes()
    before = lists.read_bytes()
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        pictures.draw(lists, flat(1), Maps(np.zeros((1, 1, 2, 2)), ("zero",)))
    assert lists.read_bytes() == before


def tiles(picture, columns):
    """Cuts a picture of one row of 192 x 96 tiles; the grey image comes first."""
    top, left, height, width = boxes(picture, (GREY, GREY, GREY))[0]
    assert (height, width) == (192, 96)
    step = 96 + 2 * 4 + 8  # frames that stay white, and the gap
    return [
        picture[top : top + 192, left + i * step : left + i * step + 96]
        for i in range(1, columns + 1)
    ]


def test_maps_run_from_blue_to_red_and_nan_is_black(tmp_path):
    values = np.zeros((1, 2, 4, 2), np.float32)
    values[0, 0, :, 1] = 1.0
    values[0, 1, 0, 0] = np.nan
    values[0, 1, 1:] = 7.0  # beyond the scale: its end
    pictures.draw(tmp_path / "maps.png", flat(1), Maps(values, ("one", "two words")))
    first, second = tiles(read(tmp_path / "maps.png"), 2)
    cold, hot = first[96, 4], first[96, 91]
    assert cold[2] > cold[0] + 40
    assert hot[0] > hot[2] + 40
    assert (second[:48, :48] == 0).all()
    assert (second[48:].sum(-1) > 0).all()
    np.testing.assert_array_equal(second[-1, 0], hot)
    # The neighbour of the NaN keeps its own value: 0, as cold as the first map's.
    np.testing.assert_array_equal(second[2, 91], cold)


def test_nan_does_not_cool_its_neighbours(tmp_path):
    values = np.ones((1, 1, 4, 2), np.float32)
    values[0, 0, 1, 0] = np.nan
    pictures.draw(tmp_path / "maps.png", flat(1), Maps(values, ("one",)))
    (tile,) = tiles(read(tmp_path / "maps.png"), 1)
    visible = tile[tile.sum(-1) > 0]
    assert len(visible) == 192 * 96 * 7 // 8
    assert (visible == tile[-1, -1]).all()


def test_equal_groups_have_equal_colours(tmp_path):
    values = np.array([[[[0, 1], [2, -1]], [[1, 0], [-1, 2]]]])
    pictures.draw(tmp_path / "parts.png", flat(1), Segments(values, ("a", "b")))
    first, second = tiles(read(tmp_path / "parts.png"), 2)

    def corners(tile):
        cut = [tile[:96, :48], tile[:96, 48:], tile[96:, :48], tile[96:, 48:]]
        assert all((part == part[0, 0]).all() for part in cut)  # no blur at borders
        return [tuple(part[0, 0]) for part in cut]

    zero, one, two, none = corners(first)
    assert corners(second) == [one, zero, none, two]
    assert none == (GREY, GREY, GREY)
    assert len({zero, one, two, none}) == 4
    expected = 0.55 * np.array(pictures.group_colour(1)) + 0.45 * GREY
    np.testing.assert_allclose(one, expected, atol=1)


def test_group_colours_are_far_apart():
    colours = np.array([pictures.group_colour(group) for group in range(16)], int)
    gaps = np.abs(colours[:, None] - colours).sum(-1) + 999 * np.eye(16, dtype=int)
    assert gaps.min() >= 90


def test_rows_and_columns_of_several_images_and_maps(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 48, 3), np.uint8)
    values = np.full((3, 5, 6, 3), 0.5)
    pictures.draw(tmp_path / "many.png", images, Maps(values, tuple("abcde")))
    height, width, _ = read(tmp_path / "many.png").shape
    assert width == 6 * (96 + 8) + 5 * 8 + 2 * 16
    assert 3 * 200 < height < 3 * 200 + 120


def test_a_note_stands_under_its_map_and_a_frame_around_its_image(tmp_path):
    item = Maps(np.zeros((2, 2, 4, 2)), ("one", "two"))
    path = tmp_path / "answers.png"
    frames = [pictures.QUERY, pictures.WRONG]
    notes = [["", ""], ["", "hidden"]]
    pictures.draw(path, flat(2), item, frames=frames, notes=notes, row_group=2)
    picture = read(path)
    (query,), (wrong,) = (boxes(picture, colour) for colour in frames)
    assert query[2:] == wrong[2:] == (200, 104)
    assert query[1] == wrong[1]
    below = (picture[wrong[0] + 200 :] < 60).all(-1)
    step = 104 + 8  # a tile with its frame, and the gap
    ink = [below[:, wrong[1] + i * step :][:, :104].any() for i in range(3)]
    assert ink == [False, False, True]
    assert not (picture[query[0] + 200 : wrong[0]] < 60).all(-1).any()
