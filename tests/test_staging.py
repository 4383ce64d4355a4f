"""Folders that appear whole: what a kill leaves, and what stands there meanwhile."""

import signal
import subprocess
import sys

import pytest

from reid_jax import staging
from reid_jax.errors import UserError
from tests.conftest import CHECKOUT

# Builds in a folder, and is killed there before or between two renames.
_KILLED = """
import os, pathlib, signal, sys
from reid_jax import staging
beside, target = map(pathlib.Path, sys.argv[1:3])
with staging.held(beside, target, doing="building"):
    (beside / "new").mkdir()
    (beside / "new" / "half").touch()
    if sys.argv[3] == "between":
        staging.swap = lambda a, b: False
        rename = pathlib.Path.rename
        def once(self, to):
            rename(self, to)
            os.kill(os.getpid(), signal.SIGKILL)
        pathlib.Path.rename = once
        staging.put(beside / "new", target, beside / "replaced")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def places(tmp_path):
    """A folder to build in, and a target with an older content."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    return tmp_path / ".building", target


@pytest.mark.parametrize("moment", ["before", "between"])
def test_the_next_start_clears_what_a_kill_left(places, moment):
    beside, target = places
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(beside), str(target), moment],
        cwd=CHECKOUT,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    assert (beside / "new").exists()
    assert target.exists() == (moment == "before")
    with staging.held(beside, target, doing="building"):
        assert not (beside / "new").exists()
        assert (target / "old").exists()
    assert not beside.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2")
def test_a_folder_is_replaced_in_one_step(places, monkeypatch):
    beside, target = places
    with staging.held(beside, target, doing="building"):
        (beside / "new").mkdir()
        (beside / "new" / "content").touch()
        with monkeypatch.context() as patch:
            # Two renames would leave a moment without either.
            patch.delattr(staging.pathlib.Path, "rename")
            staging.put(beside / "new", target, beside / "replaced")
    assert [path.name for path in target.iterdir()] == ["content"]
    assert not beside.exists()


def test_one_builds_at_a_time(places):
    with (
        staging.held(*places, doing="exporting"),
        pytest.raises(UserError, match=r"is exporting in .*\.building"),
        staging.held(*places, doing="exporting"),
    ):
        pass
