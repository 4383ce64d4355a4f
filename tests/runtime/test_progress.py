"""Long steps say what they do, and end their line whatever happens."""

import re

import pytest

from reid_jax.runtime.progress import said


def test_what_is_done_and_how_long_it_took(capsys):
    with said("compiling the step"):
        assert capsys.readouterr().err == "compiling the step ..."
    assert re.fullmatch(r" \d+\.\d s\n", capsys.readouterr().err)


def test_a_failure_ends_the_line(capsys):
    with pytest.raises(KeyError), said("reading"):
        raise KeyError
    assert capsys.readouterr().err == "reading ... stopped\n"
