"""The command line as a user meets it: one message, exit code 2, no traceback."""

import subprocess
import sys
import types

import jax
import pytest

import reid_jax
from reid_jax import __main__ as verbs
from reid_jax import command_line, errors
from tests.conftest import CHECKOUT
from tests.waiting import PATIENCE


def _run(*args):
    return subprocess.run(
        [sys.executable, "-m", "reid_jax.main", *args],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


DEMO = f"--config={CHECKOUT}/configs/aaformer.py:demo"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "no --config; for a first run:"),
        (("--config=configs/aaformed.py",), "in configs there are: aaformer, baseline"),
        (("--config=aaformed",), "the library's own, by name: aaformer, baseline"),
        (("--config=README.md",), "README.md is no Python file"),
        (("--config=configs/common.py",), "common.py has no get_config()"),
        (("--config=configs/run.py",), "name a run's folder"),
        ((DEMO + "x",), "unknown config argument ':demox'; known: :demo, :scratch"),
        (("--config=configs/aaformed.py", "--config.seed=1"), "aaformed.py"),
        ((DEMO, "--config.model.widht=3"), "width"),
        ((*DEMO.split("="), "--config.model.widht=3"), "did you mean model.width?"),
        ((DEMO, "--config.model.width=wide"), "width"),
        (
            (DEMO, "--config.model.stride=(8,8)", "--config.model.stride=(8,)"),
            "2 times",
        ),
        ((DEMO, "--workdir=~nobodyx/run"), "~nobodyx/run: there is no such user"),
        ((DEMO, "--mode=trian"), "train"),
        ((DEMO, "--nosuchflag"), "nosuchflag"),
        ((DEMO, "--compilation_cache=README.md/cache"), "cannot write to README.md"),
        ((DEMO, "extra"), "unexpected argument 'extra'"),
    ],
)
def test_mistakes_on_the_command_line(args, message):
    done = _run(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 6


def test_the_papers_config_without_data_or_weights_says_what_to_do(tmp_path):
    config = f"--config={CHECKOUT}/configs/aaformer.py"
    done = _run(
        config, f"--config.data.data_dir={tmp_path}/data", f"--workdir={tmp_path}/run"
    )
    assert done.returncode == 2
    for hint in (
        "python -m data_pipelines.prepare --dataset=market1501",
        "jx_vit_base_p16_224",
        ":demo",
        "--config.pretrained=none",
    ):
        assert hint in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_verb_is_imported_when_it_is_asked_for(monkeypatch, capsys):
    given = []
    module = types.SimpleNamespace(main=given.append)
    monkeypatch.setitem(sys.modules, "its_module", module)
    monkeypatch.setitem(verbs.VERBS, "greet", ("its_module", "says good morning"))
    verbs.main(["greet", "--name=you", "there"])
    assert given == [["--name=you", "there"]]
    verbs.main([])
    assert "greet      says good morning" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["--config={}", "-config={}", "--config {}"])
@pytest.mark.parametrize("argument", ["", ":demo"])
def test_a_config_of_the_library_is_found_by_name_in_any_folder(
    form, argument, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found = []
    monkeypatch.setattr(command_line.flags, "FLAGS", found.append)
    holder = types.SimpleNamespace(name="config", value=None)
    others = ["--mode=train", "--workdir", "drop" + argument]
    argv = ["reid-jax", *form.format("drop" + argument).split(), *others]
    command_line.parse(argv, config=holder, about="")
    path = f"{CHECKOUT / 'configs' / 'drop.py'}{argument}"
    assert found == [["reid-jax", *form.format(path).split(), *others]]


@pytest.mark.parametrize("package", ["configs", "data_pipelines"])
def test_a_package_that_hides_the_librarys(package, hidden, capsys):
    folder = hidden(package)
    holder = types.SimpleNamespace(name="config", value=None)
    with pytest.raises(errors.UserError, match=f"^{folder} hides .* {package!r}; re"):
        command_line.parse(["reid-jax", "--config=aaformer"], config=holder, about="")
    with pytest.raises(SystemExit) as ended:
        verbs.main(["weights", "--help"])
    assert ended.value.code == 2
    assert f"error: {folder} hides" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (errors.UserError("no such place"), 2, "error: no such place\n"),
        (KeyboardInterrupt("3 of 9 stand"), 130, "3 of 9 stand\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_how_a_verb_may_end(raised, code, said, monkeypatch, capsys):
    def fail(argv):
        raise raised

    module = types.SimpleNamespace(main=fail)
    monkeypatch.setitem(sys.modules, "its_module", module)
    monkeypatch.setitem(verbs.VERBS, "fail", ("its_module", "fails"))
    with pytest.raises(SystemExit) as ended:
        verbs.main(["fail"])
    assert ended.value.code == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("said", "wanted"),
    [("\n no such key\n  at 3", "no such key"), ("", "nothing said"), ("x" * 999, 300)],
)
def test_what_is_said_of_another_librarys_exception(said, wanted):
    line = errors.first_line(ValueError(said))
    assert line == ("x" * wanted if isinstance(wanted, int) else wanted)


def test_a_verb_that_is_none(capsys):
    with pytest.raises(SystemExit) as ended:
        verbs.main(["trian"])
    assert ended.value.code == 2
    assert "no verb 'trian'; known: train, evaluate" in capsys.readouterr().err


def test_verbs_of_a_config_are_words_or_a_mode(monkeypatch):
    given = []
    # Its flags may be another program's already, where tests have imported one.
    stand_in = types.SimpleNamespace(run=given.append)
    monkeypatch.setitem(sys.modules, "reid_jax.main", stand_in)
    verbs.main(["evaluate", "--workdir=runs/it"])
    verbs.main(["--mode=evaluate", "--workdir=runs/it"])
    assert given == [["reid-jax", "--mode=evaluate", "--workdir=runs/it"]] * 2


def _imported(*modules):
    """What a fresh process has loaded after these."""
    code = f"import sys; import {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_no_tensorflow_is_imported():
    verbs = ("training.train", "evaluation.evaluate", "export.export")
    verbs += ("benchmark.benchmark", "main")
    assert "tensorflow" not in _imported(*(f"reid_jax.{verb}" for verb in verbs))


def test_flags_are_answered_before_anything_heavy_is_imported():
    heavy = {"flax", "grain", "matplotlib", "orbax", "tensorflow_datasets"}
    assert not heavy & _imported("reid_jax.main")
    assert "jax" not in _imported("reid_jax", "reid_jax.__main__")


def test_the_api_has_what_it_names():
    assert all(hasattr(reid_jax, name) for name in reid_jax.__all__)
    assert not hasattr(reid_jax, "Extracter")
    assert (
        f"version = {{{reid_jax.__version__}}}" in (CHECKOUT / "README.md").read_text()
    )


@pytest.mark.parametrize("platform", ["cuda", "gpu", "tpux"])
def test_devices_that_are_not_there(platform, monkeypatch, tmp_path):
    if jax.default_backend() != "cpu":
        pytest.skip("there may be such devices here")
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    done = _run(DEMO, f"--workdir={tmp_path}/run")
    assert done.returncode == 2
    assert f"JAX_PLATFORMS={platform} has no devices here: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
