"""Pictures of more than one image's pixels: visibility, routes and pairs."""

import numpy as np
import pytest
from scipy import ndimage

from reid_jax import pictures
from reid_jax.models.method import Correspondences, Maps, PairMaps, Routes, Segments
from reid_jax.pictures import sheet, single
from reid_jax.pictures.pairs import LINES
from tests.test_pictures import GREY, boxes, flat, read

WHITE = (255, 255, 255)


def lists(path, **rest):
    """Two queries of a list of two, the last place of which is empty."""
    correct = np.array([[True, False], [True, False]])
    present = np.array([[True, True], [True, False]])
    images = flat(2), flat(2, 2)
    pictures.ranking_lists(path, *images, correct, present, ["one", "two"], **rest)
    return read(path)


@pytest.mark.parametrize("kind", [bool, float])
def test_squares_show_which_parts_are_visible(tmp_path, kind):
    visible = np.random.default_rng(0).random((2, 3, 11)) > 0.5
    # Numbers count as visible above a half.
    values = np.where(visible, 0.51, 0.5) if kind is float else visible
    picture = lists(
        tmp_path / "lists.png",
        query_visibility=values[:, 0],
        gallery_visibility=values[:, 1:],
    )
    frames = [boxes(picture, c) for c in (pictures.QUERY, pictures.RIGHT)]
    frames.append(boxes(picture, pictures.WRONG))
    for column, found in enumerate(frames):
        for row, (top, left, height, _) in enumerate(found):
            for part in range(11):
                # Eight squares of 6 and a gap of 2 fill a line of 64.
                y = top + height + 2 + part // 8 * 8
                x = left + 4 + part % 8 * 8
                square = picture[y : y + 6, x : x + 6]
                colour = pictures.group_colour(part)
                assert (square[[0, -1]] == colour).all()
                inside = colour if visible[row, column, part] else WHITE
                assert (square[1:-1, 1:-1] == inside).all()
    assert [len(found) for found in frames] == [2, 2, 1]


def test_no_squares_where_visibility_is_unknown_or_the_place_empty(tmp_path):
    bare = lists(tmp_path / "bare.png")
    shown = lists(
        tmp_path / "shown.png",
        query_visibility=np.ones((2, 3)),
        gallery_visibility=np.ones((2, 2, 3)),
    )
    colour = pictures.group_colour(1)

    def squares(picture):
        return len(boxes(picture, colour, smallest=6))

    assert (squares(bare), squares(shown)) == (0, 5)
    # Another two entries in the legend: a full square, and an outline.
    square, outline = boxes(shown, sheet.INK, smallest=12)
    assert square[2:] == outline[2:] == (12, 12)
    assert boxes(bare, sheet.INK, smallest=12) == []


def test_the_legend_names_the_parts(tmp_path):
    values = {
        "query_visibility": np.ones((2, 3)),
        "gallery_visibility": np.ones((2, 2, 3)),
    }
    bare = lists(tmp_path / "bare.png", **values)
    named = lists(tmp_path / "named.png", **values, part_titles=("head", "b", "c"))

    def swatches(picture):
        colours = map(pictures.group_colour, range(3))
        return [len(boxes(picture, colour, smallest=12)) for colour in colours]

    assert (swatches(bare), swatches(named)) == ([0, 0, 0], [1, 1, 1])


def test_rows_that_belong_together_stand_closer(tmp_path):
    tops = []
    for group in (1, 2):
        path = tmp_path / "grouped.png"
        images, sure = flat(4), np.ones((4, 1), bool)
        pictures.ranking_lists(
            path, images, flat(4, 1), sure, sure, list("abcd"), row_group=group
        )
        found = [box[0] for box in boxes(read(path), pictures.QUERY)]
        tops.append(np.diff(found))
    step = tops[0][0]
    assert (tops[0] == step).all()
    assert list(tops[1]) == [step, step + 24, step]


def legend_swatches(picture):
    """Squares of 12 above the images, from left to right, line by line."""
    top = boxes(picture, (GREY, GREY, GREY))[0][0]
    found = []
    for group in range(12):
        colour = pictures.group_colour(group)
        found.append(boxes(picture[:top], colour, smallest=12)[:1])
    return [box[0][:2] for box in found if box]


def test_a_legend_names_all_groups_in_as_many_lines_as_it_needs(tmp_path):
    values = np.zeros((1, 1, 2, 2), int)
    few = Segments(values, ("a",), ("head", "feet"))
    many = Segments(values, ("a",), tuple(f"a rather long name {i}" for i in range(9)))
    places = []
    for item in (few, many, Segments(values + 2, ("a",))):
        pictures.draw(tmp_path / "parts.png", flat(1), item)
        places.append(legend_swatches(read(tmp_path / "parts.png")))
    # Named groups that do not occur are named, too.
    assert [len(found) for found in places] == [2, 9, 3]
    assert len({top for top, _ in places[0]}) == 1
    assert len({top for top, _ in places[1]}) > 2
    assert places[1] == sorted(places[1])


@pytest.fixture
def routes(tmp_path):
    """Three layers of two scales; the first layer has only one cell."""
    activity = np.array([[[0.5, np.nan], [0.0, 1.0], [0.25, 0.75]]])
    paths = np.full((1, 2, 2, 2), np.nan)
    paths[0, 0, 0] = [0.0, 1.0]
    paths[0, 0, 1] = [1.0, 1.0]  # from a cell that is not there
    paths[0, 1, 0, 0] = 0.5
    item = Routes(activity, paths, ("fine", "coarse"))
    pictures.draw(tmp_path / "routes.png", flat(1), item)
    picture = read(tmp_path / "routes.png")
    top, left, _, width = boxes(picture, (GREY, GREY, GREY))[0]
    # The diagram's tile has the gap and two white frames on its left.
    corner = np.array([top, left + width + 4 + 8 + 4])

    def at(layer, scale, towards=None, part=0.5):
        place = np.array(single.cell_place(layer, scale, item.scales))
        if towards is not None:
            end = np.array(single.cell_place(*towards, item.scales))
            place = (1 - part) * place + part * end
        return picture[tuple((corner + place).astype(int))]

    return at


def test_cells_are_filled_by_their_activity(routes):
    full = np.array(single.ACTIVE)
    for layer, scale, level in [(0, 0, 0.5), (1, 0, 0), (1, 1, 1), (2, 0, 0.25)]:
        wanted = 255 + level * (full - 255)
        np.testing.assert_allclose(routes(layer, scale), wanted, atol=1)
    np.testing.assert_array_equal(routes(0, 1), WHITE)


def test_paths_are_the_darker_the_more_weight_they_have(routes):
    heavy, medium, light = (
        routes(0, 0, (1, 1)).sum(),
        routes(1, 0, (2, 0)).sum(),
        routes(0, 0, (1, 0)).sum(),
    )
    assert heavy < 3 * 40 < medium < 3 * 160 < light < 3 * 250
    for start, end in [((0, 1), (1, 1)), ((1, 1), (2, 1)), ((1, 0), (2, 1))]:
        # No path, or none that has two ends. Away from where other lines cross.
        assert (routes(*start, end, part=0.4) == 255).all()


def test_both_axes_of_routes_are_named(tmp_path, monkeypatch):
    """Words, each under or left of the numbers that it names."""
    item = Routes(np.ones((1, 3, 2)), np.ones((1, 2, 2, 2)), ("fine", "coarse"))
    written = []
    real = single.ImageDraw.ImageDraw.text

    def spy(pen, place, text, **rest):
        written.append((text, place))
        real(pen, place, text, **rest)

    monkeypatch.setattr(single.ImageDraw.ImageDraw, "text", spy)
    pictures.draw(tmp_path / "routes.png", flat(1), item)
    places = dict(written)
    for layer in range(3):
        row, column = single.cell_place(layer, 1, item.scales)
        assert places[str(layer + 1)][0] == column
        assert row < places[str(layer + 1)][1] < places["layer"][1]
    assert "scale" in places
    picture = read(tmp_path / "routes.png")
    top, left, height, width = boxes(picture, (GREY, GREY, GREY))[0]
    assert height == single.ROUTE_HEIGHT
    # The name of the vertical axis stands left of the names of the scales.
    beside = picture[top : top + height, left + width + 16 :]
    words, _ = ndimage.label((beside[:, : places["fine"][0]] < 128).all(-1))
    assert words.max() > 0


def test_what_is_drawn_stands_under_the_title(tmp_path):
    sizes = []
    for about in ("", "layer 3 of 8, head 1"):
        item = Maps(np.zeros((1, 1, 2, 2)), ("a",), about=about)
        pictures.draw(tmp_path / "maps.png", flat(1), item, title="attention")
        sizes.append(boxes(read(tmp_path / "maps.png"), (GREY, GREY, GREY))[0][0])
    assert sizes[1] > sizes[0] + 12


def test_weights_over_one_are_drawn_to_their_own_scale(tmp_path):
    shades = []
    for most in (1.0, 3.0):
        activity = np.array([[[most], [most / 2]]])
        item = Routes(activity, np.ones((1, 1, 1, 1)), ("one",))
        pictures.draw(tmp_path / "routes.png", flat(1), item)
        picture = read(tmp_path / "routes.png")
        top = boxes(picture, (GREY, GREY, GREY))[0][0]
        shades.append(picture[top:])
    np.testing.assert_array_equal(*shades)


RANKS = np.array([[1, 2, 9], [1, 2, 0]])
CORRECT = np.array([[True, False, True], [False, False, False]])


def pairs(path, item):
    images = flat(2), flat(2, 3)
    given = {"correct": CORRECT, "ranks": RANKS, "captions": ["one", "two"]}
    pictures.draw_pairs(path, *images, item, **given)
    return read(path)


def inside(picture, box):
    top, left, height, width = box
    return picture[top + 4 : top + height - 4, left + 4 : left + width - 4]


def test_maps_of_pairs_stand_beside_each_other(tmp_path):
    query = np.zeros((2, 3, 4, 2))
    query[0, 1], query[1, 0] = 1, np.nan
    candidate = np.ones((2, 3, 4, 2))
    candidate[0, 2] = 0
    picture = pairs(tmp_path / "maps.png", PairMaps(query, candidate))
    blue = boxes(picture, pictures.QUERY)
    right, wrong = (boxes(picture, c) for c in (pictures.RIGHT, pictures.WRONG))
    assert [len(found) for found in (blue, right, wrong)] == [4 + 3, 2, 3]
    assert {box[2:] for box in blue + right + wrong} == {(200, 104)}
    # Bare query; then pairs: 8 within, and 24 before each.
    first = [box for box in blue if box[0] == blue[0][0]]
    left = first[0][1]
    pair = 2 * 104 + 8 + 24
    starts = [left + 104 + 24 + i * pair for i in range(3)]
    assert [box[1] for box in first] == [left, *starts]
    assert [box[1] for box in right] == [starts[0] + 112, starts[2] + 112]
    assert [box[1] for box in wrong] == [
        starts[1] + 112,
        starts[0] + 112,
        starts[1] + 112,
    ]
    # What is over them: cold, hot, or black where there is no value.
    hot, cold = inside(picture, right[0])[0, 0], inside(picture, right[1])[0, 0]
    assert hot[0] > hot[2] + 40
    assert cold[2] > cold[0] + 40
    assert (inside(picture, blue[0]) == GREY).all()
    assert (inside(picture, first[1]) == cold).all()
    assert (inside(picture, first[2]) == hot).all()
    second = [box for box in blue if box[0] != blue[0][0]]
    assert (inside(picture, second[1]) == 0).all()
    # The empty place: two grey tiles.
    assert len(boxes(picture, (236, 236, 236))) == 2


def lines(path, starts, ends, strength, **rest):
    """A picture of the same lines in every pair, and its first right candidate."""
    starts, ends, strength = (
        np.broadcast_to(np.array(x, float), (2, 3, *np.shape(x)))
        for x in (starts, ends, strength)
    )
    picture = pairs(path, Correspondences(starts, ends, strength, **rest))
    return picture, boxes(picture, pictures.RIGHT)[0]


def test_lines_connect_places_and_are_the_wider_the_stronger(tmp_path):
    picture, (top, left, _, width) = lines(
        tmp_path / "lines.png",
        [[0.25, 0.5], [0.75, 0.25], [0.9, 0.5]],
        [[0.5, 0.5], [0.75, 0.25], [0.9, 0.5]],  # the first falls by a quarter
        [1.0, 0.25, 0.0],
    )
    assert len(boxes(picture, pictures.QUERY)) == 2 + 5
    assert len(boxes(picture, pictures.WRONG)) == 3
    strong, weak = LINES[:2]
    start = left - 28 - width  # the query's frame
    for y, x, colour in (
        (top + 4 + 48, start + 4 + 48, strong),
        (top + 4 + 96, left + 4 + 48, strong),
        (top + 4 + 144, start + 4 + 24, weak),
        (top + 4 + 144, left + 4 + 24, weak),
    ):
        np.testing.assert_array_equal(picture[y, x], colour)
    # Half way, in the white between the two images.
    column = picture[top : top + 200, left - 14]
    widths = []
    for y, colour in ((4 + 72, strong), (4 + 144, weak)):
        near = np.abs(column[y - 8 : y + 8] - colour).sum(-1)
        assert near[7:10].min() < 120
        widths.append((column[y - 8 : y + 8].sum(-1) < 3 * 255).sum())
    assert widths[0] > widths[1]
    # Strength 0 is left out: the gap is white there.
    assert (column[4 + 160 :] == 255).all()


def test_stronger_lines_lie_on_top_and_what_says_the_same_is_left_out(tmp_path):
    # The second shares only its start with the strongest; the third has both ends
    # within half a patch of it.
    picture, (top, left, height, width) = lines(
        tmp_path / "lines.png",
        [[0.5, 0.5], [0.5, 0.5], [0.52, 0.5]],
        [[0.2, 0.5], [0.8, 0.5], [0.22, 0.5]],
        [0.9, 1.0, 0.4],
    )
    second, first = (LINES[rank] for rank in (1, 0))
    query = left - 28 - width
    middle = picture[top + height // 2, query + width // 2]
    np.testing.assert_array_equal(middle, first)
    pair = picture[top : top + height, query : left + width]
    drawn = [(pair == colour).all(-1).any() for colour in LINES]
    assert drawn == [True, True, *4 * [False]]
    np.testing.assert_array_equal(pair[4 + 38, left - query + 52], second)


def test_no_more_lines_than_colours(tmp_path):
    rows = np.linspace(0.05, 0.95, 9)
    places = np.stack([rows, np.full(9, 0.5)], axis=1)
    strength = np.linspace(1, 0.2, 9)
    picture, (top, left, height, _) = lines(
        tmp_path / "lines.png", places, places, strength
    )
    ink = (picture[top : top + height, left - 14] < 255).any(-1)
    assert (np.diff(ink.astype(int)) == 1).sum() == len(LINES)


@pytest.mark.parametrize("kind", ["maps", "lines"])
def test_the_score_of_a_pair_stands_under_it(tmp_path, kind):
    values = np.zeros((2, 3, 4, 2))
    places = np.full((2, 3, 1, 2), 0.5)
    under = []
    for score in (None, np.zeros((2, 3)), np.arange(6.0).reshape(2, 3)):
        item = (
            PairMaps(values, values, score)
            if kind == "maps"
            else Correspondences(places, places, np.ones((2, 3, 1)), score)
        )
        picture = pairs(tmp_path / "pairs.png", item)
        top, left, height, width = boxes(picture, pictures.RIGHT)[1]
        cut = slice(left - 200, left + width)
        under.append((picture[top + height :, cut][:16] < 255).any(-1))
    bare, zero, two = under
    assert zero.sum() > bare.sum() > 0
    assert (zero != two).any()


def test_wide_images_keep_their_proportions(tmp_path):
    images = np.full((1, 30, 60, 3), GREY, np.uint8)
    pictures.draw(tmp_path / "wide.png", images, Maps(np.zeros((1, 1, 2, 2)), ("a",)))
    ((_, _, height, width),) = boxes(read(tmp_path / "wide.png"), (GREY, GREY, GREY))
    assert (height, width) == (192, 384)
