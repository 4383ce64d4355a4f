"""Paths as users write them, and disks that know no locks."""

import errno
import os
import pathlib

import pytest

from reid_jax import storage
from reid_jax.errors import UserError

ODD_NAMES = ["lr[1e-3]", "a*b", "what?", "[!x]", "a b", "~x"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_names_own_characters_are_no_pattern(tmp_path, name):
    folder = storage.absolute(tmp_path / name)
    for file in ("p1", "p2", "q"):
        storage.write_bytes(folder / "below" / file, b"")
    (tmp_path / "lr1" / "below").mkdir(parents=True)
    found = {path.name for path in (folder / "below").glob("p*")}
    assert found == {"p1", "p2"}
    (below,) = folder.glob("b*")
    assert {path.name for path in below.glob("[q]")} == {"q"}


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    storage.check_writable("~/a")
    storage.write_bytes("~/b/c", b"d")
    assert (tmp_path / "home" / "a").is_dir()
    assert (tmp_path / "home" / "b" / "c").read_bytes() == b"d"
    assert os.listdir(tmp_path) == ["home"]


def test_without_locks_it_is_said_and_goes_on(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage.fcntl, "flock", no_locks)
    with (tmp_path / "lock").open("w") as file:
        assert storage.lock(file)
        assert storage.lock(file, wait=True)
    assert "cannot be locked (No locks available)" in capsys.readouterr().err


def test_another_error_of_a_lock_is_raised(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(storage.fcntl, "flock", fail)
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError, match="Bad"):
        storage.lock(file)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "b"), "Make room"),
        (OSError(errno.EROFS, "Read-only file system"), "mounted anew"),
        # As Orbax passes on what TensorStore says.
        (ValueError("UNKNOWN: [OS error 28: ENOSPC No space left on device]"), "room"),
    ],
)
def test_a_disk_that_fails_is_one_message(tmp_path, error, said):
    with (
        pytest.raises(UserError, match=rf"cannot write to .*{said}.*as it was"),
        storage.written(tmp_path),
    ):
        raise error


def test_a_failure_elsewhere_is_not_the_folders(tmp_path):
    closed = PermissionError(errno.EACCES, "Permission denied", "/data/a.png")
    with (
        pytest.raises(UserError, match=r"^cannot read or .* denied: /data/a\.png"),
        storage.written(tmp_path),
    ):
        raise closed
    with (
        pytest.raises(UserError, match=r"or read its data, any more \(Input/output"),
        storage.written(tmp_path),
    ):
        raise RuntimeError("reading failed: Input/output error")


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_who_may_read_a_file_is_the_umasks(tmp_path, mask):
    before = os.umask(mask)
    try:
        storage.write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_vanished_is_told_from_a_defect(tmp_path):
    gone = tmp_path / "gone"
    with pytest.raises(UserError, match="moved, removed"), storage.written(gone):
        (gone / "file").write_text("")
    stands = tmp_path / "stands"
    stands.mkdir()
    beside = tmp_path / "stands too" / "file"
    for path in (tmp_path / "other", beside, pathlib.Path("/nowhere/file")):
        with pytest.raises(FileNotFoundError), storage.written(stands):
            path.read_text()
    with pytest.raises(ValueError, match="mine"), storage.written(gone):
        raise ValueError("mine")
    with pytest.raises(UserError, match="No space left: mine"), storage.written(gone):
        raise UserError("No space left: mine")
