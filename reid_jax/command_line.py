"""The flags of a command line, with a config's mistakes as messages of their own."""

from __future__ import annotations

import ast
import importlib.util
import keyword
import pathlib
import re
import runpy
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from reid_jax import errors
from reid_jax.errors import UserError
from reid_jax.runtime import workdir

_PLACES = ("checkpoint", "workdir")
"""Flags that name a run's folder."""

_GROUP = re.compile(
    r"--config\.stages\.(\w+)\.optimizer\.groups\.(\w+)\.(\w+)=(.*)", re.DOTALL
)
"""A field of a group of parameters, which the config need not have."""


class _OrNone(flags.ArgumentParser):
    """Reads None, which a field of any kind may be given, and else what `parser` does.

    `checks` says which fields need a value.
    """

    def __init__(self, parser: flags.ArgumentParser, wanted: str):
        self._parser = parser
        self._wanted = wanted

    def parse(self, argument: Any) -> Any:
        if argument == "None":
            return None
        try:
            return self._parser.parse(argument)
        except ValueError as error:
            raise ValueError(f"not {self._wanted}") from error

    def flag_type(self) -> str:
        return self._parser.flag_type()


_PARSERS = {
    float: _OrNone(flags.FloatParser(), "a number, such as 0.5 or 3e-4"),
    int: _OrNone(flags.IntegerParser(), "a whole number, such as 64"),
    tuple: _OrNone(tuple_parser.TupleParser(), "a tuple, such as (1, 2)"),
}
"""Of the fields of a config, by their type."""


def parse(argv: list[str], *, config: flags.FlagHolder, about: str) -> list[str]:
    """A parser for `absl.app.run`.

    Args:
      argv: of the process.
      config: the flag that names a file of `configs/`.
      about: what `--help` begins with.

    Returns:
      the arguments that are no flags.

    Raises:
      UserError: for a flag, a config, an argument after its colon or a field of it that
        does not exist or cannot be read, and for a package that hides the library's.
    """
    if "--help" in argv:
        print(f"{about}\nFields of a config: {_library() / 'common.py'}\n")
        print(
            flags.FLAGS.module_help(flags.FLAGS.find_module_defining_flag(config.name))
        )
        sys.exit(0)
    errors.check_own("configs", "data_pipelines")
    argv = [argv[0], *_of_the_run(argv), *_by_path(argv)[1:]]
    _check_once(argv)
    for kind, parser in _PARSERS.items():
        config_flags.register_flag_parser_for_type(kind, parser)
    try:
        argv = _with_whole_groups(argv)
        _check_once(argv)
        sys.argv = argv  # ml_collections looks there for the fields that are given.
        rest = flags.FLAGS(argv)
        if config.value is not None:
            _ = config.value.name  # A file that cannot be read shows when it is used.
        return rest
    except OSError as error:
        raise UserError(_absent(argv)) from error
    except (SyntaxError, ImportError) as error:
        path = _named(argv)[0]
        raise UserError(f"--config={path} is no Python file: {error}") from error
    except (AttributeError, KeyError) as error:
        if not _describes_a_config(argv):
            path = _named(argv)[0]
            raise UserError(f"--config={path} has no get_config()") from error
        for arg in argv:
            if arg.startswith("--config."):
                _check_field(arg, _without_overrides(argv))
        raise UserError(f"--config: {error}") from error
    except (TypeError, ValueError) as error:
        for arg in argv:  # ml_collections parses names as Python: `lambda` is none
            names = arg.partition("=")[0].split(".")
            if names[0] == "--config" and any(map(keyword.iskeyword, names)):
                _check_field(arg, _without_overrides(argv))
        raise UserError(f"--config: {error}") from error
    except flags.Error as error:
        raise UserError(str(error)) from error


def _check_once(argv: list[str]) -> None:
    """Raises UserError for a field that is given twice: tuples would be joined."""
    given = [arg.partition("=")[0] for arg in argv if arg.startswith("--config")]
    for name in given:
        if given.count(name) > 1:
            raise UserError(f"{name} is given {given.count(name)} times; keep one")


def _by_path(argv: list[str]) -> list[str]:
    """`--config=aaformer:demo` with the path of the library's file of that name."""
    at, given = _found(argv, "config") or (0, "")
    name = given.partition(":")[0]
    if name not in _configs(_library()):
        return argv
    path = f"{_library() / name}.py{given.removeprefix(name)}"
    return [*argv[:at], argv[at].removesuffix(given) + path, *argv[at + 1 :]]


def _library() -> pathlib.Path:
    """The folder of the configs that come with the library."""
    return pathlib.Path(importlib.util.find_spec("configs").origin).parent


def _configs(folder: pathlib.Path) -> list[str]:
    """Names of a folder's files that describe a training."""
    others = ("common", "run")
    return sorted(p.stem for p in folder.glob("[a-z]*.py") if p.stem not in others)


def _of_the_run(argv: list[str]) -> list[str]:
    """Flags of a run that is evaluated or exported as it was trained: its config, and
    its folder, where neither is given.
    """
    given = {name: _given(argv, name) for name in ("config", "mode", *_PLACES)}
    place = next((given[name] for name in _PLACES if given[name]), None)
    if given["config"] or given["mode"] not in ("evaluate", "export") or not place:
        return []
    # Orbax is slow to import, and a wrong flag is to be answered at once.
    from reid_jax.runtime import checkpoint, trained

    found = [f"--config={importlib.util.find_spec('configs.run').origin}:{place}"]
    if not given["workdir"]:
        found.append(f"--workdir={trained.run_folder(checkpoint.locate(place))}")
    return found


def _given(argv: list[str], name: str) -> str | None:
    """The value of a flag, `--name=value` or `--name value`, before absl parses it."""
    found = _found(argv, name)
    return found[1] if found else None


def _found(argv: list[str], name: str) -> tuple[int, str] | None:
    """The index of the argument that ends with a flag's value, and the value."""
    for i, arg in enumerate(argv[1:], start=1):
        flag, has_value, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and flag == name:
            if has_value:
                return i, value
            return (i + 1, argv[i + 1]) if i + 1 < len(argv) else None
    return None


def _named(argv: list[str]) -> tuple[str, str]:
    """The config's file, and its argument; the flags may not have been parsed."""
    path, _, argument = (_given(argv, "config") or "").partition(":")
    return path, argument


def _describes_a_config(argv: list[str]) -> bool:
    path = _named(argv)[0]
    return not path or "get_config" in runpy.run_path(path)


def _with_whole_groups(argv: list[str]) -> list[str]:
    """Single fields of `optimizer.groups` as one flag with all groups of their stage.

    A flag can be given for fields alone that the config has, and groups have any name.
    """
    given = [match for match in map(_GROUP.fullmatch, argv) if match]
    if not given:
        return argv
    stages = _without_overrides(argv)["stages"]
    changed: dict[str, dict[str, Any]] = {}
    for match in given:
        stage, group, field, value = match.groups()
        if stage in stages:
            changed[stage] = stages[stage]["optimizer"]["groups"]
            changed[stage].setdefault(group, {})[field] = _literal(value)
            argv = [arg for arg in argv if arg != match[0]]
    fields = {f"stages.{stage}.optimizer.groups": x for stage, x in changed.items()}
    return [*argv, *(f"--config.{field}={groups}" for field, groups in fields.items())]


def _literal(text: str) -> Any:
    """A number, or else the text itself: a pattern needs no quotes of its own."""
    try:
        return float(ast.literal_eval(text))
    except (SyntaxError, TypeError, ValueError):
        return text


def _absent(argv: list[str]) -> str:
    """What is said of a file that cannot be read: which ones can."""
    path = pathlib.Path(_named(argv)[0])
    there = _configs(path.parent) if path.suffix else []
    files = f"in {path.parent} there are: {', '.join(there)}; " if there else ""
    return (
        f"--config={path} cannot be read; {files}the library's own, by name: "
        f"{', '.join(_configs(_library()))}"
    )


def _without_overrides(argv: list[str]) -> dict[str, Any]:
    """The fields of the command line's config as its file has them."""
    path, argument = _named(argv)
    return runpy.run_path(path)["get_config"](argument).to_dict()


def _check_field(override: str, config: dict[str, Any]) -> None:
    """Raises UserError if `--config.a.b=value` names no field; says which is near."""
    name = override.removeprefix("--config.").partition("=")[0]
    known = workdir.flatten(config)
    stem = name.partition("[")[0]
    if stem in known or any(field.startswith(stem + ".") for field in known):
        return
    hint = errors.did_you_mean(name, known)
    raise UserError(f"the config has no field {name}{hint}")
