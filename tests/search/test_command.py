"""The verbs on a gallery in a file, and on a server with the URI alone changed."""

import json
import shutil
import sys

import numpy as np
import PIL.Image
import pytest

from reid_jax import __main__ as verbs
from reid_jax.embed import job, listing
from reid_jax.search import gallery as galleries
from reid_jax.search import layout, milvus, query, rows, strip
from tests.search.conftest import CAMERAS, PERSONS

pymilvus = pytest.importorskip("pymilvus")
pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
server = pytest.importorskip("milvus_lite.adapter.grpc.server")

PATTERN = r"--pattern=(?P<person>\d)_c(?P<camera>\d)"


def search(*argv):
    verbs.main(["search", *map(str, argv)])


def refused(capsys, *argv):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        search(*argv)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


def said(capsys, *argv):
    capsys.readouterr()
    search(*argv)
    return capsys.readouterr().out


@pytest.fixture(scope="package")
def made(tmp_path_factory, photos, extractors):
    """A gallery of all photographs; tests get a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reid_jax.extractor.load.load", lambda place: extractors["toy"])
        place = tmp_path_factory.mktemp("made") / "gallery.db"
        search("add", f"--gallery={place}", "--model=toy", PATTERN, photos)
    return place


@pytest.fixture
def gallery(made, tmp_path):
    shutil.copytree(made, tmp_path / "gallery.db")
    return f"--gallery={tmp_path}/gallery.db"


def ask(gallery, tmp_path, *argv):
    out = tmp_path / "hits.jsonl"
    search("query", gallery, f"--jsonl={out}", *argv)
    return [json.loads(line) for line in out.read_text().splitlines()]


def brute_force(extractor, query, photos):
    """Names of all other photographs and their distances, by NumPy, nearest first."""
    files = sorted(file for file in photos.iterdir() if file != query)
    one = extractor.embed(query, progress=False)["vector"].astype(np.float64)
    all_ = extractor.embed(files, progress=False)["vector"].astype(np.float64)
    distances = np.linalg.norm(all_ - one, axis=1)
    order = np.argsort(distances)
    return [files[i].name for i in order], distances[order]


def stored(path):
    """Names of the images of which anything is in the gallery's files."""
    tables = [pq.read_table(file) for file in path.rglob("data/*.parquet")]
    paths = [p for table in tables for p in table["path"].to_pylist()]
    assert not list(path.rglob("wal/*"))
    return {p.rsplit("/", 1)[-1] for p in paths}


def names(hits):
    return [hit["path"].rsplit("/", 1)[-1] for hit in hits]


@pytest.mark.parametrize("kept", [0, 40])
def test_a_damaged_index_is_built_again(kept, gallery, photos, tmp_path, capsys):
    """As a process leaves one that is killed while it writes it."""
    (index,) = (tmp_path / "gallery.db").rglob("*.idx")
    index.write_bytes(index.read_bytes()[:kept])
    found = ask(gallery, tmp_path, "--top=17", photos / "2_c1.png")
    assert len(found) == 17
    assert "building its index again" in capsys.readouterr().err
    shutil.copytree(tmp_path / "gallery.db", tmp_path / "moved.db")
    moved = f"--gallery={tmp_path}/moved.db"
    assert ask(moved, tmp_path, "--top=17", photos / "2_c1.png") == found
    assert "again" not in capsys.readouterr().err


def test_a_query_gives_the_nearest(gallery, photos, tmp_path, extractors):
    query = photos / "2_c1.png"
    hits = ask(gallery, tmp_path, "--top=17", query)
    expected, distances = brute_force(extractors["toy"], query, photos)
    assert names(hits) == expected
    np.testing.assert_allclose([hit["distance"] for hit in hits], distances, atol=1e-5)
    assert [hit["rank"] for hit in hits] == list(range(1, 18))
    assert (hits[0]["person"], hits[0]["camera"]) in {("2", "0"), ("2", "2")}


def test_filters(gallery, photos, tmp_path, extractors):
    query = photos / "2_c1.png"
    expected, _ = brute_force(extractors["toy"], query, photos)
    hits = ask(gallery, tmp_path, "--top=17", '--filter=camera == "0"', query)
    assert names(hits) == [name for name in expected if "_c0" in name]
    hits = ask(gallery, tmp_path, "--top=17", "--other_cameras", query)
    assert names(hits) == [name for name in expected if "_c1" not in name]


def test_what_is_there_is_not_added_again(gallery, photos, tmp_path, capsys):
    mine = tmp_path / "mine"
    shutil.copytree(photos, mine)
    assert "18 images added" in said(capsys, "add", gallery, PATTERN, mine)
    assert "0 images added or changed, 18 were" in said(capsys, "add", gallery, mine)
    shutil.copy(mine / "0_c0.png", mine / "1_c0.png")  # another content
    assert "1 images added or changed, 17 were" in said(capsys, "add", gallery, mine)
    assert "images       36" in said(capsys, "info", gallery)
    hits = ask(gallery, tmp_path, "--top=1", mine / "0_c0.png")
    assert hits[0]["distance"] < 1e-3
    # What was told of its path is not told again, and stays.
    hits = ask(gallery, tmp_path, "--top=35", mine / "0_c0.png")
    (changed,) = [hit for hit in hits if hit["path"] == str(mine / "1_c0.png")]
    assert (changed["person"], changed["camera"]) == ("1", "0")


def test_new_facts_of_what_is_there(gallery, photos, tmp_path, capsys, extractors):
    path = f"--gallery={tmp_path}/g.db"
    search("add", path, "--model=toy", "--camera=hall", photos)
    persons = r"--pattern=/(?P<person>\d)_"
    assert "18 images added or changed, 0" in said(capsys, "add", path, persons, photos)
    assert "0 images added or changed, 18" in said(capsys, "add", path, persons, photos)
    assert "0 images added or changed, 18" in said(capsys, "add", path, photos)
    query = photos / "2_c1.png"
    expected, distances = brute_force(extractors["toy"], query, photos)
    hits = ask(path, tmp_path, "--top=17", query)
    assert names(hits) == expected  # their vectors are as they were
    np.testing.assert_allclose([hit["distance"] for hit in hits], distances, atol=1e-5)
    assert all(hit["person"] == hit["path"].rsplit("/")[-1][0] for hit in hits)
    assert {hit["camera"] for hit in hits} == {"hall"}


def test_another_index_is_not_overheard(gallery, photos, capsys):
    message = refused(capsys, "add", gallery, "--index=HNSW", photos)
    assert "--use=HNSW" in message
    assert "0 images added" in said(capsys, "add", gallery, "--index=FLAT", photos)


def test_a_lost_index_is_made_again(gallery, photos, tmp_path, capsys, extractors):
    path = str(tmp_path / "gallery.db")
    with galleries.existing(path) as opened:  # as `reindex` leaves it when killed
        opened._client.release_collection(opened.name)
        opened._client.drop_index(opened.name, opened._anchor)
    search("info", gallery)
    captured = capsys.readouterr()
    assert "index        FLAT" in captured.out
    assert "lost its index" in captured.err
    query = photos / "2_c1.png"
    expected, _ = brute_force(extractors["toy"], query, photos)
    assert names(ask(gallery, tmp_path, "--top=5", query)) == expected[:5]


@pytest.mark.parametrize("step", ["delete", "put", "rename_collection"])
def test_an_interrupted_delete_is_finished(
    step, gallery, photos, tmp_path, capsys, monkeypatch
):
    def killed(*args, **options):
        raise KeyboardInterrupt

    where = '--filter=camera == "1"'
    with monkeypatch.context() as patch:
        owner = galleries.Gallery if step == "put" else pymilvus.MilvusClient
        patch.setattr(owner, step, killed)
        with pytest.raises(SystemExit):
            search("delete", gallery, where)
    deleted = 6 if step == "delete" else 0
    assert f"{deleted} entries deleted" in said(capsys, "delete", gallery, where)
    left = {file.name for file in photos.iterdir() if "c1" not in file.name}
    assert stored(tmp_path / "gallery.db") == left
    with galleries.existing(str(tmp_path / "gallery.db")) as opened:
        assert opened._client.list_collections() == ["reid"]


def test_info(gallery, capsys):
    out = said(capsys, "info", gallery)
    for line in (
        "18",
        "tests.toy, fingerprint ffff",
        "32 x 16",
        "vector     24, float",
    ):
        assert line in out
    assert "index        FLAT over vector" in out


def test_delete(gallery, photos, tmp_path, capsys):
    path = tmp_path / "gallery.db"
    assert "3_c1.png" in stored(path)
    out = said(capsys, "delete", gallery, '--filter=camera == "1"', "--dry_run")
    assert "6 entries would be deleted" in out
    assert "6 entries deleted" in said(
        capsys, "delete", gallery, '--filter=camera == "1"'
    )
    assert "images       12" in said(capsys, "info", gallery)
    # Not only hidden: the bytes have gone.
    assert stored(path) == {
        file.name for file in photos.iterdir() if "c1" not in file.name
    }
    assert (photos / "3_c1.png").exists()
    hits = ask(gallery, tmp_path, "--top=18", photos / "0_c0.png")
    assert len(hits) == 11


def test_delete_by_age(tmp_path, photos, capsys):
    gallery = f"--gallery={tmp_path}/g.db"
    old = tmp_path / "2020-05-17T10:00:00Z.png"
    new = tmp_path / "unknown.png"
    for file in (old, new):
        shutil.copy(photos / "0_c0.png", file)
    pattern = r"--pattern=(?P<time>\d{4}-[^/]*Z)\.png"
    search("add", gallery, "--model=toy", pattern, old, new)
    assert "0 entries deleted" in said(capsys, "delete", gallery, "--older_than=9999d")
    assert "1 entries deleted" in said(capsys, "delete", gallery, "--older_than=365d")
    assert "1 entries deleted" in said(capsys, "delete", gallery, "--older_than=0m")


def test_parts_are_compared_by_the_method(tmp_path, photos, extractors):
    gallery = f"--gallery={tmp_path}/parts.db"
    search("add", gallery, "--model=parts", photos)
    query = photos / "2_c1.png"
    hits = ask(gallery, tmp_path, "--top=17", query)
    files = sorted(file for file in photos.iterdir() if file != query)
    distances = extractors["parts"].distance(query, files)[0]
    order = np.argsort(distances, kind="stable")
    np.testing.assert_allclose(
        [hit["distance"] for hit in hits], distances[order], atol=1e-5
    )
    assert names(hits)[:3] == [files[i].name for i in order[:3]]


def test_the_strip(gallery, photos, tmp_path, capsys):
    strip = tmp_path / "strip.png"
    argv = ["query", gallery, "--top=4", f"--strip={strip}"]
    assert f"drawn in {strip}" in said(capsys, *argv, photos / "2_c1.png")
    known = np.asarray(PIL.Image.open(strip))
    right, wrong = ((known == c).all(-1).sum() for c in ((20, 165, 70), (220, 40, 40)))
    assert right > 1000 < wrong  # two images of the person, two others
    with galleries.existing(str(tmp_path / "gallery.db")) as opened:
        there = opened.rows('person != "2"', fields=["*"])
        opened.put([row | {"person": None} for row in there])
    search(*argv, photos / "2_c1.png")
    some = np.asarray(PIL.Image.open(strip))
    legend = (some == (220, 40, 40)).all(-1).sum()
    assert (some == (20, 165, 70)).all(-1).sum() == right
    assert (
        legend < wrong / 3
    )  # others, of whom nobody knows who they are, have no frame
    shutil.copy(photos / "2_c1.png", tmp_path / "someone.png")
    search("query", gallery, "--top=4", f"--strip={strip}", tmp_path / "someone.png")
    unknown = np.asarray(PIL.Image.open(strip))
    assert "drawn at most" not in capsys.readouterr().err
    search("query", gallery, "--top=21", f"--strip={strip}", photos / "2_c1.png")
    said_of = "note: of 1 queries 50 are drawn at most, and 20 images of each"
    assert said_of in capsys.readouterr().err
    assert not (unknown == (20, 165, 70)).all(-1).any()
    assert not (unknown == (220, 40, 40)).all(-1).any()


def test_the_strip_names_what_is_known():
    hits = [query.Hit(0.5, {"path": "/a/b.png", "camera": c}) for c in (None, "1")]
    assert strip._noted([hits[:1]]) == "file and distance"
    assert strip._noted([hits[:1], hits]) == "file, camera and distance"
    assert [strip._note(h) for h in hits] == ["b.png 0.500", "b.png camera 1 0.500"]


def test_how_an_index_is_built(tmp_path, capfd):
    """IVF has no more lists than FAISS wants for so few entries: it warned."""
    about = layout.About("f", "m", "", (8, 4), {"vector": ("float32", (128,))})
    vectors = np.random.default_rng(0).normal(size=(80, 128)).astype(np.float32)
    row = {"path": "/a", "content": "c", "added": "2026", **dict.fromkeys(rows.KNOWN)}
    with galleries.made(str(tmp_path / "g.db"), about) as opened:
        opened.put(
            [row | {"id": f"{i}", "embedding_vector": v} for i, v in enumerate(vectors)]
        )
        opened.flush()
        for kind, params in [
            ("IVF_FLAT", {"nlist": 2}),
            ("HNSW", {"M": 32, "efConstruction": 200}),
        ]:
            opened.reindex(kind)
            built = opened._client.describe_index("reid", "embedding_vector")
            assert built["params"] == params
            assert opened.nearest(vectors[7:8], 1)[0][0]["id"] == "7"
    assert not capfd.readouterr().err


def test_check_and_another_index(gallery, photos, tmp_path, capsys, extractors):
    out = said(
        *(capsys, "check", gallery, "--queries=5", "--top=5", "--use=HNSW"),
        *("--index", "FLAT", "HNSW"),
    )
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    assert lines["FLAT"][4] == "100.0"
    assert set(lines) >= {"FLAT", "HNSW"}
    out = said(capsys, "info", gallery)
    assert "HNSW" in out
    assert "images       18" in out
    query = photos / "2_c1.png"
    expected, _ = brute_force(extractors["toy"], query, photos)
    assert names(ask(gallery, tmp_path, "--top=5", query)) == expected[:5]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--filter=kamera == 1"], "did you mean 'camera'"),
        (["--filter=camera =="], "Milvus answers"),
        (["--top=0"], "--top=0"),
        (["--model=other"], "another network (fingerprint 0000"),
        (["--other_cameras"], "someone.png is not known"),
        (["--jsonl=."], "--jsonl=. is a folder"),
        (["--jsonl=afile/a.jsonl"], "afile (it is a file)"),
        (["--strip=afile/a.png"], "afile (it is a file)"),
        (["--strip=."], "--strip=. is a folder"),
        (["--strip=answers.jpg"], "the picture is a PNG"),
        (["--collection=none"], "has no collection none; there are: reid"),
    ],
)
def test_wrong_queries(argv, words, gallery, photos, tmp_path, capsys, monkeypatch):
    someone = tmp_path / "someone.png"
    shutil.copy(photos / "2_c1.png", someone)
    (tmp_path / "afile").write_text("")
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, "query", gallery, *argv, someone)


def test_what_cannot_be_added(gallery, photos, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    assert "no images below" in refused(capsys, "add", gallery, mine)
    shutil.copy(photos / "2_c1.png", mine / "good.png")
    (mine / "bad.png").write_bytes(b"no image")
    message = refused(capsys, "add", gallery, mine)
    assert "bad.png cannot be read" in message
    assert "leave such images out with --skip_bad_images" in message
    assert "another network" in refused(
        capsys, "add", gallery, "--model=other", mine / "good.png"
    )
    assert "images       18" in said(capsys, "info", gallery)  # nothing half-added
    capsys.readouterr()
    search("add", gallery, "--skip_bad_images", mine)
    captured = capsys.readouterr()
    assert "1 images added" in captured.out
    assert "skipped: the image" in captured.err


def test_a_folder_of_both_kinds(gallery, photos, tmp_path, capsys):
    shutil.copy(photos / "2_c1.png", tmp_path / "a.png")
    (tmp_path / "b.parquet").write_text("notes")
    assert "holds images and Parquet files" in refused(capsys, "add", gallery, tmp_path)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["delete", "--older_than=9999999d"], "is before the year 1"),
        (["delete", "--older_than=99999999999999d"], "is before the year 1"),
        (["check", "--queries=-1"], "--queries=-1: give 1 or more"),
        (["check", "--most=0"], "--most=0: give 1 or more"),
        (["check", "--top=99999"], "--top=99999: Milvus gives 16384 at most"),
        (["add", "--collection=a_kept", "--model=toy"], "neither _kept nor _copy"),
    ],
)
def test_wrong_numbers_and_names(argv, words, gallery, photos, capsys):
    places = [photos] if argv[0] == "add" else []
    assert words in refused(capsys, *argv, gallery, *places)


def test_galleries_that_are_none(tmp_path, photos, capsys):
    image = photos / "2_c1.png"
    (tmp_path / "afile").write_text("")
    for place, words in (
        (f"{tmp_path}/afile/g.db", "it is a file"),
        ("~nobodyx/g.db", "no such user"),
    ):
        add = ("add", f"--gallery={place}", "--model=toy", image)
        assert words in refused(capsys, *add)
    nowhere = f"--gallery={tmp_path}/no.db"
    assert "there is no gallery" in refused(capsys, "query", nowhere, image)
    assert not (tmp_path / "no.db").exists()
    (tmp_path / "text.db").write_text("notes")
    text = f"--gallery={tmp_path}/text.db"
    assert "no file of Milvus Lite" in refused(
        capsys, "add", text, "--model=toy", image
    )
    assert (tmp_path / "text.db").read_text() == "notes"
    nobody = "--gallery=http://127.0.0.1:9"
    assert "no Milvus answers" in refused(capsys, "query", nobody, image)


def test_another_process_has_the_file(gallery, photos, capsys, monkeypatch):
    from milvus_lite.db import MilvusLite

    with MilvusLite(gallery.partition("=")[2]):
        # The lock is that of an open file, so that it holds in this process, too.
        message = refused(capsys, "query", gallery, photos / "2_c1.png")
    assert "another process has it open" in message


def test_without_pymilvus(gallery, photos, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    message = refused(capsys, "query", gallery, photos / "2_c1.png")
    assert "pip install 'reid_jax[search]'" in message
    assert "pip install '.[search]'" in message


def test_without_starlette(gallery, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "reid_jax.search.web", raising=False)
    monkeypatch.delattr("reid_jax.search.web", raising=False)
    assert "pip install 'reid_jax[web]'" in refused(capsys, "serve", gallery)


def test_an_interrupted_add_goes_on(photos, tmp_path, capsys, monkeypatch):
    gallery = f"--gallery={tmp_path}/g.db"
    real, calls = rows.put, []

    def put(*args):
        if calls:
            raise KeyboardInterrupt
        calls.append(real(*args))

    monkeypatch.setattr(rows, "put", put)
    with pytest.raises(SystemExit) as ended:
        search("add", gallery, "--model=toy", "--batch_size=8", photos)
    assert ended.value.code == 130
    assert "goes on from there" in capsys.readouterr().err
    monkeypatch.setattr(rows, "put", real)
    out = said(capsys, "add", gallery, "--model=toy", photos)
    assert "10 images added or changed, 8 were there" in out


def test_a_server_is_a_gallery_too(photos, tmp_path, capsys, extractors):
    running, database, port = server.start_server_in_thread(str(tmp_path / "data"))
    try:
        gallery = f"--gallery=http://127.0.0.1:{port}"
        assert "there are: none" in refused(capsys, "query", gallery, photos)
        search("add", gallery, "--model=toy", PATTERN, photos)
        assert "0 images added" in said(capsys, "add", gallery, photos)
        query = photos / "2_c1.png"
        hits = ask(gallery, tmp_path, "--top=17", "--other_cameras", query)
        expected, _ = brute_force(extractors["toy"], query, photos)
        assert names(hits) == [name for name in expected if "_c1" not in name]
        assert "6 entries deleted" in said(
            capsys, "delete", gallery, '--filter=camera == "1"'
        )
        assert f"images       {PERSONS * (CAMERAS - 1)}" in said(
            capsys, "info", gallery
        )
    finally:
        running.stop(None).wait()
        database.close()


def test_texts_are_quoted():
    assert milvus.quoted('a"b\\é') == '"a\\"b\\\\é"'
    assert milvus.quoted("a\n\r\tb\x1b") == '"a\\n\\r\\tb\x1b"'


def test_files_of_embed_forget_nothing(gallery, photos, tmp_path, capsys, extractors):
    """Person and camera were told of these paths, and are not told by the files."""
    plain = tmp_path / "plain.parquet"
    job.run(job.Job(listing.of_images(str(photos)), plain), extractors["toy"])
    assert "18 images added or changed" in said(capsys, "add", gallery, plain)
    hits = ask(gallery, tmp_path, "--top=17", photos / "2_c1.png")
    assert all(hit["person"] == names([hit])[0][0] for hit in hits)


def test_files_of_embed(tmp_path, photos, capsys, extractors):
    """Rows as `embed` writes them, without a network, again, and of another network."""
    table = tmp_path / "photos.csv"
    lines = [
        f"{photos}/../{photos.name}/{p.name},person {p.name[0]},hall {p.name[3]},"
        f"2026-11-0{p.name[0]}T08:00:00"
        for p in photos.iterdir()
        if p.name[0] != "0"
    ]
    table.write_text("path,person,camera,time\n" + "\n".join(lines))
    out = tmp_path / "shares"
    out.mkdir()
    listing_ = listing.of_images(str(table))
    for i in range(2):
        job.run(job.Job(listing_, out / f"{i}.parquet", (i, 2)), extractors["toy"])
    gallery = f"--gallery={tmp_path}/g.db"
    assert "15 images added" in said(capsys, "add", gallery, out)
    assert "0 images added or changed, 15" in said(capsys, "add", gallery, out)
    query = photos / "2_c1.png"
    assert "which network" in refused(capsys, "query", gallery, query)
    where = '--filter=time >= "2026-11-03" and person != "person 5"'
    hits = ask(gallery, tmp_path, "--model=toy", "--top=17", where, query)
    expected, _ = brute_force(extractors["toy"], query, photos)
    assert names(hits) == [name for name in expected if name[0] in "34"]
    assert hits[0]["time"] == f"2026-11-0{names(hits)[0][0]}T08:00:00Z"
    # It is known to the gallery by its own path, and with it its camera.
    hits = ask(gallery, tmp_path, "--model=toy", "--top=17", "--other_cameras", query)
    assert {hit["camera"] for hit in hits} == {"hall 0", "hall 2"}
    other = tmp_path / "other.parquet"
    job.run(job.Job(listing_, other), extractors["other"])
    assert "another network (fingerprint 0000" in refused(capsys, "add", gallery, other)
    parts = tmp_path / "parts.parquet"
    job.run(job.Job(listing_, parts), extractors["parts"])
    assert "its fingerprint" in refused(capsys, "add", gallery, out, parts)
    (tmp_path / "text.parquet").write_text("notes")
    assert "no file of embeddings" in refused(
        capsys, "add", gallery, tmp_path / "text.parquet"
    )


def _without(table, name):
    return table.drop_columns([name])


def _with(table, name, values, kind=None):
    kind = kind or (
        table.schema.field(name).type if name in table.schema.names else None
    )
    array = pyarrow.array(values, kind)
    if name in table.schema.names:
        return table.set_column(table.schema.names.index(name), name, array)
    return table.append_column(name, array)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: _with(t, "path", [None] * len(t)), "a row has no path"),
        (lambda t: _without(t, "path"), "column path is not there"),
        (lambda t: _without(t, "person"), "column person is not there"),
        (lambda t: _with(t, "person", [1] * len(t), "int64"), "column person is int64"),
        (lambda t: _with(t, "time", ["yesterday"] * len(t), "string"), "column time:"),
        (lambda t: _with(t, "vector", [None] * len(t)), "lacks vectors"),
        (lambda t: _without(t, "vector"), "lacks vectors"),
        (lambda t: _with(t, "id", ["a"] * len(t)), "has a column id of its own"),
        (lambda t: _with(t, "added", ["a"] * len(t)), "has a column added of its own"),
        (lambda t: _with(t, "rank", [1] * len(t)), "has a column rank of its own"),
        (lambda t: pyarrow.concat_tables([t, t[:1]]), "0_c0.png has a row before"),
        (
            lambda t: _with(t, "embedding_vector", ["a"] * len(t)),
            "has a column embedding_vector of its own",
        ),
        (
            lambda t: _with(t, "person", [*["é"] * (len(t) - 1), "é" * 513]),
            "has 1026 bytes, and a gallery keeps 1024",
        ),
        (lambda t: _with(t, "note", ["n" * 1025] * len(t)), "column note of "),
        (None, "is damaged"),
    ],
)
def test_files_that_embed_did_not_write(change, words, embedded, tmp_path, capsys):
    file = tmp_path / "changed.parquet"
    if change:
        pq.write_table(change(pq.read_table(embedded)), file)
    else:
        data = bytearray(embedded.read_bytes())
        data[300:600] = bytes(300)
        file.write_bytes(data)
    gallery = f"--gallery={tmp_path}/g.db"
    assert words in refused(capsys, "add", gallery, file)
    assert not (tmp_path / "g.db").exists()


@pytest.fixture(scope="module")
def embedded(photos, tmp_path_factory, extractors):
    to = tmp_path_factory.mktemp("embedded") / "all.parquet"
    job.run(job.Job(listing.of_images(str(photos)), to), extractors["toy"])
    return to


def test_columns_as_other_tools_write_them(embedded, tmp_path, photos, capsys):
    """Times as text, and numbers that are missing as NaN."""
    table = pq.read_table(embedded)
    texts = ["2026-11-05T10:00:00+02:00"] * len(table)
    table = _with(table, "time", texts, "string")
    table = _with(table, "height", [np.nan] + [1.5] * (len(table) - 1))
    pq.write_table(table, tmp_path / "t.parquet")
    gallery = f"--gallery={tmp_path}/g.db"
    add = ("add", gallery, "--model=toy", tmp_path / "t.parquet")
    assert "18 images added" in said(capsys, *add)
    assert "0 images added" in said(capsys, *add)
    hits = ask(gallery, tmp_path, "--top=17", photos / "2_c1.png")
    assert {hit["time"] for hit in hits} == {"2026-11-05T08:00:00Z"}
    assert {hit["height"] for hit in hits} == {None, 1.5}
    message = refused(capsys, *add, "--camera=1", "--batch_size=8")
    assert "error: --camera, --batch_size: what is known" in message
