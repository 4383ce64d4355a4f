"""What a process is told that cannot join its run."""

import re
import socket
import subprocess
import sys

import jax
import pytest

from reid_jax.errors import UserError
from reid_jax.runtime import processes
from tests.conftest import CHECKOUT
from tests.waiting import PATIENCE


def _join(coordinator, count=2, index=0, timeout=60):
    processes.join(coordinator, count=count, index=index, timeout=timeout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "here:1", "count": None}, "needs --process_count"),
        ({"coordinator": "here:1", "index": None}, "needs --process_count and"),
        ({"coordinator": None}, "--process_index need --coordinator"),
        ({"coordinator": "here"}, "neither HOST:PORT nor auto"),
        ({"coordinator": ":12"}, "neither HOST:PORT nor auto"),
        ({"coordinator": "here:port"}, "neither HOST:PORT nor auto"),
        ({"coordinator": "here:1", "index": 2}, "indices count from 0 to 1"),
        ({"coordinator": "here:1", "index": -1}, "indices count from 0 to 1"),
        ({"coordinator": "here:1", "timeout": 0}, "--process_timeout is 0"),
    ],
)
def test_arguments_that_describe_no_process(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        _join(**arguments)


def test_one_process_joins_nobody():
    processes.join(None, count=None, index=None, timeout=300)


def _port(listening):
    listening.bind(("localhost", 0))
    return listening.getsockname()[1]


def _waiting(command):
    return subprocess.Popen(
        [sys.executable, *command], cwd=CHECKOUT, text=True, stderr=subprocess.PIPE
    )


def _joining(address, index):
    code = f"processes.join({address!r}, count=3, index={index}, timeout=2)"
    return _waiting(["-c", f"from reid_jax.runtime import processes; {code}"])


def test_a_process_that_does_not_come():
    """Each of three waits alone: process 0, one without it, and one beside it."""
    with socket.socket() as silent:
        beside = f"localhost:{_port(silent)}"
        silent.listen()
        with socket.socket() as first, socket.socket() as second:
            mine, nobody = (f"localhost:{_port(x)}" for x in (first, second))
        zero = [
            *("-m", "reid_jax.main", "--config=configs/aaformer.py:demo"),
            *(f"--coordinator={mine}", "--process_count=3", "--process_index=0"),
            "--process_timeout=2",
        ]
        waiting = [_waiting(zero), _joining(nobody, 1), _joining(beside, 2)]
        errors = [process.communicate(timeout=PATIENCE)[1] for process in waiting]
    assert [process.returncode for process in waiting] == [2, 2, 2]
    for index, error in enumerate(errors):
        assert "error: not all processes of the run came within 2 s" in error
        assert f"This is process {index} of 3" in error
    assert f"processes 1 to 2 did not reach {mine}" in errors[0]
    assert f"Nothing answers at {nobody}" in errors[1]
    assert f"Process 0 answers at {beside}" in errors[2]


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")]
)
def test_a_port_that_is_taken(family, address):
    with socket.socket(family) as taken:
        taken.bind((address, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at port {port} .*in use"):
            _join(f"localhost:{port}")


def test_a_port_that_is_none():
    with pytest.raises(UserError, match="cannot listen at port 70000"):
        _join("localhost:70000")


def test_no_cluster(monkeypatch):
    # This process has devices already; where nothing is detected none are looked at.
    monkeypatch.setattr(jax.distributed, "initialize", _initialize_nowhere)
    with pytest.raises(
        UserError, match="--coordinator=auto: no cluster that JAX knows"
    ):
        _join("auto", count=None, index=None)


def _initialize_nowhere(**arguments):
    assert arguments["initialization_timeout"] > 60
    raise ValueError("coordinator_address should be defined.")
