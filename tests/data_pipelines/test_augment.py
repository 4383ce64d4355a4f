"""Noise, occluders, colours and crops: what they draw and what they leave alone."""

import pickle

import cv2
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter
import pytest

from data_pipelines import transforms
from data_pipelines.augment.colour import Colour
from data_pipelines.augment.geometry import RandomCrop
from data_pipelines.augment.occlusion import PasteOccluder, RandomErasing
from reid_jax.errors import UserError


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (48, 24, 3), np.uint8)
    return image, rng.integers(1, 9, (48, 24), np.uint8)


def write(path, rgba):
    PIL.Image.fromarray(np.asarray(rgba, np.uint8)).save(path)


@pytest.fixture
def bank(tmp_path):
    """One opaque square; one bar whose right third is transparent green."""
    write(tmp_path / "a.png", np.full((10, 10, 3), (200, 0, 100)))
    bar = np.full((6, 12, 4), (0, 0, 255, 255))
    bar[:, 8:] = (0, 255, 0, 0)
    write(tmp_path / "b.PNG", bar)
    (tmp_path / "notes.txt").write_text("no image")
    return str(tmp_path)


def window_of(changed):
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def test_every_step_is_seeded_and_leaves_its_input_alone(pair, bank):
    image, parts = pair[0].copy(), pair[1].copy()
    augment = transforms.build(
        ["random_crop", "colour", "random_erasing", "paste_occluder"],
        {
            "random_erasing": {"mode": "pixel", "log_aspect": True},
            "paste_occluder": {"bank": bank, "p": 0.5},
        },
    )
    different = set()
    for seed in range(12):
        first = augment(image, parts, np.random.default_rng(seed))
        copied = pickle.loads(pickle.dumps(augment.for_parts("parts")))
        second = copied(image, parts, np.random.default_rng(seed))
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])
        without = augment(image, None, np.random.default_rng(seed))
        np.testing.assert_array_equal(first[0], without[0])
        assert without[1] is None
        assert (first[0].shape, first[1].shape) == (image.shape, parts.shape)
        assert first[0].dtype == first[1].dtype == np.uint8
        different.add(first[0].tobytes())
    assert len(different) == 12
    np.testing.assert_array_equal(image, pair[0])
    np.testing.assert_array_equal(parts, pair[1])


def test_pixel_noise_has_its_mean_and_deviation():
    step = RandomErasing(
        p=1.0, mode="pixel", fill=(150, 100, 50), deviation=(20, 10, 5), area=(0.9, 0.9)
    )
    image = np.zeros((400, 200, 3), np.uint8)
    got, labels = step(image, np.ones((400, 200), np.uint8), np.random.default_rng(0))
    noise = got[labels == 0].astype(float)
    assert len(noise) == pytest.approx(0.9 * 80_000, rel=0.01)
    np.testing.assert_allclose(noise.mean(0), (150, 100, 50), atol=0.5)
    np.testing.assert_allclose(noise.std(0), (20, 10, 5), rtol=0.02)
    correlation = np.corrcoef(noise.T) - np.eye(3)
    assert np.abs(correlation).max() < 0.02
    assert not got[labels == 1].any()


def test_pixel_noise_is_clipped_not_wrapped():
    """N(127.5, 127.5): a sixth of the values on either end, as the normal has it."""
    half = (127.5, 127.5, 127.5)
    step = RandomErasing(p=1.0, mode="pixel", fill=half, deviation=half)
    image = np.full((400, 200, 3), 7, np.uint8)
    got, labels = step(image, np.ones((400, 200), np.uint8), np.random.default_rng(1))
    noise = got[labels == 0].astype(float)
    assert (noise == 0).mean() == pytest.approx(0.1587, abs=0.015)
    assert (noise == 255).mean() == pytest.approx(0.1587, abs=0.015)
    assert noise.mean() == pytest.approx(127.5, abs=2)


def test_aspects_are_drawn_in_the_logarithm():
    step = RandomErasing(
        p=1.0, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3), log_aspect=True
    )
    image, rng = np.zeros((150, 150, 3), np.uint8), np.random.default_rng(0)
    logs = []
    for _ in range(600):
        got, _ = step(image, None, rng)
        rows, columns = window_of(got.any(-1))
        logs.append(np.log((rows.stop - rows.start) / (columns.stop - columns.start)))
    bound = np.log(1 / 0.3)
    assert abs(np.mean(logs)) < 0.1  # of a uniform aspect it would be 0.45
    assert np.std(logs) == pytest.approx(2 * bound / 12**0.5, rel=0.1)
    assert max(np.abs(logs)) < bound + 0.1


def test_an_occluder_is_pasted_whole(pair, bank):
    image, parts = pair
    step = PasteOccluder(bank=bank, p=1.0, area=(0.1, 0.2))
    rng = np.random.default_rng(0)
    seen = {"square": [], "bar": []}
    for _ in range(200):
        got, labels = step(image, parts, rng)
        covered = labels == 0
        rows, columns = window_of(covered)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert covered.sum() == height * width
        inner = got[rows, columns][:, : width - 1]
        if (inner == (200, 0, 100)).all():
            seen["square"].append((height, rows.start, columns.start))
            assert abs(height - width) <= 1
        else:  # Blue, of two thirds of the bar; the green is not seen.
            seen["bar"].append((height, rows.start, columns.start))
            assert (inner[:, :-1] == (0, 0, 255)).all()
            width = round(1.5 * width)
            assert abs(2 * height - width) <= 3
        untouched = np.ones((48, 24), bool)
        untouched[rows, columns.start : columns.start + width + 1] = False
        np.testing.assert_array_equal(got[untouched], image[untouched])
        np.testing.assert_array_equal(labels[~covered], parts[~covered])
        assert 0.1 * 0.8 < height * width / (48 * 24) < 0.2 * 1.25
    for draws in seen.values():
        assert 70 < len(draws) < 130
        heights, tops, lefts = map(set, zip(*draws, strict=True))
        assert len(heights) > 2
        assert len(tops) > 15
        assert {0} < lefts


def test_a_half_transparent_occluder_is_mixed(tmp_path):
    write(tmp_path / "glass.png", np.full((8, 8, 4), (200, 100, 0, 102)))
    image, parts = np.full((20, 20, 3), 50, np.uint8), np.ones((20, 20), np.uint8)
    step = PasteOccluder(bank=str(tmp_path), p=1.0, area=(0.3, 0.3))
    got, labels = step(image, parts, np.random.default_rng(0))
    values, counts = np.unique(got.reshape(-1, 3), axis=0, return_counts=True)
    np.testing.assert_allclose(values, [[50, 50, 50], [110, 70, 30]], atol=1)
    assert counts.min() == pytest.approx(0.3 * 400, rel=0.1)
    assert (labels == 1).all()  # 40% opaque: the person is still to be seen


def test_a_bank_is_read_in_the_order_of_its_names(tmp_path):
    names = [f"{i}.png" for i in np.random.default_rng(0).permutation(8)]
    for name in names:
        write(tmp_path / name, np.full((3, 3), int(name[0])))
    patches = PasteOccluder(bank=str(tmp_path)).patches()
    assert [patch[0, 0, 0] for patch in patches] == list(range(8))


def test_an_occluder_too_long_for_the_image_is_shrunk(tmp_path):
    write(tmp_path / "pole.jpg", np.full((200, 4), 255))
    image = np.zeros((40, 60, 3), np.uint8)
    step = PasteOccluder(bank=str(tmp_path), p=1.0, area=(0.4, 0.4))
    got, _ = step(image, None, np.random.default_rng(0))
    rows, columns = window_of(got.any(-1))
    assert (rows.start, rows.stop) == (0, 40)
    assert columns.stop - columns.start == 1


@pytest.mark.parametrize(("p", "least", "most"), [(0.3, 85, 155), (0, 0, 0)])
def test_occluders_come_by_chance(pair, bank, p, least, most):
    rng, step = np.random.default_rng(0), PasteOccluder(bank=bank, p=p)
    count = sum(step(*pair, rng)[0] is not pair[0] for _ in range(400))
    assert least <= count <= most


def test_a_missing_bank_is_a_user_error(tmp_path):
    field = r"config\.augment\.paste_occluder\.bank"
    with pytest.raises(UserError, match=f"{field}=''"):
        transforms.build(["paste_occluder"])
    for folder, words in (("nowhere", "no folder"), (".", "no images")):
        values = {"paste_occluder": {"bank": str(tmp_path / folder)}}
        with pytest.raises(UserError, match=f"{field}=.*{words}"):
            transforms.build(["paste_occluder"], values)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    values = {"paste_occluder": {"bank": str(tmp_path)}}
    with pytest.raises(UserError, match=r"broken\.png: not a whole image"):
        transforms.build(["paste_occluder"], values)
    (tmp_path / "broken.png").unlink()
    (tmp_path / "broken.png").mkdir()
    with pytest.raises(UserError, match=r"broken\.png: cannot be read"):
        transforms.build(["paste_occluder"], values)
    # A step that is switched off needs no bank.
    transforms.build(["flip"], {"paste_occluder": {"bank": "nowhere"}})


def only(change, factor):
    """The step that makes one of the five changes by a given amount."""

    class Rng:
        def random(self, size=None):
            return 0.0 if size is None else np.where(np.arange(5) == change, 0.0, 1.0)

        def uniform(self, low, high, size=None):
            return factor if size is None else np.full(size, factor)

    return lambda image: Colour(p=1.0, each=0.5)(image, None, Rng())[0]


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
@pytest.mark.parametrize(
    ("change", "name"), [(1, "Brightness"), (2, "Contrast"), (3, "Color")]
)
def test_colours_equal_pillow(pair, change, name, factor):
    image = pair[0]
    got = only(change, factor)(image)
    enhance = getattr(PIL.ImageEnhance, name)(PIL.Image.fromarray(image))
    # Pillow rounds the mean grey, and truncates where we round.
    np.testing.assert_allclose(
        got.astype(int), np.asarray(enhance.enhance(factor)).astype(int), atol=2
    )
    assert (np.abs(got.astype(int) - image).max() > 10) == (factor != 1)


def test_gamma_and_blur(pair):
    image = pair[0]
    got = only(4, 1.4)(image)
    np.testing.assert_allclose(got, 255 * (image / 255) ** 1.4, atol=0.51)
    blurred = only(0, 1.5)(image).astype(int)
    filtered = PIL.Image.fromarray(image).filter(PIL.ImageFilter.GaussianBlur(1.5))
    inner = (slice(6, -6), slice(6, -6))  # borders are continued in other ways
    assert np.abs(blurred - np.asarray(filtered))[inner].mean() < 3
    assert blurred[inner].std() < 0.4 * image[inner].std()


def test_colours_change_about_half_of_the_time(pair):
    image, parts = pair
    rng, step = np.random.default_rng(0), Colour()
    results = [step(image, parts, rng) for _ in range(400)]
    assert 160 < sum(got is not image for got, _ in results) < 240
    assert all(labels is parts for _, labels in results)


def test_each_change_is_made_by_its_own_chance():
    """Brightness alone would darken or brighten an even image; 0.3 of them stay."""
    image = np.full((8, 8, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    # On an even grey image blur, contrast and saturation do nothing.
    means = np.array([Colour(p=1.0)(image, None, rng)[0].mean() for _ in range(600)])
    assert np.mean(means == 100) == pytest.approx(0.3**2, abs=0.04)
    assert 30 < means.min() < means.max() < 200


def test_a_crop_keeps_most_of_the_image():
    """On an image of coordinates, corners tell which window was taken."""
    rows, columns = np.mgrid[0:200, 0:100]
    image = np.stack([rows, columns, rows], -1).astype(np.uint8)
    rng, step = np.random.default_rng(0), RandomCrop()
    heights, widths, tops = [], [], []
    for _ in range(300):
        got, labels = step(image, image[..., 0], rng)
        assert got.shape == image.shape
        assert np.abs(got[..., 0].astype(int) - labels).max() <= 1
        top, left = got[0, 0, :2].astype(int)
        bottom, right = got[-1, -1, :2].astype(int)
        heights.append((bottom - top + 1) / 200)
        widths.append((right - left + 1) / 100)
        tops.append(top)
    for shares in (heights, widths):
        assert 0.84 <= min(shares) < 0.87
        assert 0.98 < max(shares) <= 1
        assert np.mean(shares) == pytest.approx(0.925, abs=0.01)
    assert min(tops) == 0
    assert max(tops) > 20
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.25


def test_a_crop_of_labels_invents_none(pair):
    image, _ = pair
    parts = np.full((48, 24), 8, np.uint8)
    parts[:, :12] = 1
    for seed in range(20):
        _, labels = RandomCrop()(image, parts, np.random.default_rng(seed))
        assert set(np.unique(labels)) == {1, 8}
    whole, _ = RandomCrop(keep=1.0)(image, None, np.random.default_rng(0))
    np.testing.assert_array_equal(whole, image)


@pytest.mark.parametrize(
    ("step", "values", "words"),
    [
        ("random_erasing", {"mode": "noise"}, "mode must be one of colour, pixel"),
        ("random_erasing", {"deviation": (1, 2)}, "deviation must be three"),
        ("paste_occluder", {"p": 2}, "p must lie"),
        ("paste_occluder", {"area": (0.1, 1.5)}, r"area must be .* in \(0, 1\]"),
        ("paste_occluder", {"part_label": -1}, "part_label"),
        ("colour", {"each": -0.1}, "each must lie"),
        ("colour", {"blur": (2, 1)}, "blur must be"),
        ("colour", {"factor": (0, 1)}, "factor must be"),
        ("random_crop", {"keep": 0}, "keep must lie"),
    ],
)
def test_wrong_values_are_user_errors(step, values, words):
    with pytest.raises(UserError, match=words) as error:
        transforms.build(["flip"], {step: values})
    assert f"{step!r}" in str(error.value)


def test_grey_patches_are_read_and_deep_ones_refused(tmp_path):
    write(tmp_path / "grey.png", np.full((4, 4), 90))
    (patch,) = PasteOccluder(bank=str(tmp_path)).patches()
    assert (patch == (90, 90, 90, 255)).all()
    deep = tmp_path / "deep"
    deep.mkdir()
    cv2.imwrite(str(deep / "x.png"), np.full((4, 4), 900, np.uint16))
    with pytest.raises(UserError, match="8 bits"):
        PasteOccluder(bank=str(deep)).patches()
