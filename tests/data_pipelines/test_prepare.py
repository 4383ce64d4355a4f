"""Preparing data sets: what is stored, and what a mistake or a kill leaves behind."""

import contextlib
import errno
import multiprocessing
import os
import pathlib
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import prepare, prepared, report, store
from data_pipelines.entries import SPLITS
from data_pipelines.preparation import staging
from data_pipelines.readers import market1501
from reid_jax import staging as folders
from reid_jax import storage
from reid_jax.errors import UserError
from tests import commands
from tests.data_pipelines.market_folder import jpeg, small_files, write
from tests.waiting import PATIENCE

ROOT = pathlib.Path(__file__).parents[2]
OWN = ["--dataset=market1501", "--allow_other_counts", "--name=own"]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "source", small_files())


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


def own(folder, data_dir, **changes):
    settings = {
        "source": folder,
        "data_dir": data_dir,
        "allow_other_counts": True,
        "name": "own",
        "progress": False,
    }
    return prepare.prepare("market1501", **settings | changes)


def contents(data_dir):
    return sorted(str(p.relative_to(data_dir)) for p in data_dir.rglob("*"))


def image_count(data_dir):
    return len(prepared.open_records("own", "train", data_dir))


def test_records_are_the_files_as_they_are(folder, data_dir):
    path = own(folder, data_dir)
    assert path == data_dir / "own" / "1.0.0"
    files = small_files()
    for split, name in market1501.FOLDERS.items():
        stored = prepared.open_records("own", split, data_dir)
        kept = sorted(
            f.split("/")[1]
            for f in files
            if f.startswith(name + "/") and "/-1" not in f
        )
        assert [stored.filename(i) for i in range(len(stored))] == kept
        for i, file in enumerate(kept):
            assert stored[i]["image"] == files[f"{name}/{file}"]
            assert stored.person[i] == int(file[:4])
            assert stored.camera[i] == int(file[6]) - 1
        assert not stored.has_parts
    # Nothing but the data set is left, and it is a TFDS one of that name.
    assert {c.split("/")[0] for c in contents(data_dir)} == {"own"}
    assert tfds.builder_from_directory(path).name == "own"


def test_a_zip_gives_the_same_records(folder, data_dir, tmp_path):
    archive = tmp_path / "own.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in small_files().items():
            packed.writestr("Market-1501-v15.09.15/" + name, data)
    own(folder, data_dir)
    own(archive, data_dir, name="zipped")
    for split in SPLITS:
        a = prepared.open_records("own", split, data_dir)
        b = prepared.open_records("zipped", split, data_dir)
        assert list(a) == list(b)
        np.testing.assert_array_equal(a.person, b.person)


def test_a_damaged_zip_member_is_named(data_dir, tmp_path):
    archive = tmp_path / "own.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in small_files().items():
            packed.writestr(name, data)
    whole = bytearray(archive.read_bytes())
    middle = whole.index(small_files()["query/0003_c2s1_001051_00.jpg"]) + 200
    whole[middle] ^= 0xFF
    archive.write_bytes(whole)
    with pytest.raises(UserError, match=r"0003_c2s1_001051_00\.jpg"):
        own(archive, data_dir)
    assert contents(data_dir) == []


def encoded(suffix, shape):
    return cv2.imencode(suffix, np.full(shape, 99, np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"no image at all", "it is no image"),
        (jpeg(64, 32)[:-300], "not a whole image"),
        (jpeg(64, 32)[:700] + bytes(300), "not a whole image"),
        (encoded(".png", (32, 16, 3))[:-12], "not a whole image"),
        (encoded(".jpg", (32, 16)), "3 channels but has mode L"),
        (encoded(".png", (32, 16, 4)), "3 channels but has mode RGBA"),
        (encoded(".bmp", (32, 16, 3)), "it is a BMP file"),
        (jpeg(15, 40), "40 x 15 pixels are less than a patch"),
        (jpeg(40, 15), "15 x 40 pixels are less than a patch"),
    ],
)
def test_an_unusable_image_is_named_and_nothing_is_stored(
    folder, data_dir, data, words
):
    # In the split that is written last: the others are complete by then.
    (folder / "bounding_box_test" / "0003_c6s6_bad.jpg").write_bytes(data)
    with pytest.raises(UserError) as error:
        own(folder, data_dir)
    message = str(error.value)
    assert "0003_c6s6_bad.jpg" in message
    assert words in message
    assert message.endswith("Nothing was stored.")
    assert contents(data_dir) == []


def test_all_unusable_images_are_named(folder, data_dir):
    bad = {
        "bounding_box_train/0002_c4.jpg": b"",
        "query/0003_c4.jpg": jpeg(15, 40),
        "bounding_box_test/0003_c6.jpg": jpeg(64, 32)[:-300],
    }
    write(folder, bad)
    with pytest.raises(UserError) as error:
        own(folder, data_dir)
    lines = str(error.value).splitlines()
    assert lines[0] == "3 files cannot be used:"
    for line, name in zip(lines[1:4], bad, strict=True):
        assert name in line
    assert lines[4].startswith("Or add --skip_bad_images")
    assert contents(data_dir) == []


def test_many_unusable_images_are_counted(folder, data_dir):
    write(folder, {f"query/0003_c3_{n:02}.jpg": b"" for n in range(30)})
    with pytest.raises(UserError, match="30 files cannot be used") as error:
        own(folder, data_dir)
    assert "_19.jpg" in str(error.value)
    assert "\nand 10 more." in str(error.value)
    assert "_20.jpg" not in str(error.value)


def test_all_names_that_do_not_fit_are_named(folder, data_dir):
    write(folder, {f"query/{name}": jpeg() for name in ("list.txt", "x.jpg")})
    write(folder, {"query/0000_c1.jpg": jpeg(), "query/0003_c0.jpg": jpeg()})
    with pytest.raises(UserError) as error:
        own(folder, data_dir)
    for text in ("0000_c1.jpg: p", "0003_c0.jpg: c", "list.txt: the", "x.jpg: the"):
        assert text in str(error.value)


def test_unusable_images_are_left_out_where_that_is_asked_for(folder, data_dir, capsys):
    good, wrong = np.full((2, 36, 2, 1), 0.9, np.float32)
    wrong += 7
    np.save(folder / "0001_c1s1_001051_00.npy", wrong)
    np.save(folder / "0002_c1s1_000451_03.npy", good)
    bad = {"bounding_box_train/0002_c4.jpg": b"", "query/0003_c4.jpg": b"no image"}
    write(folder, bad)
    arguments = [*OWN, f"--source={folder}", f"--data_dir={data_dir}"]
    labels = [f"--parts={folder}", "--parts_kind=pifpaf"]
    assert commands.ended(prepare.main, [*arguments, *labels, "--skip_bad_images"]) == 0
    out = capsys.readouterr().out
    assert "2 images that cannot be used were left out:" in out
    assert "Label files that were left out, their images unlabelled: 1.\n" in out
    for name in (*bad, "0001_c1s1_001051_00.npy"):
        assert name in out
    stored = prepared.open_records("own", "query", data_dir)
    assert [stored.filename(i) for i in range(len(stored))] == [
        "0001_c1s1_001051_00.jpg",
        "0003_c2s1_001051_00.jpg",
    ]
    assert all(
        (cv2.imdecode(np.frombuffer(r["parts"], "u1"), 0) == 255).all() for r in stored
    )
    assert "query: 0 of 2 images have part labels." in out
    assert image_count(data_dir) == 3


def test_a_split_without_any_usable_image_is_an_error_all_the_same(folder, data_dir):
    for path in (folder / "query").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"No image of query is left\."):
        own(folder, data_dir, skip_bad_images=True)
    assert contents(data_dir) == []


def test_a_published_name_is_for_whole_data_sets(folder, data_dir):
    with pytest.raises(UserError, match="--skip_bad_images needs --name"):
        prepare.prepare(
            "market1501", source=folder, data_dir=data_dir, skip_bad_images=True
        )


def test_a_png_under_a_jpg_name_is_kept(folder, data_dir):
    # Browsers and tools save such files; the decoder goes by the content.
    data = encoded(".png", (32, 16, 3))
    (folder / "query" / "0003_c3s1.jpg").write_bytes(data)
    own(folder, data_dir)
    assert prepared.open_records("own", "query", data_dir)[2]["image"] == data


def test_a_prepared_data_set_is_left_alone(folder, data_dir):
    path = own(folder, data_dir)
    before = [(p, p.stat().st_mtime_ns) for p in sorted(path.iterdir())]
    assert own(folder, data_dir) == path
    shutil.rmtree(folder)  # To save room; there is nothing to compare with.
    assert own(folder, data_dir) == path
    assert [(p, p.stat().st_mtime_ns) for p in sorted(path.iterdir())] == before


def test_another_source_under_the_same_name_is_an_error(folder, data_dir, tmp_path):
    path = own(folder, data_dir)
    other = write(tmp_path / "other", small_files())
    assert own(other, data_dir) == path  # the same images in another place
    (other / "query" / "0003_c5.jpg").write_bytes(jpeg())
    with pytest.raises(UserError) as error:
        own(other, data_dir)
    said = str(error.value).splitlines()
    assert "own is prepared in" in said[0]
    assert said[1].startswith(f"There: --dataset=market1501 --source={folder} (train 3")
    assert said[2].startswith(f"Asked: --dataset=market1501 --source={other} (train 3")
    assert "query 2 images of 2 identities" in said[1]
    assert "query 3 images of 2 identities" in said[2]
    assert "--overwrite" in said[3]
    assert image_count(data_dir) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": None}, "no --source"),
        ({"source": "/no/longer/there"}, "--source=/no/longer/there, which cannot be"),
        ({"skip_bad_images": True}, "--skip_bad_images"),
    ],
)
def test_another_request_under_the_same_name_is_an_error(
    folder, data_dir, changes, words
):
    own(folder, data_dir)
    with pytest.raises(UserError, match=f"Asked: .*{words}"):
        own(data_dir=data_dir, **{"folder": folder} | _as_folder(changes))


def _as_folder(changes):
    return {"folder" if k == "source" else k: v for k, v in changes.items()}


def test_another_kind_of_source_under_the_same_name_is_an_error(
    folder, data_dir, capsys
):
    own(folder, data_dir)
    (folder / "my.csv").write_text("path,person,split\nquery/0001_c1.jpg,1,train\n")
    (folder / "query" / "0001_c1.jpg").write_bytes(jpeg())
    arguments = ["--dataset=table", "--name=own", f"--data_dir={data_dir}"]
    assert (
        commands.ended(prepare.main, [*arguments, f"--source={folder / 'my.csv'}"]) == 2
    )
    assert "Asked: --dataset=table" in capsys.readouterr().err


def test_a_data_set_that_does_not_know_its_source_is_left_alone(
    folder, data_dir, capsys
):
    """As those that were prepared before sources were noted down."""
    splits = market1501.scan(folder)
    store.builder(
        splits, name="own", title="Own", data_dir=data_dir, track=lambda e, _: e
    ).download_and_prepare()
    arguments = [*OWN, f"--source={folder}", f"--data_dir={data_dir}"]
    assert commands.ended(prepare.main, arguments) == 0
    assert "What it was made from was not noted down" in capsys.readouterr().out


def test_a_damaged_data_set_is_a_user_error(folder, data_dir, capsys):
    for name in ("own", "synthetic/holistic_demo"):
        (data_dir / name / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match="is damaged or incomplete"):
        own(folder, data_dir)
    arguments = ["--dataset=synthetic/holistic_demo", f"--data_dir={data_dir}"]
    assert commands.ended(prepare.main, arguments) == 2
    assert "is damaged or incomplete" in capsys.readouterr().err


def test_an_interrupted_report_does_not_deny_what_is_stored(
    folder, data_dir, monkeypatch, capsys
):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "report", interrupt)
    arguments = [*OWN, f"--source={folder}", f"--data_dir={data_dir}"]
    assert commands.ended(prepare.main, arguments) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert image_count(data_dir) == 3


def test_overwrite_replaces_only_by_a_whole_data_set(folder, data_dir):
    own(folder, data_dir)
    bad = folder / "bounding_box_test" / "0003_c6.jpg"
    (folder / "bounding_box_train" / "0009_c1.jpg").write_bytes(jpeg())
    bad.write_bytes(b"")
    with pytest.raises(UserError):
        own(folder, data_dir, overwrite=True)
    assert image_count(data_dir) == 3
    bad.unlink()
    own(folder, data_dir, overwrite=True)
    assert image_count(data_dir) == 4
    assert {c.split("/")[0] for c in contents(data_dir)} == {"own"}


def test_a_kill_between_the_two_renames_loses_nothing(folder, data_dir):
    # The only moment at which neither the old nor the new one is in its place.
    path = own(folder, data_dir)
    leftover = data_dir / ".preparing-own"
    (leftover / "replaced").mkdir(parents=True)
    path.rename(leftover / "replaced" / path.name)
    assert own(folder, data_dir) == path
    assert image_count(data_dir) == 3
    assert not leftover.exists()


def test_a_failure_between_the_two_renames_loses_nothing(folder, data_dir, monkeypatch):
    own(folder, data_dir)
    rename = pathlib.Path.rename

    def fail(self, target):
        if ".preparing-own/own" in str(self) and "incomplete" not in str(self):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "swap", lambda *_: False)  # as on other systems
        with pytest.raises(KeyboardInterrupt):
            own(folder, data_dir, overwrite=True)
    assert image_count(data_dir) == 3
    assert os.listdir(data_dir) == ["own"]
    if sys.platform == "linux":  # one step, and no rename that could fail
        (folder / "bounding_box_train" / "0009_c1.jpg").write_bytes(jpeg())
        own(folder, data_dir, overwrite=True)
        assert image_count(data_dir) == 4
        assert os.listdir(data_dir) == ["own"]


def test_a_finished_leftover_of_a_killed_run_is_built_anew(folder, data_dir):
    # Its source may have been another one.
    old = own(folder, data_dir)
    leftover = data_dir / ".preparing-own" / "own" / "1.0.0"
    leftover.parent.mkdir(parents=True)
    old.rename(leftover)
    (folder / "bounding_box_train" / "0009_c1.jpg").write_bytes(jpeg())
    own(folder, data_dir)
    assert image_count(data_dir) == 4


def test_any_preparation_clears_away_what_is_dead_and_nothing_that_is_alive(
    folder, data_dir
):
    own(folder, data_dir, name="other")
    dead = data_dir / ".preparing-killed"
    (dead / "killed" / "1.0.0.incompleteXYZ").mkdir(parents=True)
    # Killed between the two renames of an --overwrite.
    swapped = data_dir / ".preparing-other" / "replaced" / "1.0.0"
    swapped.parent.mkdir(parents=True)
    (data_dir / "other" / "1.0.0").rename(swapped)
    with staging._locked(data_dir, "alive") as alive:
        (alive / "alive").mkdir()
        own(folder, data_dir)
        assert (alive / "alive").is_dir()
    assert sorted(os.listdir(data_dir)) == ["other", "own"]
    assert len(prepared.open_records("other", "train", data_dir)) == 3


def test_a_folder_that_is_just_being_cleared_away_is_waited_for(
    folder, data_dir, monkeypatch
):
    leftover = data_dir / ".preparing-own"
    leftover.mkdir(parents=True)
    busy = folders.try_lock(leftover)

    def end(_):
        shutil.rmtree(leftover, ignore_errors=True)
        busy.close()

    monkeypatch.setattr(folders.time, "sleep", end)
    own(folder, data_dir)
    assert image_count(data_dir) == 3


def test_the_home_folder_and_names_with_a_patterns_characters(
    folder, tmp_path, monkeypatch
):
    folder.rename(tmp_path / "a[b]")
    monkeypatch.setenv("HOME", str(tmp_path))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    own("~/a[b]", "~/d*a[t]a")
    assert image_count("~/d*a[t]a") == 3
    assert image_count(tmp_path / "d*a[t]a") == 3
    assert not list(here.iterdir())


def test_without_locks_it_is_prepared_all_the_same(
    folder, data_dir, monkeypatch, capsys
):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage.fcntl, "flock", no_locks)
    own(folder, data_dir)
    assert image_count(data_dir) == 3
    assert "cannot be locked" in capsys.readouterr().err


def test_of_two_at_once_one_waits_for_the_other(folder, data_dir, monkeypatch, capsys):
    other = contextlib.ExitStack()
    other.enter_context(staging._locked(data_dir, "own"))

    def pause(seconds):
        if seconds == folders._LONG_PAUSE:  # this one has said that it waits
            assert contents(data_dir) == [".preparing-own", ".preparing-own/lock"]
            other.close()

    monkeypatch.setattr(folders.time, "sleep", pause)
    own(folder, data_dir)
    assert image_count(data_dir) == 3
    assert capsys.readouterr().err.count("Waiting for it.") == 1


def test_a_process_that_runs_its_parents_script_builds_nothing(
    folder, data_dir, monkeypatch
):
    """As one does that is spawned by a script without a guard."""
    path = own(folder, data_dir)
    me = multiprocessing.current_process()
    monkeypatch.setattr(me, "_inheriting", True, raising=False)
    assert own(folder, data_dir) == path
    with pytest.raises(UserError, match="below `if __name__ == '__main__':`"):
        own(folder, data_dir, name="other")
    assert os.listdir(data_dir) == ["own"]


def test_a_folder_that_cannot_be_written_is_a_user_error(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        own(folder, tmp_path / "file" / "data")


@pytest.mark.parametrize(
    ("dataset", "changes", "words"),
    [
        (
            "market1051",
            {},
            ["'market1051'", "Did you mean market1501", "own in Market"],
        ),
        ("", {}, ["Known: market1501, dukemtmc, "]),
        ("synthetic/holistc_demo", {}, ["Did you mean synthetic/holistic_demo"]),
        ("synthetic", {}, ["Known"]),
        ("synthetic/holistic_demo", {"source": "x"}, ["leave out --source"]),
        ("market1501", {}, ["needs --source", "bounding_box_train"]),
        ("market1501", {"name": "../up", "source": "x"}, ["'../up'", "small letters"]),
        ("market1501", {"name": "synthetic", "source": "x"}, ["'synthetic'"]),
        ("market1501", {"name": "Mine", "source": "x"}, ["'Mine'"]),
        ("market1501", {"allow_other_counts": True, "source": "x"}, ["needs --name"]),
        ("market1501", {"data_dir": "a\0b", "source": "x"}, ["NUL"]),
    ],
)
def test_wrong_requests_are_user_errors(data_dir, dataset, changes, words):
    with pytest.raises(UserError) as error:
        prepare.prepare(dataset, **{"data_dir": data_dir} | changes)
    for word in words:
        assert word in str(error.value)
    assert not data_dir.exists() or contents(data_dir) == []


def run(*arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", "data_pipelines.prepare", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **settings,
    )


def test_the_command_reports_and_then_says_that_it_is_done(folder, data_dir):
    arguments = [*OWN, f"--source={folder}", f"--data_dir={data_dir}"]
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    lines = [line.split() for line in first.stdout.splitlines()]
    assert lines[0] == ["Prepared", "own", "in", str(data_dir / "own" / "1.0.0")]
    assert ["train", "3", "2", "3"] in lines
    assert ["query", "2", "2", "2"] in lines
    assert ["gallery", "3", "2", "3"] in lines
    assert "Gallery images that are distractors: 1." in first.stdout
    assert "Junk images (person -1) that were left out: 2." in first.stdout
    last = first.stdout.splitlines()[-1]
    assert "dataset=own" in last
    assert last.endswith("--config.stages.train.identities=2")
    assert f"Preparing own in {data_dir}" in first.stderr
    assert "3/3" in first.stderr  # The progress bar.
    assert "Traceback" not in first.stderr
    again = run(*arguments)
    assert again.returncode == 0
    assert "already prepared" in again.stdout
    assert "has the same names, persons and cameras" in again.stdout


def test_a_mistake_on_the_command_line_is_one_message(data_dir):
    done = run("--dataset=market1501", "--source=nowhere", f"--data_dir={data_dir}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --source=nowhere does not exist.")


HALTS = """
import pathlib, sys
from data_pipelines import prepare
real, staging = pathlib.Path.read_bytes, pathlib.Path(sys.argv.pop(1))
def read_bytes(path):
    if list(staging.glob("own/*incomplete*/*")):
        print("writing", file=sys.__stdout__, flush=True)
        sys.stdin.read()  # until the test sends its signal
    return real(path)
pathlib.Path.read_bytes = read_bytes
prepare.run()
"""
"""The command; it waits once it has begun to write records."""


def start_and_wait(folder, data_dir):
    """Starts the command and returns when it is in the middle of its work."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", HALTS, data_dir / ".preparing-own", *OWN),
            *(f"--source={folder}", f"--data_dir={data_dir}"),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"writing\n", process.stderr.read()
    return process


def test_a_full_disk_is_one_message(folder, data_dir):
    for i in range(20):
        (folder / "query" / f"0001_c1_{i}.jpg").write_bytes(jpeg(300, 300))
    done = run(
        *OWN,
        f"--source={folder}",
        f"--data_dir={data_dir}",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: Cannot write to ")
    assert "Traceback" not in done.stderr
    assert contents(data_dir) == []


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_nothing_to_open_and_can_be_restarted(
    folder, data_dir, kill
):
    data = jpeg(400, 400)
    for i in range(20):
        (folder / "bounding_box_train" / f"0009_c1_{i:04}.jpg").write_bytes(data)
    process = start_and_wait(folder, data_dir)
    process.send_signal(kill)
    process.wait(PATIENCE)
    message = process.communicate()[1].decode()
    with pytest.raises(UserError, match="not prepared"):
        image_count(data_dir)
    assert not (data_dir / "own").exists()
    if kill == signal.SIGINT:
        assert process.returncode == 130
        assert message.endswith("\ninterrupted; nothing was stored.\n")
        assert "stopping ..." in message
        assert os.listdir(data_dir) == []
        return
    for path in sorted((folder / "bounding_box_train").glob("0009*"))[10:]:
        path.unlink()
    assert own(folder, data_dir) == data_dir / "own" / "1.0.0"
    assert image_count(data_dir) == 13
    assert os.listdir(data_dir) == ["own"]


def test_real_photographs_go_through(shared_data, data_dir):
    own(shared_data / "grocery_photos", data_dir, name="grocery")
    stored = prepared.open_splits("grocery", data_dir)
    assert [len(stored[s]) for s in SPLITS] == [4572, 220, 472]
    about = prepared.metadata("grocery", data_dir)
    lines = report.report("grocery", stored, about).splitlines()
    assert ["query", "220", "15", "1"] in [x.split() for x in lines]


def test_other_images_cannot_take_a_published_name(tmp_path, capsys):
    code = commands.ended(
        prepare.main,
        [*OWN[:2], f"--source={tmp_path}", f"--data_dir={tmp_path / 'data'}"],
    )
    assert code == 2
    assert "--allow_other_counts needs --name" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    code = commands.ended(
        prepare.main,
        [*OWN[:2], "--name=dukemtmc", f"--source={tmp_path}", f"--data_dir={tmp_path}"],
    )
    assert code == 2
    assert "is the name of a published data set" in capsys.readouterr().err


def test_the_next_command_can_be_pasted(tiny_data, tmp_path):
    place = tmp_path / "data 3 ü"
    shutil.copytree(tiny_data / "tiny", place / "tiny")
    opened = prepared.open_splits("tiny", place)
    said = report.next_command("tiny", opened, place)
    words = shlex.split(said.removeprefix("Next: "))
    assert f"--config.data.data_dir={place}" in words
    opened["train"].person[:] = 1
    assert "needs images of two" in report.next_command("tiny", opened, place)
    with pytest.raises(UserError) as error:
        prepared.open_records("none", "train", place)
    assert f"--data_dir={shlex.quote(str(place))}" in str(error.value)
