"""Augmentation steps against pixel loops, and the messages of a wrong config."""

import pickle

import cv2
import numpy as np
import PIL.Image
import pytest

from data_pipelines import images, transforms
from data_pipelines.part_labels.kinds import KINDS, flip_classes
from reid_jax.errors import UserError


class Scripted:
    """A generator that returns given numbers, to choose what a step draws."""

    def __init__(self, random=(), integers=(), uniform=()):
        self._values = {
            "random": list(random),
            "integers": list(integers),
            "uniform": list(uniform),
        }

    def random(self):
        return self._values["random"].pop(0)

    def integers(self, *_):
        return self._values["integers"].pop(0)

    def uniform(self, *_):
        return self._values["uniform"].pop(0)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (24, 12, 3), np.uint8)
    return image, rng.integers(1, 9, (24, 12), np.uint8)


def test_decode_equals_pillow_and_is_rgb(tmp_path):
    image = np.zeros((32, 16, 3), np.uint8)
    image[..., 0] = 200
    PIL.Image.fromarray(image).save(tmp_path / "red.jpg", quality=95)
    decoded = images.decode((tmp_path / "red.jpg").read_bytes())
    expected = np.asarray(PIL.Image.open(tmp_path / "red.jpg"))
    np.testing.assert_allclose(decoded.astype(int), expected.astype(int), atol=1)
    assert decoded[0, 0, 0] > 190 > 10 > decoded[0, 0, 2]


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff\xe0 no more"])
def test_decode_refuses_what_is_no_image(data):
    with pytest.raises(ValueError, match="not a whole image"):
        images.decode(data)


def test_decode_parts_keeps_labels_and_refuses_colour():
    parts = np.arange(256, dtype=np.uint8).reshape(16, 16)
    encoded = cv2.imencode(".png", parts)[1].tobytes()
    np.testing.assert_array_equal(images.decode_parts(encoded), parts)
    colour = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    with pytest.raises(ValueError, match="part labels"):
        images.decode_parts(colour)


def test_resize_is_bilinear_with_half_pixel_centres():
    image = np.random.default_rng(0).integers(0, 256, (8, 4, 3), np.uint8)
    got = images.resize(image, (16, 12))
    assert got.shape == (16, 12, 3)
    y = np.clip((np.arange(16) + 0.5) * 8 / 16 - 0.5, 0, 7)
    x = np.clip((np.arange(12) + 0.5) * 4 / 12 - 0.5, 0, 3)
    y0, x0 = np.minimum(y.astype(int), 6), np.minimum(x.astype(int), 2)
    fy, fx = (y - y0)[:, None, None], (x - x0)[None, :, None]
    corner = lambda dy, dx: image[y0 + dy][:, x0 + dx].astype(float)  # noqa: E731
    top = corner(0, 0) * (1 - fx) + corner(0, 1) * fx
    bottom = corner(1, 0) * (1 - fx) + corner(1, 1) * fx
    expected = top * (1 - fy) + bottom * fy
    np.testing.assert_allclose(got.astype(float), expected, atol=1)


def test_resize_of_parts_invents_no_label():
    parts = np.array([[1, 8], [255, 4]], np.uint8)
    got = images.resize_parts(parts, (6, 4))
    np.testing.assert_array_equal(got, parts.repeat(3, 0).repeat(2, 1))


def test_flip_mirrors_pixels_and_swaps_sides(pair):
    image, parts = pair
    flip = transforms.Flip(p=1.0)
    flipped, labels = flip(image, parts, np.random.default_rng(0))
    height, width = parts.shape
    swap = {0: 0, 1: 1, 2: 2, 3: 4, 4: 3, 5: 6, 6: 5, 7: 8, 8: 7, 255: 255}
    for y in range(height):
        for x in range(width):
            assert (flipped[y, x] == image[y, width - 1 - x]).all()
            assert labels[y, x] == swap[int(parts[y, width - 1 - x])]
    again = flip(flipped, labels, np.random.default_rng(0))
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1], parts)


@pytest.mark.parametrize("kind", KINDS)
def test_flip_knows_the_numbering(kind):
    parts = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = np.zeros((3, 4, 3), np.uint8)
    steps = transforms.build(["pad_crop", "flip"], {"flip": {"p": 1.0}})
    steps = transforms.Augment(steps.steps[1:]).for_parts(kind)
    _, flipped = steps(image, parts, np.random.default_rng(0))
    np.testing.assert_array_equal(flipped, flip_classes(parts[:, ::-1], kind))
    assert steps.steps[0].p == 1.0


def test_flip_happens_about_half_of_the_time(pair):
    rng = np.random.default_rng(0)
    flip = transforms.Flip()
    count = sum(flip(*pair, rng)[0] is not pair[0] for _ in range(400))
    assert 160 < count < 240


@pytest.mark.parametrize(("top", "left"), [(0, 0), (6, 6), (3, 3), (1, 5)])
def test_pad_crop_equals_a_pixel_loop(pair, top, left):
    image, parts = pair
    rng = Scripted(integers=[np.array([top, left])])
    got, labels = transforms.PadCrop(pad=3)(image, parts, rng)
    assert (got.shape, labels.shape) == (image.shape, parts.shape)
    for y in range(24):
        for x in range(12):
            sy, sx = y + top - 3, x + left - 3
            inside = 0 <= sy < 24 and 0 <= sx < 12
            assert (got[y, x] == (image[sy, sx] if inside else 0)).all()
            assert labels[y, x] == (parts[sy, sx] if inside else 0)


def test_pad_crop_reaches_every_shift_and_no_other():
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255
    rng = np.random.default_rng(0)
    places = set()
    for _ in range(300):
        got, _ = transforms.PadCrop(pad=2)(image, None, rng)
        places.add(tuple(np.argwhere(got[..., 0])[0].tolist()))
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_erasing_covers_one_rectangle_within_its_bounds():
    step = transforms.RandomErasing(p=1.0)
    image = np.zeros((64, 32, 3), np.uint8)
    parts = np.full((64, 32), 5, np.uint8)
    rng = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(400):
        got, labels = step(image, parts, rng)
        covered = (got == (124, 116, 104)).all(-1)
        np.testing.assert_array_equal(labels, np.where(covered, 0, 5))
        assert (got[~covered] == 0).all()
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert covered.sum() == h * w
        slack = (h + w) / 2 + 0.25  # From rounding both sides to whole pixels.
        assert 0.02 * 2048 - slack <= h * w <= 0.4 * 2048 + slack
        shares.append(h * w / 2048)
        ratios.append(h / w)
    assert min(shares) < 0.05
    assert max(shares) > 0.33
    # A uniform aspect in (0.3, 3.33) has a mean of 1.8; tall ones fit better here.
    assert 1.5 < np.mean(ratios) < 2.2


def test_erasing_follows_the_draws(pair):
    image, parts = pair
    # First try: 0.4 of 288 pixels at aspect 0.3 is 5.9 x 19.6, wider than the image.
    # Second: 0.25 at aspect 2 is 12 x 6.
    rng = Scripted(random=[0.2], uniform=[0.4, 0.3, 0.25, 2.0], integers=[7, 4])
    got, labels = transforms.RandomErasing(fill=(1, 2, 3))(image, parts, rng)
    expected, expected_labels = image.copy(), parts.copy()
    for y in range(7, 19):
        for x in range(4, 10):
            expected[y, x] = (1, 2, 3)
            expected_labels[y, x] = 0
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(labels, expected_labels)


def test_erasing_gives_up_where_nothing_fits():
    image = np.zeros((1, 50, 3), np.uint8)
    step = transforms.RandomErasing(p=1.0)
    got, parts = step(image, None, np.random.default_rng(0))
    assert got is image
    assert parts is None


def test_erasing_half_of_the_time(pair):
    rng = np.random.default_rng(0)
    step = transforms.RandomErasing()
    count = sum(step(*pair, rng)[0] is not pair[0] for _ in range(400))
    assert 160 < count < 240


def test_an_augmentation_is_seeded_and_leaves_its_input_alone(pair):
    image, parts = pair[0].copy(), pair[1].copy()
    augment = transforms.build(
        ["flip", "pad_crop", "random_erasing"], {"pad_crop": {"pad": 4}}
    )
    for seed in range(8):
        first = augment(image, parts, np.random.default_rng(seed))
        copied = pickle.loads(pickle.dumps(augment))
        second = copied(image, parts, np.random.default_rng(seed))
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])
        without = augment(image, None, np.random.default_rng(seed))
        np.testing.assert_array_equal(first[0], without[0])
        assert without[1] is None
    np.testing.assert_array_equal(image, pair[0])
    np.testing.assert_array_equal(parts, pair[1])


def test_steps_are_applied_in_their_order(pair):
    image, parts = pair
    rngs = [np.random.default_rng(3) for _ in range(2)]
    got = transforms.build(["pad_crop", "flip"], {"flip": {"p": 1.0}})(*pair, rngs[0])
    cropped = transforms.PadCrop()(image, parts, rngs[1])
    np.testing.assert_array_equal(got[0], cropped[0][:, ::-1])
    np.testing.assert_array_equal(got[1], flip_classes(cropped[1][:, ::-1]))


def test_no_steps_change_nothing(pair):
    got = transforms.build([])(*pair, np.random.default_rng(0))
    assert got[0] is pair[0]


@pytest.mark.parametrize(
    ("steps", "params", "words"),
    [
        (["flp"], {}, ["'flp'", "Did you mean 'flip'", "Known: flip, pad_crop"]),
        (["flip"], {"pad_crp": {}}, ["'pad_crp'", "'pad_crop'"]),
        (["flip"], {"flip": {"prob": 1}}, ["'prob'", "Known: p"]),
        (["flip"], {"flip": {"p": 1.5}}, ["'flip'", "p must lie"]),
        (["flip"], {"flip": {"p": "x"}}, ["'flip'"]),
        (["pad_crop"], {"pad_crop": {"pad": -1}}, ["pad must be"]),
        (["flip"], {"random_erasing": {"area": (0.5, 0.1)}}, ["area must be"]),
        (["flip"], {"random_erasing": {"aspect": (0, 1)}}, ["aspect must be"]),
        (["flip"], {"random_erasing": {"fill": (1, 2)}}, ["fill must be"]),
        (["flip"], {"random_erasing": {"part_label": 256}}, ["part_label"]),
    ],
)
def test_wrong_configs_are_user_errors(steps, params, words):
    with pytest.raises(UserError) as error:
        transforms.build(steps, params)
    for word in words:
        assert word in str(error.value)
