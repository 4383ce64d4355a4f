"""The scripts of `launch/`: their syntax, what they would run, what they refuse.

After a change that is meant, write the snapshots anew and read their difference:
UPDATE_SNAPSHOTS=1 python -m pytest tests/launch/test_scripts.py
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.conftest import CHECKOUT
from tests.waiting import PATIENCE

FOLDER = CHECKOUT / "launch"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.sh") if path.name != "common.sh")
SNAPSHOTS = pathlib.Path(__file__).parent / "snapshots"
ARGS = ("--config=configs/aaformer.py:demo,row=x", "--config.evaluate_on=('a','b c')")
EMBED = ("--model=runs/market", "--images=my photos/**/*.jpg", "--to=out/all.parquet")
EMBED_SLURM, EMBED_KUBERNETES = ("slurm", *EMBED), ("kubernetes", *EMBED)

TPU = {"TPU_NAME": "pod", "ZONE": "us-east5-b"}
SLURM = {"NODES": "2", "GPUS": "8", "CPUS": "4"}
POD = {"NAME": "market", "IMAGE": "registry/reid:1", "CLAIM": "shared"}
JOB = {**POD, "NODES": "2", "GPUS": "8"}
SHARES = {**POD, "SHARDS": "64", "PARALLEL": "8", "GPUS": "1"}
SWEEP = {"DEVICES": "1,4", "BATCH": "64", "BATCH_PER_DEVICE": "16"}
CACHE = {"COMPILATION_CACHE": "gs://bucket/compiled"}
CASES = {
    "local-cpu": ("local.sh", {}, ("cpu", *ARGS)),
    "local-gpu": ("local.sh", {"GPU": "0,1"}, ("gpu", *ARGS)),
    "local-tpu": ("local.sh", {}, ("tpu", *ARGS)),
    "local-simulated": ("local.sh", {"DEVICES": "4"}, ("simulated", *ARGS)),
    "processes-simulated": (
        "processes.sh",
        {"PROCESSES": "2", "DEVICES": "2", "PORT": "29500"},
        ("simulated", *ARGS),
    ),
    "processes-gpu": ("processes.sh", {"PROCESSES": "2"}, ("gpu", *ARGS)),
    "slurm-outside": ("slurm.sh", SLURM, ARGS),
    "slurm-inside": ("slurm.sh", {**SLURM, **CACHE, "SLURM_JOB_ID": "7"}, ARGS),
    "tpu-create": (
        "tpu_vm.sh",
        {**TPU, "ACCELERATOR": "v6e-8", "VERSION": "v2-alpha-tpuv6e", "SPOT": "1"},
        ("create",),
    ),
    "tpu-setup": ("tpu_vm.sh", {**TPU, "SETUP_COMMAND": "mount it"}, ("setup",)),
    "tpu-run": ("tpu_vm.sh", {**TPU, **CACHE}, ("run", *ARGS)),
    "tpu-logs": ("tpu_vm.sh", {**TPU, "WORKER": "1"}, ("logs",)),
    "tpu-delete": ("tpu_vm.sh", TPU, ("delete",)),
    "kubernetes-run": ("kubernetes.sh", {**JOB, **CACHE}, ("run", *ARGS)),
    "kubernetes-logs": ("kubernetes.sh", POD, ("logs",)),
    "kubernetes-delete": ("kubernetes.sh", POD, ("delete",)),
    "embed-slurm": ("embed.sh", {**SLURM, "SHARDS": "64", "GPUS": "1"}, EMBED_SLURM),
    "embed-kubernetes": ("embed.sh", SHARES, EMBED_KUBERNETES),
    "sweep-gpu": ("scaling_sweep.sh", SWEEP, ("gpu", *ARGS)),
    "sweep-processes": (
        "scaling_sweep.sh",
        {**SWEEP, "DEVICES": "1,2", "PROCESSES": "each"},
        ("simulated", *ARGS),
    ),
}


def _run(script, variables, arguments, **more):
    """A script with these variables and, of this process's, only PATH."""
    return subprocess.run(
        [FOLDER / script, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHON": "python", **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        **more,
    )


def _dry(script, variables, arguments):
    done = _run(script, {"DRY_RUN": "1", **variables}, arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", [*SCRIPTS, "common.sh"])
def test_syntax(script):
    assert subprocess.run(["bash", "-n", FOLDER / script]).returncode == 0


def test_shellcheck_has_nothing_to_say():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert program, "pip install -r requirements-dev.txt"
    files = [f"launch/{name}" for name in (*SCRIPTS, "common.sh")]
    done = subprocess.run(
        [program, "-x", *files], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_can_be_started_and_stops_at_errors(script):
    assert os.access(FOLDER / script, os.X_OK)
    lines = (FOLDER / script).read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert next(x for x in lines if x and x[0] != "#") == "set -euo pipefail"


@pytest.mark.parametrize("case", CASES)
def test_what_a_script_would_run(case):
    out = _dry(*CASES[case])
    path = SNAPSHOTS / f"{case}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(out)
    assert out == path.read_text()


def test_every_snapshot_has_a_case_and_every_script_a_snapshot():
    assert {path.stem for path in SNAPSHOTS.iterdir()} == set(CASES)
    assert {script for script, _, _ in CASES.values()} == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_readme_says_what_was_run_of_a_script(script):
    table = [x for x in (FOLDER / "README.md").read_text().splitlines() if "|" in x]
    assert any(f"`{script}" in x and ("**run**" in x or "template" in x) for x in table)


def test_a_dry_run_leaves_nothing_behind(tmp_path):
    """A copy of the folder is where the scripts would write."""
    shutil.copytree(FOLDER, tmp_path / "launch")
    before = sorted(tmp_path.rglob("*"))
    for script, variables, arguments in CASES.values():
        env = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "PYTHON": sys.executable}
        subprocess.run(
            [tmp_path / "launch" / script, *arguments],
            env={**env, **variables},
            check=True,
            capture_output=True,
        )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("script", "variables", "arguments", "named"),
    [
        ("local.sh", {}, ("gpu",), "GPU"),
        ("local.sh", {}, ("simulated",), "DEVICES"),
        ("processes.sh", {}, ("gpu",), "PROCESSES"),
        ("processes.sh", {"PROCESSES": "2"}, ("simulated",), "DEVICES"),
        ("slurm.sh", {"GPUS": "8"}, ARGS, "NODES CPUS"),
        ("tpu_vm.sh", {}, ("run",), "TPU_NAME ZONE"),
        ("tpu_vm.sh", TPU, ("create",), "ACCELERATOR VERSION"),
        ("kubernetes.sh", {}, ("run",), "NAME"),
        ("kubernetes.sh", {"NAME": "a", "IMAGE": "b"}, ("run",), "CLAIM NODES GPUS"),
        ("scaling_sweep.sh", {"BATCH": "8"}, ("gpu",), "DEVICES BATCH_PER_DEVICE"),
        ("embed.sh", {"GPUS": "1"}, ("slurm",), "SHARDS CPUS"),
        ("embed.sh", POD, ("kubernetes",), "SHARDS PARALLEL GPUS"),
    ],
)
def test_variables_that_are_missing_are_named(script, variables, arguments, named):
    done = _run(script, variables, arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {script} needs {named}; see the head of the file\n"


@pytest.mark.parametrize(
    ("script", "variables", "arguments", "message"),
    [
        ("local.sh", {"DEVICES": "two"}, ("simulated",), "DEVICES is 'two'"),
        ("processes.sh", {"PROCESSES": "0"}, ("gpu",), "PROCESSES is '0'"),
        ("kubernetes.sh", {"NAME": "My_run"}, ("delete",), "NAME is 'My_run'"),
        ("embed.sh", {**SHARES, "NAME": "My_run"}, ("kubernetes",), "NAME is 'My_run'"),
        ("scaling_sweep.sh", {**SWEEP, "DEVICES": "1;2"}, ("gpu",), "DEVICES is '1;2'"),
    ],
)
def test_variables_that_make_no_sense(script, variables, arguments, message):
    done = _run(script, variables, arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {message}; it must be" in done.stderr


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "slurm.sh"])
def test_without_a_first_argument_the_manual_comes(script):
    variables = {"PROCESSES": "2"} if script == "processes.sh" else SWEEP
    done = _run(script, variables, ())
    assert done.returncode == 2
    assert f"launch/{script}" in done.stderr
    assert "error: the first argument is " in done.stderr


def test_the_printed_commands_are_ones_that_a_shell_reads_back():
    """What Slurm and the TPU's hosts are given, through two rounds of quoting."""
    submit = _dry(*CASES["slurm-outside"]).splitlines()[1]
    (wrapped,) = (w for w in _words(submit) if w.startswith("--wrap="))
    assert _words(wrapped.removeprefix("--wrap=")) == ["launch/slurm.sh", *ARGS]
    submit = _dry(*CASES["embed-slurm"]).splitlines()[1]
    (wrapped,) = (w for w in _words(submit) if w.startswith("--wrap="))
    words = _words("SHARE " + wrapped.removeprefix("--wrap="), SLURM_ARRAY_TASK_ID="3")
    command = ["SHARE", "exec", "python", "-m", "reid_jax", "embed", *EMBED]
    assert words == [*command, "--shard=3/64"]
    (command,) = (
        w for w in _words(_dry(*CASES["tpu-run"])) if w.startswith("--command=")
    )
    started = command.partition("nohup ")[2].partition(" >>")[0]
    assert _words(started)[-3:] == [*ARGS, "--coordinator=auto"]


def test_the_job_set_says_what_jax_has_to_know():
    awkward = ('--workdir=/shared/${NAME} & "co"\'', "--config=x: y")
    manifest = _dry("kubernetes.sh", JOB, ("run", *awkward)).partition("\n")[2]
    job_set = yaml.safe_load(manifest)
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    name = f"{job_set['metadata']['name']}-{replicated['name']}-0-0"
    assert job_set["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == 2
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert container["args"] == [
        *awkward,
        f"--coordinator={name}.market:12355",
        "--process_count=2",
        "--process_index=$(JOB_COMPLETION_INDEX)",
    ]
    volumes = job["template"]["spec"]["volumes"]
    assert volumes[0]["persistentVolumeClaim"] == {"claimName": "shared"}


def test_a_job_of_shares_gives_each_pod_its_own():
    manifest = _dry(*CASES["embed-kubernetes"]).partition("\n")[2]
    spec = yaml.safe_load(manifest)["spec"]
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", 64)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["args"] == ["embed", *EMBED, "--shard=$(JOB_COMPLETION_INDEX)/64"]


@pytest.mark.parametrize("case", ["kubernetes-run", "embed-kubernetes"])
def test_nothing_is_left_to_fill_in(case):
    assert "${" not in _dry(*CASES[case])


def _words(line, **variables):
    """A line as a shell splits it, where these variables are set."""
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    script = f"{sys.executable} -c '{code}' {line}"
    out = subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        check=True,
        env=os.environ | variables,
    )
    return json.loads(out.stdout)


class TestProcesses:
    """`launch/processes.sh` with a stand-in for Python: who ends when."""

    @pytest.fixture
    def stand_in(self, tmp_path):
        def write(zero, one):
            path = tmp_path / "stand_in"
            path.write_text(
                "#!/bin/bash\n"
                f'case "$*" in *process_index=0*) {zero} ;; *) {one} ;; esac\n'
            )
            path.chmod(0o755)
            return {
                **{"PYTHON": str(path), "PORT": "1", "LOGS": str(tmp_path / "logs")},
                **{"PROCESSES": "2", "DEVICES": "1"},
            }

        return write

    def test_all_succeed(self, stand_in, tmp_path):
        variables = stand_in("echo zero", "echo one")
        done = _run("processes.sh", variables, ("simulated",))
        assert (done.returncode, done.stdout, done.stderr) == (0, "zero\n", "")
        assert (tmp_path / "logs" / "process-1.log").read_text() == "one\n"

    def test_the_first_failure_counts_and_its_log_is_shown(self, stand_in, tmp_path):
        # The other one fails as well, once the first failure was told.
        told = tmp_path / "stderr"
        later = f"until grep -q 'code 3' {told}; do sleep 0.1; done; exit 5"
        variables = stand_in(later, "echo no GPU here; exit 3")
        with told.open("w") as stderr:
            done = subprocess.run(
                [FOLDER / "processes.sh", "simulated"],
                env={"PATH": os.environ["PATH"], **variables},
                stderr=stderr,
                timeout=PATIENCE,
            )
        assert done.returncode == 3
        written = told.read_text()
        assert "process 1 ended with code 3; the others have 150 s" in written
        assert "no GPU here" in written

    def test_one_that_hangs_is_killed(self, stand_in):
        variables = stand_in("exec sleep 1000", "exit 3") | {"GRACE": "1"}
        assert _run("processes.sh", variables, ("simulated",)).returncode == 3

    def test_a_signal_is_passed_on(self, stand_in, tmp_path):
        trap, wait = "trap 'exit 0' TERM", "while true; do sleep 0.1; done"
        ready = tmp_path / "ready"
        both = f"until [ -e {ready} ]; do sleep 0.1; done"
        variables = stand_in(
            f"{trap}; {both}; echo up; {wait}", f"{trap}; touch {ready}; {wait}"
        )
        script = subprocess.Popen(
            [FOLDER / "processes.sh", "simulated"],
            env={"PATH": os.environ["PATH"], **variables},
            stdout=subprocess.PIPE,
        )
        assert script.stdout.readline() == b"up\n"
        script.terminate()
        assert script.wait(timeout=PATIENCE) == 0
