"""Two processes with two simulated devices each are one process with four."""

import json
import os
import pathlib
import signal
import subprocess

import numpy as np
import pytest

from tests.conftest import CHECKOUT
from tests.waiting import PATIENCE, wait_until

# Processes that start together wait for one another as long; one that is silent for a
# third of it is taken for dead, SHORT where a death is to be noticed.
TIMEOUT, SHORT = 120, 45


def _start(script, variables, data_dir, workdir, steps=0, timeout=TIMEOUT):
    """A run of so many steps; of more than anyone waits for, if it is 0."""
    return subprocess.Popen(
        [
            *(CHECKOUT / "launch" / script, "simulated"),
            f"--config={CHECKOUT}/tests/launch/toy.py",
            f"--config.data.data_dir={data_dir}",
            f"--workdir={workdir}",
            f"--process_timeout={timeout}",
            "--config.stages.first.epochs=4000.0",
            f"--config.max_steps={steps}",
        ],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _start_two(data_dir, folder, steps=0, timeout=TIMEOUT):
    variables = {"PROCESSES": "2", "DEVICES": "2", "LOGS": str(folder / "logs")}
    # Nothing here but JAX itself is to end a process whose partner died.
    variables["GRACE"] = "1000"
    return _start("processes.sh", variables, data_dir, folder / "two", steps, timeout)


def _losses(workdir):
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    return {row["step"]: row["loss"] for row in rows}


def _process_of(script, index):
    """Id of one of the processes that a script started."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(script.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = (
        line
        for line in listed.stdout.splitlines()
        if f"--process_index={index}" in line
    )
    return int(line.split()[0])


@pytest.fixture
def ended():
    """Ends the scripts of a test that failed."""
    scripts = []
    yield scripts
    for script in scripts:
        if script.poll() is None:
            script.terminate()
            script.wait(timeout=PATIENCE)


def test_a_run_of_two_processes_survives_the_death_of_one(tiny_data, tmp_path, ended):
    both = _start_two(tiny_data, tmp_path, timeout=SHORT)
    ended.append(both)
    wait_until(lambda: len(_losses(tmp_path / "two")) >= 4, both)
    os.kill(_process_of(both, 1), signal.SIGKILL)
    output, _ = both.communicate(timeout=PATIENCE)
    assert both.returncode == 128 + signal.SIGKILL, output
    assert "process 1 ended with code 137" in output
    steps = max(_losses(tmp_path / "two")) + 8

    both = _start_two(tiny_data, tmp_path, steps)
    ended.append(both)
    output, _ = both.communicate(timeout=PATIENCE)
    assert both.returncode == 0, output
    assert f"resuming {tmp_path}/two at step " in output

    alone = _start("local.sh", {"DEVICES": "4"}, tiny_data, tmp_path / "one", steps)
    ended.append(alone)
    output, _ = alone.communicate(timeout=PATIENCE)
    assert alone.returncode == 0, output
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert list(one) == list(two) == list(range(1, steps + 1))
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
