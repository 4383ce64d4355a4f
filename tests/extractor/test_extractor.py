"""The Python API: what it takes, and that it returns what the method does."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest

import reid_jax
from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.extractor import images as imaging
from reid_jax.extractor.extractor import Extractor
from reid_jax.retrieval import expansion
from reid_jax.retrieval.k_reciprocal import KReciprocal
from reid_jax.retrieval.search import Search
from reid_jax.runtime import checkpoint, digests, sharding
from tests.conftest import CHECKOUT
from tests.launch import toy
from tests.retrieval import k_reciprocal_in_numpy
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def extractor(places):
    return reid_jax.load(places.run)


@pytest.fixture(scope="module")
def reference(places, photos):
    """Paths of the photos in the order of their names, and `Method.embed` of each."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    method, variables = experiment.restore(
        toy.get_config(), checkpoint.find(str(places.run)), mesh
    )
    files = sorted(photos.glob("camera*/*.png"))
    pixels = [cv2.imread(str(file))[:, :, ::-1] for file in files]
    # As the run of `tests.places` resizes: torchvision's way, by Pillow.
    images = np.stack(
        [
            PIL.Image.fromarray(image).resize((16, 32), PIL.Image.Resampling.BILINEAR)
            for image in pixels
        ]
    )
    embedding = {k: np.asarray(v) for k, v in method.embed(variables, images).items()}
    return files, pixels, embedding


def _assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for name in got:
        assert isinstance(got[name], np.ndarray)
        assert got[name].dtype == wanted[name].dtype
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_every_form_of_images_gives_what_the_method_does(extractor, photos, reference):
    files, pixels, wanted = reference
    pillow = [PIL.Image.fromarray(np.ascontiguousarray(image)) for image in pixels]
    forms = [photos, str(photos), files, map(str, files), pixels, pillow, iter(pillow)]
    for form in forms:
        _assert_same(extractor.embed(form, progress=False), wanted)
    first = {name: array[:1] for name, array in wanted.items()}
    for one in (
        files[0],
        pixels[0],
        pixels[0][None],
        pillow[0],
        pillow[0].convert("RGBA"),
    ):
        _assert_same(extractor.embed(one, progress=False), first)


class _Film:
    """Gives one array and one Pillow image, again and again, with other pixels."""

    def __iter__(self):
        array, image = np.empty((4, 2, 3), np.uint8), PIL.Image.new("RGB", (2, 4))
        for i in range(4):
            array[:] = i
            image.paste((i, i, i), (0, 0, 2, 4))
            yield array if i % 2 else image
        yield PIL.Image.new("F", (2, 4))


@pytest.mark.parametrize("given", [_Film(), iter(_Film())])
def test_an_image_that_is_given_again_with_other_pixels(given):
    *read, last = list(imaging.sources(given))
    assert [source.read()["image"].mean() for source in read] == [0, 1, 2, 3]
    with pytest.raises(UserError, match="image 4 is a Pillow image of mode F"):
        last.read()


def test_a_pillow_image_that_waits_is_read_by_who_reads(tmp_path):
    frames = [PIL.Image.new("L", (2, 4), value) for value in (0, 60, 120)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / "one.png")
    one = PIL.Image.open(tmp_path / "one.png")
    film = PIL.ImageSequence.Iterator(PIL.Image.open(tmp_path / "film.gif"))
    first, *others = list(imaging.sources(itertools.chain([one], film)))
    assert one.fp is not None
    found = [source.read()["image"].mean() for source in (first, *others)]
    assert found == [60, 0, 60, 120]


def test_one_program_is_compiled_whatever_the_number_of_images(extractor, photos):
    files = sorted(photos.glob("camera*/*.png"))
    extractor.embed(files, batch_size=8, progress=False)
    known = extractor._run._cache_size()
    for count in (1, 8, 13):
        extractor.embed(files[:count], batch_size=3, progress=False)  # 8 devices: 8
    assert extractor._run._cache_size() == known
    assert extractor.batch_size(9) == 16


def test_an_export_gives_the_same_and_is_the_same_network(places, extractor, photos):
    exported = reid_jax.load(places.export)
    wanted = extractor.embed(photos, progress=False)
    _assert_same(exported.embed(photos, progress=False), wanted)
    np.testing.assert_allclose(
        exported.distance(wanted, wanted),
        extractor.distance(wanted, wanted),
        rtol=1e-5,
        atol=1e-6,
    )
    for name in [x.name for x in dataclasses.fields(exported.network)]:
        if name in ("embed", "distance", "variables"):
            continue
        assert getattr(exported.network, name) == getattr(extractor.network, name)
    step = checkpoint.find(str(places.run))
    assert reid_jax.load(step).network.fingerprint == extractor.network.fingerprint


def test_ranking_and_distances(extractor, photos, reference, capsys):
    files, _, embedding = reference
    vectors = embedding["vector"].astype(np.float64)
    wanted = np.abs(vectors[:, None] - vectors[None]).sum(-1)
    got = extractor.distance(files, photos, progress=False)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    ranking = extractor.rank(files[2:4], photos, k=5, progress=False)
    assert not capsys.readouterr().err
    order = np.argsort(wanted[2:4], axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(ranking.index, order)
    assert ranking.names == [[str(files[i]) for i in row] for row in order]
    assert str(ranking).splitlines()[1].split() == ["1", "0.0000", str(files[2])]
    assert extractor.rank(embedding, embedding, k=99).index.shape == (21, 21)


def test_distances_that_are_none_are_not_ranked(extractor):
    def distance(query, gallery):
        return (9 * query["vector"][:, None] - 9 * gallery["vector"]).sum(-1)

    network = dataclasses.replace(extractor.network, distance=distance)
    other = Extractor(network, sharding.make_mesh(jax.devices()[:1]))
    vectors = np.float32([[1] * 6, [3e38] * 6])
    given = {"vector": vectors, "visibility": np.ones((2, 3), bool)}
    with pytest.raises(UserError, match="distances of query 1 are no numbers"):
        other.rank(given, given)


def test_who_ranks_is_told_how_cameras_are_given(extractor, photos):
    network = dataclasses.replace(extractor.network, inputs=("camera",))
    other = Extractor(network, sharding.make_mesh(jax.devices()[:1]))
    with pytest.raises(UserError, match=r"with embed\(\.\.\., cameras=\), as rank"):
        other.rank(photos, photos, progress=False)


def test_many_queries_are_compared_block_by_block(extractor):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(150, 6)).astype(np.float32)
    given = {"vector": vectors, "visibility": np.ones((150, 3), bool)}
    wanted = np.abs(vectors[:, None] - vectors[None].astype(np.float64)).sum(-1)
    np.testing.assert_allclose(extractor.distance(given, given), wanted, atol=1e-4)


@pytest.mark.parametrize("place", ["run", "export"])
def test_lists_are_reranked(places, place, monkeypatch):
    """Against float64 matrices; an artifact cannot be mapped over pairs, but is."""
    network = reid_jax.load(getattr(places, place), devices=jax.devices()[:2])
    vectors = np.random.default_rng(1).standard_normal((90, 6)).astype(np.float32)
    query, gallery = (
        {"vector": x, "visibility": np.ones((len(x), 3), bool)}
        for x in (vectors[:70], vectors[70:])
    )
    apart = np.abs(vectors[:, None] - vectors[None].astype(np.float64)).sum(-1)
    options = {"k1": 12, "k2": 3}  # some members are not among the nearest
    wanted = k_reciprocal_in_numpy.rerank(apart, 70, KReciprocal(**options))
    steps = {"k_reciprocal": options}
    for device_bytes in (1 << 30, 200):  # on one device, or parts of it sent
        monkeypatch.setattr(
            network._comparison, "search", Search(device_bytes=device_bytes)
        )
        got = network.rank(query, gallery, k=99, rerank=steps)
        keys = np.take_along_axis(wanted, got.index, axis=1)
        np.testing.assert_allclose(got.distance, keys, atol=1e-5)
        assert (np.diff(keys, axis=1) > -1e-5).all()
    plain = network.rank(query, gallery, k=20)
    assert (plain.index != got.index).any()


def test_squares_are_not_squared_again(extractor):
    """Distances that are said to be squares rank as others of `squared=False`."""
    network = dataclasses.replace(extractor.network, squared_distances=True)
    mesh = sharding.make_mesh(jax.devices()[:1])
    vectors = np.random.default_rng(2).standard_normal((30, 6)).astype(np.float32)
    every = {"vector": vectors, "visibility": np.ones((30, 3), bool)}
    options = {"k1": np.int64(4), "k2": 2}
    got, wanted = (
        made.rank(every, every, k=30, rerank={"k_reciprocal": options | more}).distance
        for made, more in (
            (Extractor(network, mesh), {}),
            (extractor, {"squared": False}),
        )
    )
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_embeddings_that_have_no_average_are_refused(extractor):
    given = {"vector": np.ones((3, 6)), "more": np.ones(3)}
    made = {name: jnp.ones(array.shape) for name, array in given.items()}
    network = dataclasses.replace(extractor.network, embed=lambda *_: made)
    other = Extractor(network, sharding.make_mesh(jax.devices()[:1]))
    with pytest.raises(UserError, match="query_expansion averages unit vectors"):
        other.rank(given, given, rerank=("query_expansion",))


def test_neighbours_are_averaged_in(extractor, capsys):
    """A query between two groups goes to the one that its two nearest are of."""
    lines = np.zeros((5, 6), np.float32)
    lines[:, 0], lines[:, 1] = 1, (0.5, 0.4, 0.35, 0.61, 0.9)
    every = {"vector": lines, "visibility": np.ones((5, 3), bool)}
    query = {name: array[:1] for name, array in every.items()}
    gallery = {name: array[1:] for name, array in every.items()}
    options = {"query_expansion": {"k": 2, "alpha": 0}}
    got = extractor.rank(query, gallery, rerank=options, progress=False)
    assert not capsys.readouterr().err
    made = expansion.expanded(query, gallery, np.array([[0, 2]]), alpha=0, block=1)
    apart = np.abs(made["vector"] - gallery["vector"]).sum(1)
    np.testing.assert_array_equal(got.index[0], np.argsort(apart))
    np.testing.assert_allclose(got.distance[0], np.sort(apart), rtol=1e-5)


@pytest.mark.parametrize(
    ("rerank", "message"),
    [
        ("k_reciprocal", "rerank is 'k_reciprocal'; it is a tuple"),
        (("kreciprocal",), r"no 'kreciprocal'; .* such as \('database_aug"),
        (("k_reciprocal", "query_expansion"), "k_reciprocal last"),
        (("flip",), r"embed\(images, flip=True\)"),
        ({"k_reciprocal": 20}, r'a dict of options, such as {"k_reciprocal"'),
        ({"k_reciprocal": {"k": 20}}, "k_reciprocal.k is 20; k_reciprocal has k1"),
        ({"k_reciprocal": {"k1": 0}}, "k1 is 0; it must be at least 1"),
        ({"k_reciprocal": {"k1": 5}}, "k2 is 6; it is at most k1, which is 5"),
        ({"query_expansion": {"k": True}}, "k is True; it is of type int"),
        ({"query_expansion": {"alpha": 10**400}}, "at least 0 and at most 1,000"),
    ],
)
def test_steps_of_reranking_that_are_none(extractor, rerank, message):
    with pytest.raises(UserError, match=message):
        extractor.rank("nowhere", "nowhere", rerank=rerank)


def test_flip_averages_an_image_and_its_mirror_image(extractor, reference):
    _, pixels, one = reference
    other = extractor.embed([p[:, ::-1] for p in pixels], progress=False)
    got = extractor.embed(pixels, flip=True, progress=False)
    both = one["vector"] + other["vector"]
    lengths = [np.linalg.norm(x["vector"], axis=1) for x in (one, other)]
    wanted = both / np.linalg.norm(both, axis=1)[:, None] * np.mean(lengths, 0)[:, None]
    np.testing.assert_allclose(got["vector"], wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(
        got["visibility"], one["visibility"] | other["visibility"]
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("nowhere", "no image or folder 'nowhere'"),
        (np.zeros((4, 4, 3)), r"uint8 RGB .* this one is float64 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"this one is uint8 \[4, 4\]"),
        ([np.zeros((2, 4, 4, 3), np.uint8)], r"this one is uint8 \[2, 4, 4, 3\]"),
        ([], "no images to embed"),
        ("", "the path of the images is empty"),
        (PIL.Image.new("F", (4, 4)), "image 0 is a Pillow image of mode F"),
        ([PIL.Image.new("L", (4, 4)), PIL.Image.new("I", (4, 4))], "image 1 .* mode I"),
        (["missing.jpg"], "missing.jpg cannot be read: No such file"),
        (
            [__file__],
            r"test_extractor.py cannot be read: it is none by its name \(.jpg",
        ),
    ],
)
def test_images_that_are_none(extractor, images, message):
    with pytest.raises(UserError, match=message):
        extractor.embed(images, progress=False)


def test_bad_files_and_folders_are_named(extractor, tmp_path, photos):
    with pytest.raises(UserError, match="no images below"):
        extractor.embed(tmp_path, progress=False)
    whole = next(photos.glob("camera0/*.png")).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.png cannot be read: not a whole image"):
        extractor.embed(tmp_path, progress=False)
    with pytest.raises(UserError, match="a folder among single images"):
        extractor.embed([tmp_path], progress=False)
    with pytest.raises(UserError, match="21 images and 2 cameras"):
        extractor.embed(photos, cameras=[1, 2])
    for number in (2**40, 1.5, "a"):
        with pytest.raises(UserError, match="whole numbers"):
            extractor.embed(photos, cameras=[number] * 21)
    vectors = extractor.embed(photos, progress=False)
    for other in ({"vector": np.zeros((3, 5), np.float32)}, {"vec": np.zeros((3, 6))}):
        for one in (vectors, other):
            with pytest.raises(UserError, match="different networks"):
                extractor.distance(one, other)
    with pytest.raises(UserError, match="at least one image, not 0"):
        extractor.embed(photos, batch_size=0, progress=False)


def test_linked_folders_are_as_others_and_none_counts_twice(tmp_path):
    top, elsewhere = tmp_path / "top", tmp_path / "elsewhere"
    for folder in (top / "a", top / "b", top / ".c", elsewhere / "d"):
        folder.mkdir(parents=True)
        (folder / "1.png").touch()
    links = {"linked": elsewhere, "a/b": top / "b", "b/a": top / "a", "up": top}
    links |= {"again": elsewhere / "d"}
    for name, to in (links | {"a/gone": top / "gone", "gone.png": "no"}).items():
        (top / name).symlink_to(to)
    found = [str(file.relative_to(top)) for file in imaging.files(top)]
    assert found == ["a/1.png", "again/1.png", "b/1.png"]
    (top / "again").unlink()
    assert "linked/d/1.png" in map(
        str, (f.relative_to(top) for f in imaging.files(top))
    )


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_are_the_same_by_path_and_by_pillow(tmp_path, mode):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 2**16, (40, 30), np.uint16)
    image = PIL.Image.frombytes(
        mode, (30, 40), pixels.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    )
    cv2.imwrite(str(tmp_path / "grey.png"), pixels)
    by_path = imaging.read_file(tmp_path / "grey.png")["image"]
    for given in (image, PIL.Image.open(tmp_path / "grey.png")):
        (source,) = imaging.sources(given)
        np.testing.assert_array_equal(source.read()["image"], by_path)
    assert abs(by_path.mean() - 128) < 5


def test_a_pillow_image_that_is_cut_off_is_named(extractor, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"image 0 cannot be read: .*truncated"):
        extractor.embed(PIL.Image.open(tmp_path / "cut.jpg"), progress=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "at least one; the shapes of this one's: {}"),
        ({"vector": np.zeros((0, 6), np.float32)}, r"shapes .*\[0, 6\]"),
        ({"vector": np.zeros((3, 6)), "visibility": np.ones((2, 3))}, r"\[2, 3\]"),
        ({"vector": np.float32([[1, 2], [3, np.nan]])}, "vector .* finite in row 1"),
        ({"vector": np.array([["a"]])}, "has numbers, not <U1"),
    ],
)
def test_embeddings_that_are_none(extractor, given, message):
    one = {"vector": np.zeros((1, 6)), "visibility": np.ones((1, 3))}
    for pair in ((given, one), (one, given), (given, given)):
        with pytest.raises(UserError, match=message):
            extractor.distance(*pair)
        with pytest.raises(UserError, match=message):
            extractor.rank(*pair)


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", None])
def test_lists_have_at_least_one_image(extractor, k):
    one = {"vector": np.zeros((1, 6)), "visibility": np.ones((1, 3))}
    with pytest.raises(UserError, match=f"k={k!r}: a list has"):
        extractor.rank(one, one, k=k)


def test_a_place_that_is_not_there_is_told_before_images_are_embedded(
    extractor, monkeypatch
):
    monkeypatch.setattr(type(extractor), "stream", None)  # is not called
    image = np.zeros((8, 4, 3), np.uint8)
    with pytest.raises(UserError, match="no image or folder 'nowhere'"):
        extractor.rank(image, "nowhere")
    with pytest.raises(UserError, match="no image or folder 'nowhere'"):
        extractor.distance(image, "nowhere")


def test_places_without_a_network(tmp_path, monkeypatch, places):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no network in 'resnet50'.*brings shipped/"):
        reid_jax.load("resnet50")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="here are runs/mine"):
        reid_jax.load("runs/mein")
    with pytest.raises(UserError, match="no checkpoint in runs/mine"):
        reid_jax.load("runs/mine")
    with pytest.raises(UserError, match="no such user"):
        reid_jax.load("~nobodyx/run")
    with pytest.raises(UserError, match="no network in ''"):
        reid_jax.load("")


@pytest.mark.parametrize("name", ["embed.jaxexport", "export.json"])
def test_a_damaged_export_is_not_loaded(places, name):
    file = places.export / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    try:
        with pytest.raises(UserError, match=f"{name} has changed"):
            reid_jax.load(places.export)
    finally:
        file.write_bytes(whole)


def test_an_export_of_an_older_version_is_to_be_made_again(places, tmp_path):
    older = tmp_path / "export"
    older.mkdir()
    about = json.loads((places.export / "export.json").read_text())
    about.pop("fingerprint")
    (older / "export.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"no whole export .*export it again"):
        reid_jax.load(older)


def test_an_export_of_a_run_that_knew_one_way_of_resizing(places, tmp_path):
    """A checkpoint keeps the fields that it was saved with, and so do its exports."""
    older = tmp_path / "export"
    shutil.copytree(places.export, older)
    about = json.loads((older / "export.json").read_text())
    about["config"].pop("data.resize")
    about.pop("squared_distances")
    (older / "export.json").write_text(json.dumps(about))
    digests.write(older)
    network = reid_jax.load(older).network
    assert (network.resize, network.squared_distances) == ("bilinear", False)
    about["method"] = "reid_jax.models.cpacol"
    (older / "export.json").write_text(json.dumps(about))
    digests.write(older)
    assert reid_jax.load(older).network.squared_distances


def test_packages_that_hide_the_librarys(places, hidden):
    """An export needs no configs."""
    folder = hidden("configs")
    for place in (places.run, "shipped/vit"):
        with pytest.raises(UserError, match=f"{folder} hides"):
            reid_jax.load(place)
    reid_jax.load(places.export)
    folder = hidden("data_pipelines")
    with pytest.raises(UserError, match=f"{folder} hides"):
        reid_jax.load(places.export)


_ALONE = """
import sys
blocked = {"flax", "optax", "orbax", "grain", "clu", "etils", "fsspec", "pyarrow"}
blocked |= {"tensorflow_datasets", "ml_collections", "absl"}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocked())
import reid_jax
assert "jax" not in sys.modules
import numpy as np
vectors = reid_jax.load(sys.argv[1]).embed(sys.argv[2], progress=False)
np.save(sys.argv[3], vectors["vector"])
"""


def test_an_export_needs_only_jax(places, photos, extractor, tmp_path):
    command = [sys.executable, "-c", _ALONE, places.export, photos, tmp_path / "x.npy"]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    wanted = extractor.embed(photos, progress=False)["vector"]
    np.testing.assert_allclose(
        np.load(tmp_path / "x.npy"), wanted, rtol=1e-4, atol=1e-5
    )
