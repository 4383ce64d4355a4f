"""The readers on the real names, or as many, of each data set. Scanning opens no image.

Market-1501's own names are in `test_market1501`.
"""

import collections
import io
import itertools
import sys
import zipfile

import numpy as np
import PIL.Image
import pytest

from data_pipelines.readers import cuhk03, sources
from data_pipelines.readers.datasets import DATASETS
from reid_jax.errors import UserError

FOLDERS = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}


def touch(root, names):
    """Empty files; scanning needs no more."""
    for folder in {name.rsplit("/", 1)[0] for name in names}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).touch()
    return root


def scan(name, source, **options):
    """Scans, and compares with what was published."""
    splits = DATASETS[name].read(source, **options)
    sources.check_published(DATASETS[name], splits)
    return splits


def persons(split):
    return {entry.person for entry in split.entries}


def cameras(splits):
    return {entry.camera for split in splits.values() for entry in split.entries}


def duke_names():
    """As many names of each kind as DukeMTMC-reID has."""
    train, test, alone = range(1, 703), range(1001, 1703), range(2001, 2409)
    for split, count, who in (
        ("train", 16522, [*train]),
        ("query", 2228, [*test]),
        ("gallery", 17661, [*test, *alone]),
    ):
        for i, person in zip(range(count), itertools.cycle(who), strict=False):
            yield f"{FOLDERS[split]}/{person:04}_c{i % 8 + 1}_f{i:07}.jpg"


def test_dukemtmc(tmp_path):
    splits = scan("dukemtmc", touch(tmp_path, list(duke_names())))
    assert cameras(splits) == set(range(8))
    # Distractors keep the numbers that their files have.
    assert persons(splits["gallery"]) - persons(splits["query"]) == {*range(2001, 2409)}
    with pytest.raises(UserError, match=r"--lists=<folder") as error:
        scan("occluded_duke", tmp_path / "query")
    assert "Expected Occluded_Duke" in str(error.value)
    with pytest.raises(UserError, match="not the published Occluded-Duke") as error:
        scan("occluded_duke", tmp_path)
    assert "query: 2228 images instead of 2210" in str(error.value)


@pytest.fixture(scope="session")
def occluded_lists(shared_data):
    return shared_data / "splits" / "occluded_duke"


@pytest.fixture
def duke_copy(occluded_lists, tmp_path):
    """A zip like DukeMTMC-reID's: the listed images, otherwise divided."""
    names = set()
    for split in FOLDERS:
        names |= set((occluded_lists / f"{split}.list").read_text().split())
    folders = itertools.cycle(FOLDERS.values())
    with zipfile.ZipFile(tmp_path / "duke.zip", "w") as packed:
        for folder, name in zip(folders, sorted(names), strict=False):
            packed.writestr(f"DukeMTMC-reID/{folder}/{name}", b"")
    return tmp_path / "duke.zip"


def test_occluded_duke_from_a_copy_of_dukemtmc(duke_copy, occluded_lists):
    splits = scan("occluded_duke", duke_copy, lists=occluded_lists)
    for split, found in splits.items():
        listed = (occluded_lists / f"{split}.list").read_text().split()
        assert [e.path.name for e in found.entries] == sorted(listed)
        for entry in found.entries:
            person, camera = entry.path.name.split("_")[:2]
            assert (entry.person, entry.camera) == (int(person), int(camera[1:]) - 1)
    assert cameras(splits) == set(range(8))
    assert not persons(splits["train"]) & persons(splits["gallery"])
    assert persons(splits["query"]) < persons(splits["gallery"])


def test_occluded_duke_from_its_own_folder(occluded_lists, tmp_path):
    lists = {s: (occluded_lists / f"{s}.list").read_text().split() for s in FOLDERS}
    names = [f"{FOLDERS[s]}/{n}" for s, listed in lists.items() for n in listed]
    root = touch(tmp_path / "Occluded_Duke", names)
    without = scan("occluded_duke", tmp_path)
    for split in FOLDERS:
        text = (occluded_lists / f"{split}.list").read_text()
        (root / f"{split}.list").write_text(text)
    assert scan("occluded_duke", tmp_path) == without
    for name in names[:3]:
        (root / name).unlink()
    with pytest.raises(UserError) as error:
        scan("occluded_duke", tmp_path)
    absent = ", ".join(n.split("/")[1] for n in names[:3])
    assert "train: 15615 images instead of 15618" in str(error.value)
    assert f"train: missing files: {absent})" in str(error.value)


def test_lists_that_are_not_there_or_wrong(duke_copy, tmp_path):
    with pytest.raises(UserError, match=r"has no train\.list, query\.list, gallery"):
        scan("occluded_duke", duke_copy, lists=tmp_path)
    for split in FOLDERS:
        (tmp_path / f"{split}.list").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"The list .*train\.list cannot be read"):
        scan("occluded_duke", duke_copy, lists=tmp_path)


PARTS = ("train", "val", "query", "gallery")


@pytest.fixture(scope="session")
def msmt17_lists(shared_data):
    folder = shared_data / "splits" / "msmt17"
    return {f"list_{p}.txt": (folder / f"list_{p}.txt").read_text() for p in PARTS}


@pytest.fixture(scope="session")
def msmt17_zip(msmt17_lists, tmp_path_factory):
    """A zip of empty files under the names of version 2."""
    path = tmp_path_factory.mktemp("msmt17") / "MSMT17_V2.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in msmt17_lists.items():
            packed.writestr(f"MSMT17_V2/{name}", text)
            part = "train" if "train" in name or "val" in name else "test"
            for line in text.splitlines():
                packed.writestr(f"MSMT17_V2/mask_{part}_v2/{line.split()[0]}", b"")
    return path


def test_msmt17(msmt17_zip, msmt17_lists):
    splits = scan("msmt17", msmt17_zip)
    assert cameras(splits) == set(range(15))
    assert persons(splits["train"]) == {*range(1, 1042)}
    assert persons(splits["query"]) == persons(splits["gallery"])
    assert persons(splits["query"]) == {*range(1042, 1042 + 3060)}
    expected = collections.Counter()
    for line in msmt17_lists["list_gallery.txt"].splitlines():
        path, person = line.split()
        expected[path.split("/")[1], int(person) + 1042, int(path.split("_")[2])] += 1
    found = [(e.path.name, e.person, e.camera + 1) for e in splits["gallery"].entries]
    assert collections.Counter(found) == expected
    without = scan("msmt17_noval", msmt17_zip)
    assert without["gallery"].counts == splits["gallery"].counts
    assert persons(without["gallery"]) == persons(splits["gallery"])
    left = {str(e.path) for e in splits["train"].entries}
    left -= {str(e.path) for e in without["train"].entries}
    lines = msmt17_lists["list_val.txt"].splitlines()
    assert {p.split("mask_train_v2/")[1] for p in left} == {x.split()[0] for x in lines}


def test_missing_images_of_msmt17_are_named(msmt17_lists, tmp_path):
    small = {n: "".join(t.splitlines(True)[:5]) for n, t in msmt17_lists.items()}
    for name, text in small.items():
        (tmp_path / name).write_text(text)
        folder = "train" if "train" in name or "val" in name else "test"
        touch(tmp_path, [f"{folder}/{line.split()[0]}" for line in text.splitlines()])
    gone = "test/" + small["list_query.txt"].split()[0]
    (tmp_path / gone).unlink()
    with pytest.raises(UserError, match=f"query: missing files: {gone}\\)?;"):
        scan("msmt17", tmp_path)


@pytest.fixture(scope="session")
def protocols(shared_data):
    """Boxes -> (name, person, camera from 1) of each row of the protocol, and rows."""
    loadmat = pytest.importorskip("scipy.io").loadmat
    folder = shared_data / "splits" / "cuhk03_np"
    return {
        boxes: loadmat(folder / f"cuhk03_new_protocol_config_{boxes}.mat")
        for boxes in ("labeled", "detected")
    }


@pytest.fixture(scope="session")
def release(protocols, tmp_path_factory):
    """`cuhk-03.mat` as MATLAB stores it; a person has the same tiny images as others.

    Its cells lie transposed, and an empty one is an array of two zeros.
    """
    h5py = pytest.importorskip("h5py")
    path = tmp_path_factory.mktemp("cuhk03") / "cuhk03_release" / "cuhk-03.mat"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        shots = [file.create_dataset(f"#refs#/{i}", data=shot(i)) for i in range(10)]
        empty = file.create_dataset("#refs#/empty", data=np.zeros(2, np.uint64))
        for boxes, found in protocols.items():
            pairs = [np.full((10, 1000), empty.ref, h5py.ref_dtype) for _ in range(5)]
            for cell in found["filelist"].ravel():
                pair, person, _, image = map(
                    int, cell[0].removesuffix(".png").split("_")
                )
                pairs[pair - 1][image - 1, person - 1] = shots[image - 1].ref
            refs = [
                file.create_dataset(f"#refs#/{boxes}{i}", data=p, dtype=h5py.ref_dtype)
                for i, p in enumerate(pairs)
            ]
            file.create_dataset(
                boxes, data=[[r.ref for r in refs]], dtype=h5py.ref_dtype
            )
    return path


def shot(i):
    """Pixels of the i-th image of everybody, uint8 [3, W, H] as in the release."""
    return np.random.default_rng(i).integers(0, 256, (3, 16, 20 + i)).astype(np.uint8)


@pytest.mark.parametrize("boxes", ["labeled", "detected"])
def test_the_release_of_cuhk03(release, protocols, shared_data, boxes, tmp_path):
    config = f"cuhk03_new_protocol_config_{boxes}.mat"
    (tmp_path / "cuhk-03.mat").symlink_to(release)
    (tmp_path / config).symlink_to(shared_data / "splits" / "cuhk03_np" / config)
    splits = scan(f"cuhk03np_{boxes}", tmp_path)
    found = protocols[boxes]
    labels, camera = found["labels"].ravel(), found["camId"].ravel()
    for split in FOLDERS:
        rows = found[f"{split}_idx"].ravel().astype(int) - 1
        assert [e.person for e in splits[split].entries] == labels[rows].tolist()
        assert [e.camera + 1 for e in splits[split].entries] == camera[rows].tolist()
    assert not persons(splits["train"]) & persons(splits["gallery"])
    assert persons(splits["query"]) == persons(splits["gallery"])
    entry = splits["train"].entries[1]
    assert entry.path.name == "1_001_1_02.png"
    with PIL.Image.open(io.BytesIO(entry.path.read_bytes())) as image:
        np.testing.assert_array_equal(np.asarray(image), shot(1).T)
    assert "cuhk-03.mat: 1_001_1_02.png" in str(entry.path)


@pytest.mark.parametrize("boxes", ["labeled", "detected"])
def test_the_folders_of_cuhk03(protocols, boxes, tmp_path):
    found = protocols[boxes]
    labels, camera = found["labels"].ravel(), found["camId"].ravel()
    names = []
    for split, folder in FOLDERS.items():
        for i in found[f"{split}_idx"].ravel().astype(int) - 1:
            shown = int(found["filelist"].ravel()[i][0][-6:-4])
            file = f"{labels[i]:04}_c{camera[i]}_{shown:02}.png"
            names.append(f"cuhk03-np/{boxes}/{folder}/{file}")
    touch(tmp_path, names)
    splits = scan(f"cuhk03np_{boxes}", tmp_path)
    assert cameras(splits) == {0, 1}
    assert persons(splits["train"]) | persons(splits["query"]) == {*range(1, 1468)}
    other = cuhk03._OTHER[boxes]
    with pytest.raises(UserError, match=f"Expected .*{other}.* Found in .*: {boxes}"):
        scan(f"cuhk03np_{other}", tmp_path / "cuhk03-np")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p["release"].write_bytes(b"MATLAB 5.0"), "not the whole CUHK03 rel"),
        (lambda p: p["release"].write_bytes(b""), "not the whole CUHK03 release"),
        (lambda p: p["config"].write_bytes(b"x" * 200), "not the new protocol"),
        (lambda p: p["config"].write_bytes(b""), "not the new protocol"),
        (lambda p: p["config"].unlink(), "Expected a folder with cuhk-03.mat and"),
        (lambda p: p["release"].unlink(), "Found in .*: cuhk03_new_protocol_conf"),
    ],
)
def test_a_wrong_release_of_cuhk03_is_refused(shared_data, tmp_path, damage, words):
    h5py = pytest.importorskip("h5py")
    config = "cuhk03_new_protocol_config_labeled.mat"
    paths = {"release": tmp_path / "cuhk-03.mat", "config": tmp_path / config}
    with h5py.File(paths["release"], "w") as file:
        file.create_dataset("labeled", data=np.zeros((1, 5)))
    published = (shared_data / "splits" / "cuhk03_np" / config).read_bytes()
    paths["config"].write_bytes(published)
    with pytest.raises(UserError, match="not the whole CUHK03 release"):
        scan("cuhk03np_labeled", tmp_path)
    damage(paths)
    with pytest.raises(UserError, match=words):
        scan("cuhk03np_labeled", tmp_path)


def test_a_packed_or_incomplete_release_of_cuhk03(release, shared_data, tmp_path):
    h5py = pytest.importorskip("h5py")
    config = "cuhk03_new_protocol_config_detected.mat"
    published = (shared_data / "splits" / "cuhk03_np" / config).read_bytes()
    with zipfile.ZipFile(tmp_path / "cuhk03.zip", "w") as packed:
        packed.write(release, "cuhk-03.mat")
        packed.writestr(config, published)
    with pytest.raises(UserError, match=r"Unpack .*cuhk03\.zip first"):
        scan("cuhk03np_detected", tmp_path / "cuhk03.zip")
    (tmp_path / config).write_bytes(published)
    (tmp_path / "cuhk-03.mat").write_bytes(release.read_bytes())
    with h5py.File(tmp_path / "cuhk-03.mat", "r+") as file:
        pair = file[file["detected"][0, 1]]
        pair[2, 7] = file["#refs#/empty"].ref
    with pytest.raises(UserError, match=r"missing files: 2_008_1_03\.png\)"):
        scan("cuhk03np_detected", tmp_path)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py: pip install h5py\."):
        cuhk03._Release(None, "labeled")
