"""Part-label files: matching, checks, what is stored and what is served."""

import io
import json
import pathlib
import shutil
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines import images, loader, prepare, sampling, transforms
from data_pipelines.entries import Entry, Split
from data_pipelines.part_labels import label_files
from data_pipelines.part_labels.kinds import flip_classes
from data_pipelines.prepared import open_records
from reid_jax.errors import UserError
from tests import commands
from tests.data_pipelines.market_folder import small_files, write

KINDS = ("pifpaf", "hpnet", "lip", "parts")


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(array, mode=None):
    buffer = io.BytesIO()
    PIL.Image.fromarray(array, mode).save(buffer, "PNG")
    return buffer.getvalue()


def grey(bits):
    """A PNG of one grey pixel of 1; no writer at hand makes one of so few bits."""
    header = struct.pack(">IIBBBBB", 1, 1, bits, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, 1 << 8 - bits]))
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def fields(seed=0, shape=(36, 17, 9), dtype=np.float32):
    return np.random.default_rng(seed).random(shape).astype(dtype)


def saved(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def nearest(array, height, width):
    """Nearest resizing by the centres of the pixels."""
    rows = ((np.arange(height) + 0.5) * array.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * array.shape[1] / width).astype(int)
    return array[rows][:, columns]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_fields_become_the_class_of_the_greatest_confidence(tmp_path, dtype):
    stored = fields(dtype=dtype)
    stored[:, 2:5] *= 0.4  # nobody there
    path = saved(tmp_path / "x.npy", npy(stored))
    got = decoded(label_files.Label(path, "pifpaf")(128, 64))
    best = np.array(
        [[stored[:, y, x].argmax() + 1 for x in range(9)] for y in range(17)]
    )
    best[2:5] = 0
    np.testing.assert_array_equal(got, nearest(best, 128, 64))
    assert got.dtype == np.uint8
    assert 0 in got
    assert got.max() <= 36


def test_the_threshold_itself_is_not_background_and_overshoot_is_clamped():
    values = np.zeros((36, 1, 3), np.float32)
    values[7, 0] = [0.5, 0.4999, -0.2]
    np.testing.assert_array_equal(label_files.classes_of_fields(values), [[8, 0, 0]])
    values[3], values[7] = 1.1, 1.2  # both are certain: the first of equal ones
    np.testing.assert_array_equal(label_files.classes_of_fields(values), [[4, 4, 4]])


@pytest.mark.parametrize(
    ("kind", "greatest"), [("hpnet", 7), ("parts", 8), ("lip", 19)]
)
@pytest.mark.parametrize("mode", ["L", "P"])
def test_maps_are_stored_as_they_are(tmp_path, kind, greatest, mode):
    array = np.random.default_rng(0).integers(0, greatest + 1, (32, 16), np.uint8)
    array[0] = 255
    image = PIL.Image.fromarray(array)
    if mode == "P":
        image = PIL.Image.frombytes("P", (16, 32), array.tobytes())
        image.putpalette([n % 256 for n in range(768)])
    path = tmp_path / "x.png"
    image.save(path)
    np.testing.assert_array_equal(label_files.read(path, kind), array)
    got = decoded(label_files.Label(path, kind)(64, 48))
    np.testing.assert_array_equal(got, nearest(array, 64, 48))


HUGE = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + (
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (36, 99999999, 9999999), }"
).ljust(117) + b"\n"  # fmt: skip

BAD = [
    ("pifpaf", b"", "no whole NumPy array"),
    ("pifpaf", b"\x93NUMPY\x01\x00", "no whole NumPy array"),
    ("pifpaf", npy(fields())[:900], "no whole NumPy array"),
    ("pifpaf", HUGE, "no whole NumPy array"),
    ("pifpaf", npy(np.array([{}], object)), "no whole NumPy array"),
    ("pifpaf", npy(fields(shape=(17, 9, 36))), "17x9x36 instead of 36 x h x w"),
    ("pifpaf", npy(fields(shape=(36, 0, 9))), "shape is 36x0x9"),
    ("pifpaf", npy(fields(shape=(36,))), "shape is 36 "),
    ("pifpaf", npy(np.zeros((36, 4, 2), np.uint8)), "uint8 values instead of float"),
    ("pifpaf", npy(fields() * 255), "span 0.0"),
    ("pifpaf", npy(np.full((36, 4, 2), np.nan)), "span nan"),
    ("pifpaf", npy(np.full((36, 4, 2), -np.inf)), "span -inf"),
    ("hpnet", png(np.full((4, 2), 8, "u1")), "label 8; labels of kind hpnet are 0 to"),
    ("lip", png(np.full((4, 2), 20, "u1")), "label 20; labels of kind lip are 0 to 19"),
    ("parts", png(np.full((4, 2), 9, "u1")), "label 9; labels of kind parts are 0 to"),
    ("parts", png(np.zeros((4, 2, 3), np.uint8)), "mode RGB"),
    ("parts", png(np.zeros((4, 2), np.uint16)), "mode I;16"),
    ("parts", png(np.zeros((4, 2), bool)), "mode 1"),
    ("parts", grey(2), "its channel has 2 bits instead of 8"),
    ("parts", grey(4), "its channel has 4 bits instead of 8"),
    ("parts", b"", "no whole PNG"),
    ("parts", png(np.eye(64, dtype=np.uint8))[:70], "no whole PNG"),
    ("parts", npy(fields()), "no whole PNG"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "data", "words"), BAD)
def test_a_bad_label_file_is_named(tmp_path, kind, data, words):
    path = saved(tmp_path / "0001_c1.bad", data)
    with pytest.raises(UserError) as error:
        label_files.read(path, kind)
    assert "0001_c1.bad" in str(error.value)
    assert words in str(error.value)


def test_an_archive_of_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", fields())
    with pytest.raises(UserError, match="archive of arrays"):
        label_files.read(tmp_path / "x.npz", "pifpaf")


GOOD = {
    "pifpaf": npy(fields(shape=(36, 4, 2))),
    "parts": png(np.eye(8, dtype=np.uint8)),
}


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=150,
    deadline=None,
)
@given(data=st.data(), kind=st.sampled_from(sorted(GOOD)))
def test_any_bytes_give_labels_or_a_user_error(tmp_path, kind, data):
    whole = bytearray(GOOD[kind])
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(
            st.integers(0, 255)
        )
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    path = saved(tmp_path / "x", bytes(data.draw(st.sampled_from([whole, cut]))))
    message = ""
    try:
        got = label_files.read(path, kind)
    except UserError as error:
        message = str(error)
    if message:
        assert str(path) in message
    else:
        assert got.dtype == np.uint8
        assert got.ndim == 2
        assert got.size


# Matching.


def splits_of(*paths):
    """One split for each top folder."""
    found = {}
    for path in map(pathlib.PurePath, paths):
        found.setdefault(path.parts[1], []).append(Entry(path, 1, 0))
    return {name: Split(tuple(entries)) for name, entries in found.items()}


def attached(tmp_path, names, *images, kind="pifpaf"):
    for name in names:
        saved(tmp_path / name, b"")
    splits = label_files.attach(splits_of(*images), tmp_path, kind)
    return {
        str(e.path): e.parts and str(e.parts.path.relative_to(tmp_path))
        for s in splits.values()
        for e in s.entries
    }


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("d/train/0001_c1.jpg", "0001_c1.npy"),
        ("d/train/0001_c1.jpg", "0001_c1.jpg.npy"),
        ("d/train/0001_c1.jpg", "train/0001_c1.jpg.confidence_fields.npy"),
        ("d/whole/003/003_01.tif", "whole/003/003_01.tif.confidence_fields.npy"),
        ("d/whole/003/003_01.tif", "whole/003_01.NPY"),
        ("d/whole/003/003_01.tif", "d/003/003_01.npy"),
        ("d/train/a.b.jpg", "a.b.npy"),
        ("d/train/häßlich 1.jpg", "train/häßlich 1.npy"),
    ],
)
def test_label_files_belong_to_the_image_of_their_stem(tmp_path, image, label):
    others = ["d/train/other.jpg", "d/query/0002_c1.jpg"]
    got = attached(tmp_path, [label], image, *others)
    assert got == {image: label, **dict.fromkeys(others)}


def test_folders_tell_equal_names_apart(tmp_path):
    names = ["occluded/1/1_1.npy", "whole/1/1_1.npy", "whole/2/2_1.npy", ".x/1_1.npy"]
    images = ["d/occluded/1/1_1.tif", "d/whole/1/1_1.tif", "d/occluded/2/2_1.tif"]
    assert attached(tmp_path, names, *images) == {
        images[0]: names[0],
        images[1]: names[1],
        images[2]: None,
    }


def test_one_label_for_two_images_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"1_1\.npy belongs to two images.*whole"):
        attached(tmp_path, ["1_1.npy"], "d/occluded/1_1.tif", "d/whole/1_1.tif")


def test_two_labels_for_one_image_are_an_error(tmp_path):
    with pytest.raises(UserError, match=r"several label files.*train.*Keep one"):
        attached(tmp_path, ["1.npy", "train/1.npy"], "d/train/1.jpg")


def test_no_label_that_fits_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"None of the 1 files.*d/train/1\.jpg"):
        attached(tmp_path, ["query/1.npy"], "d/train/1.jpg")
    with pytest.raises(UserError, match=r"holds no \.png file"):
        attached(tmp_path, [], "d/train/1.jpg", kind="hpnet")
    with pytest.raises(UserError, match="is not a folder"):
        label_files.attach(splits_of("d/train/1.jpg"), tmp_path / "no", "hpnet")


@pytest.mark.parametrize(
    ("folder", "kind", "own", "words"),
    [
        (".", None, False, "add --parts_kind=<one of parts, pifpaf, hpnet, lip>"),
        (None, "hpnet", False, "add --parts=<folder>"),
        (".", "mhp", False, "Unknown kind of part labels: 'mhp'"),
        (None, None, True, "add --parts_kind"),
        (".", "hpnet", True, "leave out --parts"),
    ],
)
def test_arguments_that_do_not_go_together(folder, kind, own, words):
    entry = Entry(
        pathlib.PurePath("1.jpg"), 1, 0, label_files.Label("1", "") if own else None
    )
    with pytest.raises(UserError) as error:
        label_files.attach({"train": Split((entry,))}, folder, kind)
    assert words in str(error.value)


def test_without_labels_nothing_changes():
    splits = splits_of("d/train/1.jpg")
    assert label_files.attach(splits, None, None) == splits
    assert label_files.metadata(splits) == {}
    assert label_files.report(splits) == []


# From the files to the batches.


@pytest.fixture(scope="module", params=KINDS)
def prepared(request, tmp_path_factory):
    """`own` with labels of one kind for half of its images, and the label arrays."""
    folder = tmp_path_factory.mktemp(request.param)
    files = small_files()
    write(folder / "source", files)
    expected = {}
    for n, file in enumerate(sorted(files)):
        if n % 2 or "/-1" in file:
            continue
        place = folder / "labels" / file
        if request.param == "pifpaf":
            stored = fields(n)
            saved(place.with_suffix(".jpg.confidence_fields.npy"), npy(stored))
            expected[place.name] = stored.argmax(axis=0) + 1
        else:
            stored = np.random.default_rng(n).integers(0, 8, (64, 32), np.uint8)
            saved(place.with_suffix(".png"), png(stored))
            expected[place.name] = stored
    prepare.prepare(
        "market1501",
        source=folder / "source",
        data_dir=folder,
        name="own",
        allow_other_counts=True,
        parts=folder / "labels",
        parts_kind=request.param,
        progress=False,
    )
    return folder, request.param, expected


def test_labels_are_stored_with_the_image_at_its_size(prepared):
    folder, kind, expected = prepared
    for split in ("train", "query", "gallery"):
        stored = open_records("own", split, folder)
        assert stored.has_parts
        assert stored.parts_kind == kind
        for record in stored:
            size = images.decode(record["image"]).shape[:2]
            got = images.decode_parts(record["parts"])
            wanted = expected.get(record["filename"])
            if wanted is None:
                wanted = np.full((1, 1), 255)
            np.testing.assert_array_equal(got, nearest(wanted, *size))


def test_labels_are_served_in_training_and_evaluation(prepared):
    folder, kind, expected = prepared
    stored = open_records("own", "train", folder)
    size = images.decode(stored[0]["image"]).shape[:2]
    (batch,) = loader.eval_batches(
        stored, image_size=size, batch_size=len(stored), with_parts=True
    )
    labelled = [stored.filename(i) in expected for i in range(len(stored))]
    assert 0 < sum(labelled) < len(stored)
    assert [(p != 255).all() for p in batch["parts"]] == labelled
    plan = sampling.PKPlan(stored.person, identities=1, images_per_identity=2, seed=0)
    with_steps = {
        name: next(
            loader.train_loader(
                stored,
                plan,
                augment=transforms.build(steps, {"flip": {"p": 1.0}}),
                image_size=size,
                seed=0,
                with_parts=True,
            )
        )
        for name, steps in {
            "flip": ["flip"],
            "all": ["flip", "pad_crop", "random_erasing"],
        }.items()
    }
    for row, index in enumerate(with_steps["flip"]["index"]):
        mirrored = flip_classes(batch["parts"][index][:, ::-1], kind)
        np.testing.assert_array_equal(with_steps["flip"]["parts"][row], mirrored)
        # Erased and padded places of an image without labels stay without labels.
        assert (with_steps["all"]["parts"][row] == 255).all() == (not labelled[index])


def prepare_again(folder, kind, labels, data_dir):
    return commands.ended(
        prepare.main,
        [
            "--dataset=market1501",
            f"--source={folder / 'source'}",
            f"--data_dir={data_dir}",
            "--name=own",
            "--allow_other_counts",
            f"--parts={labels}",
            f"--parts_kind={kind}",
        ],
    )


def test_the_report_counts_labelled_images(prepared, capsys):
    folder, kind, _ = prepared
    assert prepare_again(folder, kind, folder / "labels", folder) == 0
    assert "images have part labels" in capsys.readouterr().out


def test_other_labels_under_the_same_name_are_an_error(prepared, tmp_path, capsys):
    folder, kind, _ = prepared
    other = shutil.copytree(folder / "labels", tmp_path / "other")
    assert prepare_again(folder, kind, other, folder) == 0  # the same elsewhere
    first, second = sorted(p for p in other.rglob("*") if p.is_file())[:2]
    swapped = first.read_bytes(), second.read_bytes()
    second.write_bytes(swapped[0])
    first.write_bytes(swapped[1])
    assert prepare_again(folder, kind, other, folder) == 2
    assert "from something else" in capsys.readouterr().err
    # One that was prepared before labels were noted down is taken as it is.
    (version,) = (folder / "own").iterdir()
    older = tmp_path / "data" / "own" / version.name
    shutil.copytree(version, older)
    stored = json.loads((older / "metadata.json").read_text())
    for found in stored["made_from"]["content"].values():
        found.pop("labels", None)
    (older / "metadata.json").write_text(json.dumps(stored))
    assert prepare_again(folder, kind, other, tmp_path / "data") == 0
    assert "part labels were not noted down" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("skip", "words"), [(False, "label files out"), (True, "No label file is left")]
)
def test_a_bad_label_file_stops_the_preparation(tmp_path, skip, words):
    write(tmp_path / "source", small_files())
    name = "query/0001_c1s1_001051_00.jpg"
    saved(tmp_path / "labels" / pathlib.Path(name).with_suffix(".npy"), b"x")
    with pytest.raises(UserError, match=rf"\.npy: it is no whole NumPy .*{words}"):
        prepare.prepare(
            "market1501",
            source=tmp_path / "source",
            data_dir=tmp_path / "data",
            name="own",
            allow_other_counts=True,
            parts=tmp_path / "labels",
            parts_kind="pifpaf",
            skip_bad_images=skip,
            progress=False,
        )
    assert not list((tmp_path / "data").iterdir())
