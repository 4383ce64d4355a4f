"""`reid-jax embed`: what is written, that it goes on where it was, what it refuses."""

import datetime
import json
import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

import reid_jax
from data_pipelines.images import BILINEAR
from reid_jax import __main__ as verbs
from reid_jax.embed import files, job, listing, same
from reid_jax.errors import UserError
from reid_jax.extractor.extractor import Extractor
from reid_jax.extractor.network import Network
from reid_jax.runtime import sharding


def _mean_colours(variables, images):
    """Stands in for a network: means of six bands, and which of three are light."""
    del variables
    light = images.astype(jnp.float32) / 255
    bands = light.reshape(len(images), 6, -1).mean(-1)
    return {"vector": bands, "visibility": bands[:, :3] > 0.5}


def _gap(query, gallery):
    return jnp.abs(query["vector"][:, None] - gallery["vector"][None]).sum(-1)


@pytest.fixture(scope="module")
def extractor():
    stand_in = Network(
        method="a method",
        fingerprint="89ab",
        image_size=(32, 18),
        resize=BILINEAR,
        parts=(),
        inputs=(),
        embed=_mean_colours,
        distance=_gap,
        variables={},
    )
    return Extractor(stand_in, sharding.make_mesh())


@pytest.fixture(autouse=True)
def loaded(extractor, monkeypatch):
    """What the verb loads."""
    monkeypatch.setattr(reid_jax, "load", lambda place: extractor)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(job, "ROWS", 8)


def _embed(*args):
    verbs.main(["embed", "--model=a run", "--batch_size=8", *map(str, args)])


def _refused(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        _embed(*args)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "Traceback" not in error
    return error[error.index("error: ") :]


def _names(path):
    return pq.read_table(path)["path"].to_pylist()


def _rows(path):
    """Names, and what `embed` gave for each."""
    blocks = list(files.read(path, rows=5))
    embedding = {
        name: np.concatenate([block[name] for _, block in blocks])
        for name in blocks[0][1]
    }
    return [x for rows, _ in blocks for x in rows["path"].to_pylist()], embedding


def _same(got, wanted):
    assert got.keys() == wanted.keys()
    for name in got:
        assert got[name].dtype == wanted[name].dtype
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5, atol=1e-6)


def test_a_folder_as_parquet_and_npz(extractor, photos, tmp_path, capsys, small_parts):
    wanted = extractor.embed(photos, progress=False)
    for name in ("new/photos.parquet", "photos.npz"):
        _embed(f"--images={photos}", f"--to={tmp_path / name}")
        assert "21 images in" in capsys.readouterr().out
    names = sorted(map(str, photos.glob("camera*/*.png")))
    got, embedding = _rows(tmp_path / "new" / "photos.parquet")
    assert got == names
    _same(embedding, wanted)
    with np.load(tmp_path / "photos.npz") as stored:
        assert stored["path"].tolist() == names
        _same({name: stored[name] for name in wanted}, wanted)
    table = pq.read_table(tmp_path / "new" / "photos.parquet")
    sizes = {n: table.schema.field(n).type.list_size for n in ("vector", "visibility")}
    assert sizes == {"vector": 6, "visibility": 3}
    assert table["person"].null_count == 21
    about = json.loads(table.schema.metadata[b"reid_jax"])
    assert about["fingerprint"] == extractor.network.fingerprint
    assert about["image_size"] == [32, 18]
    assert about["arrays"] == {"vector": [6], "visibility": [3]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "photos.npz"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["photos.parquet"]


def test_arrays_with_more_axes_come_back_in_their_shape(tmp_path):
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(3, 4, 5)).astype(np.float32)
    given = {"parts": parts, "length": np.float32([1, 2, 3])}
    items = [listing.Item(f"{i}.jpg", dict) for i in range(3)]
    about = files.About("m", "f", (2, 1), False, "i", (0, 1), "/")
    files.write_part(tmp_path / "a.parquet", files.table(items, given, about))
    assert pq.read_table(tmp_path / "a.parquet")["parts"][1].as_py() == pytest.approx(
        parts[1].reshape(-1)
    )
    _same(_rows(tmp_path / "a.parquet")[1], given)


def test_a_prepared_split(extractor, tiny_data, tmp_path):
    split = ["--dataset=tiny", "--split=query", f"--data_dir={tiny_data}"]
    _embed(*split, f"--to={tmp_path / 'q.parquet'}")
    table = pq.read_table(tmp_path / "q.parquet")
    assert table["path"][0].as_py() == "0020_c1s1_000000_q0.jpg"
    assert table["person"].to_pylist() == [
        str(p) for p in range(20, 25) for _ in range(3)
    ]
    assert set(table["camera"].to_pylist()) == {"1"}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table(photos, tmp_path, kind):
    rows = {
        "path": [f"{photos}/camera0/00.png", "mine.png", f"{photos}/camera1/04.png"],
        "person": ["7", "", "ann"],
        "camera": ["door", "2", ""],
        "time": ["2026-11-29T14:15:00+02:00", "1700000000", ""],
    }
    shutil.copy(photos / "camera2" / "02.png", tmp_path / "mine.png")
    table = tmp_path / f"t.{kind}"
    if kind == "csv":
        lines = [";".join(rows), *map(";".join, zip(*rows.values(), strict=True))]
        table.write_text("\n".join(lines))
    else:
        pq.write_table(files.pa.table(rows), table)
    _embed(f"--images={table}", f"--to={tmp_path / 'out.parquet'}")
    got = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["person"] for row in got] == ["7", None, "ann"]
    assert [row["camera"] for row in got] == ["door", "2", None]
    assert [row["path"] for row in got][1] == str(tmp_path / "mine.png")
    utc = datetime.UTC
    assert [row["time"] for row in got] == [
        datetime.datetime(2026, 11, 29, 12, 15, tzinfo=utc),
        datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=utc),
        None,
    ]


def test_a_glob_and_shares_that_together_are_all(extractor, photos, tmp_path):
    images = f"--images={photos}/camera[01]/*.png"
    for i in range(4):
        _embed(images, f"--to={tmp_path / 'all.parquet'}", f"--shard={i}/4")
    shares = sorted(tmp_path.glob("*.parquet"))
    assert [p.name for p in shares] == [
        f"all-0000{i}-of-00004.parquet" for i in range(4)
    ]
    wanted = sorted(map(str, photos.glob("camera[01]/*.png")))
    assert [name for share in shares for name in _names(share)] == wanted


class _Killed(Exception):
    pass


def test_a_killed_run_goes_on_where_it_was(
    extractor, photos, tmp_path, monkeypatch, small_parts, capsys
):
    """The process dies when the second part is written."""
    command = [f"--images={photos}", f"--to={tmp_path / 'x.parquet'}"]
    real, written = files.write_part, []

    def write(path, rows):
        if written:
            path.with_suffix(".writing").write_bytes(b"half")
            raise _Killed
        written.append(path)
        real(path, rows)

    monkeypatch.setattr(files, "write_part", write)
    with pytest.raises(_Killed):
        _embed(*command)
    assert not (tmp_path / "x.parquet").exists()
    monkeypatch.setattr(files, "write_part", real)
    read = []
    one = listing.images.read_file
    monkeypatch.setattr(
        listing.images, "read_file", lambda path: read.append(path) or one(path)
    )
    _embed(*command)
    names = sorted(map(str, photos.glob("camera*/*.png")))
    assert sorted(read) == names[8:]
    assert "8 of them from before" in capsys.readouterr().out
    got, embedding = _rows(tmp_path / "x.parquet")
    assert got == names
    _same(embedding, extractor.embed(photos, progress=False))
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
    _embed(*command)
    assert "already there; nothing was done" in capsys.readouterr().out


def test_ctrl_c_says_what_is_kept(photos, tmp_path, monkeypatch, small_parts, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "join", interrupt)
        with pytest.raises(SystemExit) as ended:
            _embed(f"--images={photos}", f"--to={tmp_path / 'x.parquet'}")
    assert ended.value.code == 130
    assert "interrupted; 21 of 21 images are kept" in capsys.readouterr().err


@pytest.fixture
def with_bad(photos, tmp_path):
    """A folder whose fourth and last images are damaged."""
    folder = tmp_path / "some"
    shutil.copytree(photos, folder)
    bad = [folder / "camera0" / "09.png", folder / "camera2" / "20.png"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:99])
    return folder, bad


def test_a_bad_image_stops_with_its_name_or_is_left_out(
    extractor, with_bad, tmp_path, capsys, small_parts
):
    folder, bad = with_bad
    command = [f"--images={folder}", f"--to={tmp_path / 'x.parquet'}"]
    error = _refused(capsys, *command)
    assert f"the image {bad[0]} cannot be read: not a whole image" in error
    assert "--skip_bad_images" in error
    assert not (tmp_path / "x.parquet").exists()
    _embed(*command, "--skip_bad_images")
    shown = capsys.readouterr().out
    assert "2 images were left out:" in shown
    assert all(str(path) in shown for path in bad)
    names = sorted(set(map(str, folder.glob("camera*/*.png"))) - set(map(str, bad)))
    got, embedding = _rows(tmp_path / "x.parquet")
    assert got == names
    _same(embedding, extractor.embed(names, progress=False))
    _embed(*command)
    assert (
        "is already there, without 2 images that could not" in capsys.readouterr().out
    )
    skipped = files.read_about(tmp_path / "x.parquet").skipped
    assert [str(bad[i]) in line for i, line in enumerate(skipped)] == [True, True]


def test_other_work_is_not_written_over(extractor, photos, tmp_path, capsys):
    target = tmp_path / "x.parquet"
    _embed(f"--images={photos}/camera0", f"--to={target}")
    before = target.read_bytes()
    error = _refused(capsys, f"--images={photos}", f"--to={target}")
    assert "holds embeddings of other images: 14 are not in it" in error
    assert f"such as {photos}/camera1/01.png" in error
    assert "reid-jax search add" in error
    error = _refused(capsys, f"--images={photos}/camera0", f"--to={target}", "--flip")
    assert "flip False there, True here" in error
    assert target.read_bytes() == before
    _embed(f"--images={photos}", f"--to={target}", "--overwrite")
    assert len(_names(target)) == 21


def test_a_file_of_another_network_is_named(photos, tmp_path, extractor):
    about = files.About("m", "0123", (32, 18), False, "i", (0, 1), "/")
    items = [listing.Item("a.jpg", dict)]
    rows = files.table(items, {"vector": np.zeros((1, 6), np.float32)}, about)
    files.write_part(tmp_path / "x.parquet", rows)
    work = job.Job(listing.of_images(str(photos)), tmp_path / "x.parquet")
    fingerprint = extractor.network.fingerprint
    with pytest.raises(UserError, match=f"fingerprint 0123 there, {fingerprint} here"):
        job.run(work, extractor)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--images=nowhere", "--to=x.parquet"], "no image or folder 'nowhere'"),
        (["--images=no*where", "--to=x.parquet"], "no image files match"),
        (["--images=.", "--to=x.parquet"], "there are no images below '.'"),
        (["--images=.", "--to=x.csv"], "ending in .parquet or .npz"),
        (["--images={}", "--to=gs://b/x.parquet"], "gs://b/x.parquet is in a bucket"),
        (["--images=", "--to=x.parquet"], "--images is empty"),
        (["--to=x.parquet"], "either --images or --dataset"),
        (["--images={}", "--to=x.parquet", "--shard=4/4"], "numbered from 0 to 3"),
        (["--images={}", "--to=x.parquet", "--shard=1/99"], "only 21 images"),
        (["--images={}", "--to=x.parquet", "--shard=one"], "write 3/64"),
        (["--images=t.csv", "--to=x.parquet"], "row 3, column time: 'noon'"),
        (["--dataset=tinx", "--to=x.parquet"], "tinx is not prepared in data"),
        (["--images={}", "--to=x.parquet", "--batch_size=0"], "at least one image"),
        (["--images={}", "--to=t.csv/x.parquet"], "cannot write to t.csv"),
    ],
)
def test_mistakes_leave_nothing(args, message, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("t.csv").write_text("path,time\na.jpg,\nb.jpg,noon\n")
    assert message in _refused(capsys, *(arg.format(photos) for arg in args))
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("20261129", (2026, 11, 29)),
        ("1700000000.5", (2023, 11, 14)),
        *((text, None) for text in ("2026", "20261129141", "202611291415")),
        *((text, None) for text in ("202611291415.0", "2026112910215")),
    ],
)
def test_a_date_in_figures_is_no_second(tmp_path, text, wanted):
    (tmp_path / "t.csv").write_text(f"path,time\na.jpg,{text}\n")
    if wanted is None:
        with pytest.raises(UserError, match=f"column time: '{text}' is neither"):
            listing.of_images(str(tmp_path / "t.csv"))
        return
    (item,) = listing.of_images(str(tmp_path / "t.csv")).items(range(1))
    assert item.time.date() == datetime.date(*wanted)


def test_a_time_before_the_first_year(tmp_path):
    (tmp_path / "t.csv").write_text("path,time\na.jpg,0001-01-01T00:00:00+05:00\n")
    with pytest.raises(UserError, match="row 2, column time"):
        listing.of_images(str(tmp_path / "t.csv"))


def test_names_that_a_table_can_hold_or_not(photos, tmp_path, capsys):
    odd = "at 9.41\u202fAM.png"  # as macOS names screenshots
    command = [f"--images={tmp_path}", f"--to={tmp_path / 'x.parquet'}"]
    shutil.copy(photos / "camera0" / "00.png", tmp_path / odd)
    _embed(*command)
    assert _names(tmp_path / "x.parquet") == [str(tmp_path / odd)]
    for wrong, shown in (
        (b"\xff.png", "udcff.png"),
        (b"a\n.png", "a\\n.png"),
        (b"\xe2\x80\xa8.png", "u2028.png"),
    ):
        name = tmp_path / os.fsdecode(wrong)
        shutil.copy(photos / "camera0" / "00.png", name)
        error = _refused(capsys, *command)
        assert f"{shown} has unprintable characters: rename it" in error
        name.unlink()


def test_a_file_that_is_none(tmp_path):
    for name in ("x.parquet", "x.npz"):
        (tmp_path / name).write_bytes(b"PAR1")
        with pytest.raises(UserError, match=f"{name} is no file of embeddings"):
            files.read_about(tmp_path / name)
    with pytest.raises(UserError, match="there is no file"):
        files.read_about(tmp_path / "y.parquet")


@pytest.fixture
def begun(photos, tmp_path, monkeypatch, small_parts):
    """A job that ended before its parts, of 8, 8 and 5 images, were joined."""
    folder = tmp_path / "mine"
    shutil.copytree(photos, folder)

    def die(*_, **__):
        raise _Killed

    command = [f"--images={folder}", f"--to={tmp_path / 'x.parquet'}"]
    with monkeypatch.context() as patched:
        patched.setattr(files, "join", die)
        with pytest.raises(_Killed):
            _embed(*command)
    return command, sorted((tmp_path / ".x.parquet.parts").glob("*.parquet"))


def _rot(part):
    """Other values in the column of vectors, where Parquet keeps its length."""
    data = bytearray(part.read_bytes())
    stored = pq.read_table(part)["vector"].to_numpy()[0].tobytes()
    data[data.index(stored)] ^= 1
    part.write_bytes(data)


@pytest.mark.parametrize(
    ("which", "harm", "noted"),
    [
        (0, pathlib.Path.unlink, False),
        (1, pathlib.Path.unlink, False),
        (1, lambda part: part.write_bytes(part.read_bytes()[:-20]), True),
        (2, lambda part: part.write_bytes(b""), True),
        (1, _rot, True),
        (1, lambda part: pq.write_table(pq.read_table(part)[1:], part), True),
        (1, lambda part: part.rename(part.with_stem(f"{4:012}-{12:012}")), True),
    ],
    ids=["no first", "no second", "cut", "empty", "rotten", "short", "overlapping"],
)
def test_a_part_that_is_lost_or_damaged_is_computed_again(
    begun, extractor, tmp_path, capsys, which, harm, noted
):
    command, parts = begun
    harm(parts[which])
    _embed(*command)
    shown = capsys.readouterr().out
    assert f"{21 - (8, 8, 5)[which]} of them from before" in shown
    assert ("1 parts from before were damaged" in shown) == noted
    got, embedding = _rows(tmp_path / "x.parquet")
    assert got == sorted(map(str, (tmp_path / "mine").glob("camera*/*.png")))
    _same(embedding, extractor.embed(tmp_path / "mine", progress=False))


def test_several_gaps_and_a_part_that_overlaps(begun, extractor, tmp_path, capsys):
    command, parts = begun
    folder, network = tmp_path / "mine", extractor.network
    work = same.Work(listing.of_images(str(folder)), (0, 1), False, network)
    rows = files.pa.concat_tables(map(pq.read_table, parts))[12:20]
    embedding = {
        name: x[12:20] for name, x in extractor.embed(folder, progress=False).items()
    }
    items = [listing.Item(name, dict) for name in rows["path"].to_pylist()]
    files.write_part(
        parts[0].with_stem(f"{12:012}-{20:012}"),
        files.table(items, embedding, work.about(range(12, 20))),
    )
    parts[0].unlink()
    parts[2].unlink()
    _embed(*command)
    shown = capsys.readouterr().out
    assert "1 parts from before" in shown
    assert "8 of them from before" in shown
    got, embedding = _rows(tmp_path / "x.parquet")
    assert got == sorted(map(str, folder.glob("camera*/*.png")))
    _same(embedding, extractor.embed(folder, progress=False))


def test_an_image_that_was_replaced_after_a_kill_is_computed_again(
    begun, extractor, tmp_path, capsys
):
    command, _ = begun
    images = sorted((tmp_path / "mine").glob("camera*/*.png"))
    shutil.copy(images[0], images[9])
    _embed(*command)
    assert "13 of them from before" in capsys.readouterr().out
    _same(_rows(tmp_path / "x.parquet")[1], extractor.embed(images, progress=False))


def test_rows_that_are_missing_are_not_joined(begun, tmp_path):
    _, parts = begun
    about = files.read_about(parts[0])
    with pytest.raises(UserError, match="13 embeddings and 0 messages of 21 images"):
        files.join(
            parts[::2], tmp_path / "y.parquet", about, kind=".parquet", images=21
        )
    assert not (tmp_path / "y.parquet").exists()


def test_the_same_names_in_another_folder_are_other_images(
    photos, tmp_path, monkeypatch, capsys
):
    for place in ("a", "b"):
        shutil.copytree(photos / "camera0", tmp_path / place / "photos")
    command = ["--images=photos", f"--to={tmp_path / 'x.parquet'}"]
    monkeypatch.chdir(tmp_path / "a")
    _embed(*command)
    monkeypatch.chdir(tmp_path / "b")
    error = _refused(capsys, *command)
    assert f"7 are not in it (such as {tmp_path}/b/photos/00.png)" in error
    assert f"7 in it are not asked for (such as {tmp_path}/a/photos/00.png)" in error
    monkeypatch.chdir(tmp_path)
    _embed("--images=a/photos", command[1])
    assert "already there" in capsys.readouterr().out


def test_facts_or_files_that_have_changed_are_not_already_there(
    photos, tmp_path, capsys
):
    shutil.copy(photos / "camera0" / "00.png", tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,person\na.png,1\n")
    for to in ("x.parquet", "x.npz"):
        _embed(f"--images={tmp_path / 't.csv'}", f"--to={tmp_path / to}")
    (tmp_path / "t.csv").write_text("path,person\na.png,2\n")
    command = [f"--images={tmp_path / 't.csv'}", f"--to={tmp_path / 'x.npz'}"]
    assert "person, camera or time of some images have changed" in _refused(
        capsys, *command
    )
    (tmp_path / "t.csv").write_text("path,person\na.png,1\n")
    shutil.copy(photos / "camera1" / "01.png", tmp_path / "a.png")
    error = _refused(capsys, *command)
    assert "error: some image files (by their size or time) have changed" in error


def test_a_changed_picture_of_a_prepared_split_is_told(tiny_data):
    split = listing.of_split("tiny", "query", str(tiny_data))
    marks = split.marks(range(3))
    assert len(set(marks.versions)) == 3
    assert split.folder == str(tiny_data / "tiny" / "query")


def test_a_bad_image_among_few_leaves_nothing_and_says_so(photos, tmp_path, capsys):
    shutil.copy(photos / "camera0" / "00.png", tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no")
    error = _refused(capsys, f"--images={tmp_path}", f"--to={tmp_path / 'x.npz'}")
    assert "nothing is kept yet, and the same command begins anew" in error


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_what_is_at_the_target_and_is_no_file_of_embeddings(
    photos, tmp_path, capsys, kind
):
    target = tmp_path / f"x.{kind}"
    command = [f"--images={photos}", f"--to={target}"]
    _embed(*command)
    whole = target.read_bytes()
    text = np.array(json.dumps({"arrays": []}))
    np.savez(tmp_path / "list.npz", about=text)
    np.save(tmp_path / "array.npy", np.zeros(3))
    others = [tmp_path / "list.npz", tmp_path / "array.npy"]
    wrong = [b"", b"hello", whole[: len(whole) // 2], *(p.read_bytes() for p in others)]
    for content in wrong:
        target.write_bytes(content)
        error = _refused(capsys, *command)
        assert f"{target} is no file of embeddings, or is damaged; choose" in error
    _embed(*command, "--overwrite")
    assert len(np.load(target)["path"] if kind == "npz" else _names(target)) == 21
    target.unlink()
    target.mkdir()
    assert "is a folder" in _refused(capsys, *command, "--overwrite")


def test_a_file_that_has_rotted_is_not_read(begun):
    _, parts = begun
    _rot(parts[0])
    with pytest.raises(UserError, match="is damaged"):
        _rows(parts[0])


def test_a_camera_whose_number_is_too_large_is_a_name(photos, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(
        f"path,camera\n{photos}/camera0/00.png,7\n{photos}/camera1/01.png,{2**31}\n"
    )
    _embed(f"--images={table}", f"--to={tmp_path / 'x.parquet'}")
    got = pq.read_table(tmp_path / "x.parquet")["camera"].to_pylist()
    assert got == ["7", str(2**31)]
