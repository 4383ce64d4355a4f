"""Lines of JSON that a folder keeps over launches, and tables made of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from etils import epath

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.runtime import workdir as workdirs

Line = dict[str, Any]


class Lines:
    """What a folder holds of a config, old and new.

    Args:
      folder: that the lines lie in.
      config: which they are of, before what a sweep changes.

    Attributes:
      file, what: of a derived class: the file's name, and what the lines are.
      identity: of a derived class: the fields that make a line another one, rather
        than the same one again.
      folder, lines: of this one.

    Raises:
      UserError: if there are lines of another config.
    """

    file: ClassVar[str]
    what: ClassVar[str]
    identity: ClassVar[tuple[str, ...]]

    def __init__(self, folder: str | os.PathLike[str], config: Mapping[str, Any]):
        self.folder = storage.absolute(folder)
        self._digest, *older = _digests(config)
        self._known = {self._digest, *older}
        self.read()

    def read(self) -> None:
        """Reads what is there by now: other launches may have added to it."""
        self.lines = read_lines(self.folder / self.file)
        if not self._known.issuperset(line["config_digest"] for line in self.lines):
            raise UserError(
                f"{self.folder} has {self.what} of a config with other fields; name "
                "another --workdir, or sweep over the field: --sweep=FIELD=VALUE,VALUE"
            )

    def add(self, line: Line) -> None:
        """Writes a line, in place of an earlier one of the same identity."""
        line = {**line, "config_digest": self._digest}
        path = self.folder / self.file
        with workdirs.alone_with(path):
            self.read()
            kept = [old for old in self.lines if self.key(old) != self.key(line)]
            self.lines = [*kept, line]
            text = "".join(json.dumps(each) + "\n" for each in self.lines)
            workdirs.write_text(path, text)

    def key(self, line: Line) -> str:
        """What a line has in common with what replaces it."""
        return json.dumps([line[name] for name in self.identity])


def _digests(config: Mapping[str, Any]) -> list[str]:
    """Of a config, and of what it was before each field that older runs lack."""
    fields, versions = workdirs.flatten(config), []
    for name, value in reversed(workdirs.NEWER_FIELDS.items()):
        versions.append(fields)
        fields = {
            field: given
            for field, given in fields.items()
            if (field.rpartition(".")[2], given) != (name, value)
        }
    texts = (json.dumps(each, sort_keys=True) for each in [*versions, fields])
    return [hashlib.sha256(text.encode()).hexdigest()[:12] for text in texts]


def read_lines(path: epath.Path) -> list[Line]:
    """Lines of a JSONL file; none if there is no file.

    Raises:
      UserError: if the file is damaged.
    """
    if not path.exists():
        return []
    try:
        return [
            json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
        ]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove that file") from error


def aligned(rows: Sequence[Sequence[str]], *, left: int = 2) -> str:
    """A Markdown table, aligned for reading as text.

    Args:
      rows: the first one of titles.
      left: columns that begin at their left; the others end at their right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [
        [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in cells]
        for cells in (enumerate(zip(row, widths, strict=True)) for row in rows)
    ]
    rules = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "".join(
        "| " + " | ".join(row) + " |\n" for row in (padded[0], rules, *padded[1:])
    )


def short(value: float) -> str:
    """Three digits or more, and no exponent for large numbers."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def optional(value: float | None, form: str) -> str:
    """The value in that form; nothing where there is none."""
    return "" if value is None else form.format(value)


def differences(lines: Sequence[Line], forms: Mapping[str, str]) -> list[str]:
    """What tells lines apart: of each, the fields that differ among them.

    Args:
      lines: to be shown side by side.
      forms: how the value of a field is written, such as "batch {}".
    """
    shown = [n for n in forms if len({line[n] for line in lines}) > 1]
    return [" ".join(forms[n].format(line[n]) for n in shown) for line in lines]


def label(sweep: Mapping[str, Any]) -> str:
    """The fields of a sweep point, such as "dtype=bfloat16"."""
    return " ".join(f"{name.rpartition('.')[2]}={x}" for name, x in sweep.items())
