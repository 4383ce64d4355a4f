"""Stored records: round trip, pickling, messages; all with TensorFlow blocked."""

import hashlib
import io
import json
import pathlib
import pickle
import subprocess
import sys
import tracemalloc
from typing import ClassVar

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import features, prepared, records
from data_pipelines.entries import Entry, Split
from reid_jax.errors import UserError


def _encoded(extension: str, array: np.ndarray) -> bytes:
    return cv2.imencode(extension, array)[1].tobytes()


def _example(index: int, *, parts: bool) -> dict:
    rng = np.random.default_rng(index)
    example = {
        "image": io.BytesIO(_encoded(".jpg", rng.integers(0, 255, (8, 4, 3), "uint8"))),
        "person": index // 2,
        "camera": index % 3,
        "filename": f"{index:04d}_c{index % 3}.jpg",
    }
    if parts:
        labels = rng.integers(0, 9, (8, 4, 1), "uint8")
        example["parts"] = io.BytesIO(_encoded(".png", labels))
    return example


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Two splits of random pictures."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="parts"),
        tfds.core.BuilderConfig(name="plain"),
    ]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            disable_shuffling=True,
            features=features.features(with_parts=self.builder_config.name == "parts"),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(7),
            "query": self._generate_examples(3),
        }

    def _generate_examples(self, count):
        parts = self.builder_config.name == "parts"
        for index in range(count):
            yield index, _example(index, parts=parts)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    for config in ("parts", "plain"):
        Tiny(
            config=config, data_dir=path, file_format="array_record"
        ).download_and_prepare()
    return path


@pytest.mark.parametrize("config", ["parts", "plain"])
def test_round_trip_keeps_bytes_and_order(data_dir, config):
    opened = prepared.open_records(f"tiny/{config}", "train", data_dir)
    assert len(opened) == 7
    assert opened.has_parts == (config == "parts")
    for index in range(7):
        expected = _example(index, parts=opened.has_parts)
        record = opened[index]
        assert record["image"] == expected["image"].getvalue()
        assert record["filename"] == opened.filename(index) == expected["filename"]
        assert ("parts" in record) == opened.has_parts
        if opened.has_parts:
            assert record["parts"] == expected["parts"].getvalue()
    np.testing.assert_array_equal(opened.person, np.arange(7) // 2)
    np.testing.assert_array_equal(opened.camera, np.arange(7) % 3)
    assert opened.person.dtype == opened.camera.dtype == np.int32


def test_iterates_each_record_once(data_dir):
    opened = prepared.open_records("tiny/plain", "query", data_dir)
    assert [r["filename"] for r in opened] == [opened.filename(i) for i in range(3)]


def test_numpy_indices_and_pickling(data_dir):
    opened = prepared.open_records("tiny/parts", "train", data_dir)
    copy = pickle.loads(pickle.dumps(opened))
    assert copy[np.int64(4)] == opened[4]
    np.testing.assert_array_equal(copy.person, opened.person)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("market1501", "--dataset=market1501 --source=FOLDER "),
        ("synthetic/holistic_demo", "--dataset=synthetic/holistic_demo "),
        (
            "mine",
            "--dataset=market1501 --source=FOLDER --allow_other_counts --name=mine ",
        ),
    ],
)
def test_missing_names_the_prepare_command(data_dir, name, arguments):
    with pytest.raises(UserError) as error:
        prepared.open_records(name, "train", data_dir)
    command = f"python -m data_pipelines.prepare {arguments}--data_dir={data_dir}"
    assert command in str(error.value)


def test_missing_lists_what_is_prepared(data_dir, tmp_path):
    with pytest.raises(UserError) as error:
        prepared.open_records("tiny/plane", "train", data_dir)
    assert "Did you mean tiny/plain?" in str(error.value)
    assert "Prepared there: tiny/parts, tiny/plain." in str(error.value)
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="Prepared there: nothing"):
            prepared.open_records("market1501", "train", folder)


def test_unfinished_preparation_counts_as_missing(tmp_path):
    (tmp_path / "tiny/parts/incomplete.AB12CD_1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match="is not prepared"):
        prepared.open_records("tiny/parts", "train", tmp_path)


def test_unknown_split_lists_the_known(data_dir):
    with pytest.raises(UserError, match="splits: train, query"):
        prepared.open_records("tiny/parts", "test", data_dir)


@pytest.mark.parametrize("damage", ["no metadata", "no shard", "cut shard", "junk"])
def test_damaged_directory(tmp_path, damage):
    builder = Tiny(config="plain", data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    version = tmp_path / "tiny/plain/1.0.0"
    (shard,) = version.glob("*train*")
    if damage == "no metadata":
        (version / "dataset_info.json").unlink()
    elif damage == "no shard":
        shard.unlink()
    elif damage == "cut shard":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    else:
        (version / "features.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged or incomplete.*prepare"):
        prepared.open_records("tiny/plain", "train", tmp_path)


def test_newest_version_wins(data_dir, tmp_path):
    source = data_dir / "tiny/plain/1.0.0"
    for version in ("9.0.0", "10.0.0"):
        target = tmp_path / "tiny/plain" / version
        target.mkdir(parents=True)
        for file in source.iterdir():
            text = file.read_bytes()
            if version == "10.0.0" and file.name == "dataset_info.json":
                text = text.replace(b"1.0.0", b"10.0.0")
            (target / file.name).write_bytes(text)
    (tmp_path / "tiny/plain/9.0.0/features.json").unlink()
    assert len(prepared.open_records("tiny/plain", "train", tmp_path)) == 7


def test_reading_needs_no_tensorflow(data_dir):
    code = (
        "from tests.data_pipelines import no_tensorflow\n"
        "from data_pipelines import prepared\n"
        f"r = prepared.open_records('tiny/parts', 'train', {str(data_dir)!r})\n"
        "print(len(r), r.person.tolist(), sorted(r[0]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (
        "7 [0, 0, 1, 1, 2, 2, 3] ['filename', 'image', 'parts']"
    )


class Source(list):
    """A data source of TFDS as far as records need it."""


def _records(rows, **names):
    keys = ("filename", "person", "camera")
    source = Source(dict(zip(keys, row, strict=True)) for row in rows)
    return records.Records(source, has_parts=False, **names)


ROWS = [("a.jpg", 3, 0), ("b.jpg", 3, 1), ("ü.jpg", 0, 1)]


def test_the_fingerprint_is_of_names_persons_and_cameras():
    text = '["a.jpg", 3, 0]\n["b.jpg", 3, 1]\n["\\u00fc.jpg", 0, 1]\n'
    expected = {
        "images": 3,
        "identities": 1,
        "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
    }
    found = _records(ROWS).fingerprint
    assert json.loads(json.dumps(found)) == expected


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[::-1],
        ROWS[:2],
        [("c.jpg", 3, 0), *ROWS[1:]],
        [("a.jpg", 4, 0), *ROWS[1:]],
        [("a.jpg", 3, 2), *ROWS[1:]],
    ],
)
def test_other_images_have_another_fingerprint(rows):
    assert _records(rows).fingerprint != _records(ROWS).fingerprint


def test_joined_records_have_a_fingerprint_of_their_own():
    one, other = _records(ROWS), _records(ROWS[:2])
    joined = records.JoinedRecords([("one", one), ("other", other)]).fingerprint
    assert joined["images"] == 5
    assert joined["identities"] == 2
    again = records.JoinedRecords([("one", one), ("third", other)]).fingerprint
    assert joined["digest"] != again["digest"]


def test_a_listed_split_has_the_fingerprint_of_the_stored_one(data_dir):
    stored = prepared.open_records("tiny/plain", "train", data_dir)
    listed = Split(
        tuple(
            Entry(pathlib.PurePath(f"{i:04d}_c{i % 3}.jpg"), i // 2, i % 3)
            for i in range(7)
        )
    )
    assert listed.fingerprint == stored.fingerprint


def test_persons_and_cameras_have_the_names_of_the_source():
    named = _records(ROWS, person_names={3: "anna"}, camera_names={0: "door"})
    assert named.person_name(named.person[0]) == "anna"
    assert named.camera_name(named.camera[0]) == "door"
    # As in file names such as 0003_c2.jpg, where there is no other name.
    assert named.camera_name(named.camera[1]) == "2"
    assert _records(ROWS).person_name(3) == "3"


@pytest.mark.parametrize("dataset", ["x", "1", "..", "a/b"])
def test_a_folder_that_cannot_be_listed_is_a_user_error(tmp_path, monkeypatch, dataset):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / dataset).mkdir(exist_ok=True, parents=True)
    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
    with pytest.raises(UserError, match="not prepared"):
        prepared.open_records(dataset, "train", tmp_path)


def test_a_nul_in_a_path_is_a_user_error():
    with pytest.raises(UserError, match="NUL"):
        prepared.open_records("x", "train", "a\0b")
    with pytest.raises(UserError, match="NUL"):
        prepared.prepared_datasets("a\0b")


def test_opening_holds_one_record_at_a_time():
    """Of a million images, the bytes would fill the memory."""
    size, bytes_each = 200, 1 << 20

    class Source:
        def __len__(self):
            return size

        def __getitem__(self, index):
            image = bytes(bytes_each)
            return {"image": image, "person": 7, "camera": index, "filename": "a.jpg"}

    tracemalloc.start()
    opened = records.Records(Source(), has_parts=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * bytes_each
    np.testing.assert_array_equal(opened.camera, np.arange(size))
    assert (opened.person.dtype, opened.person[-1]) == (np.int32, 7)
