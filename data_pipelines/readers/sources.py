"""What the readers of published data sets share: images, splits, folders and zips.

A reader lists a data set by the names of its files, without opening an image: a
function `scan(source, **options) -> {split: Split}`. It is offered under a name by a
`DataSet`, and `readers.datasets` lists those. What is listed here is stored by
`data_pipelines.store`.
"""

import collections
import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence

from data_pipelines.entries import Counts, Entry, Split, shown
from reid_jax import storage
from reid_jax.errors import UserError

JPEG = (".jpg", ".jpeg")
"""Suffixes of JPEG files, in lower case."""

_IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}
_SHOWN = 20

AnyPath = pathlib.Path | zipfile.Path


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A published data set, or a form of one's own data, that can be prepared.

    Attributes:
      name: snake-case name for `--dataset`, and the default for `--name`.
      title: name in the literature, for messages.
      scan: the reader: `scan(source, **options)` gives split name -> `Split`, and
        raises `UserError`.
      expected: what `--source` should be: a sentence that starts with "Expected".
      published: split -> counts; None where there is nothing to compare with, as for
        one's own data, which then needs `--name`.
      options: further arguments that `scan` takes, of those of `preparation.request`.
      note: what the user is told after preparing, such as a withdrawal.
    """

    name: str
    title: str
    scan: Callable[..., dict[str, Split]]
    expected: str
    published: Mapping[str, Counts] | None
    options: tuple[str, ...] = ()
    note: str = ""

    def read(self, source: str | os.PathLike, **options: object) -> dict[str, Split]:
        """Runs the reader.

        Raises:
          UserError: also where the file system refuses to read.
        """
        try:
            return self.scan(source, **options)
        except OSError as error:
            raise UserError(f"--source={source} cannot be read ({error}).") from error


def check_published(data_set: DataSet, splits: Mapping[str, Split]) -> None:
    """Compares what was found with what was published.

    Raises:
      UserError: images, identities or junk images of a split differ, or files named
        by a list are missing; the missing files are named.
    """
    if data_set.published is None:
        return
    wrong = []
    for split, published in data_set.published.items():
        found = splits.get(split, Split(()))
        wrong += [
            f"{split}: {value} {kind.replace('junk', 'junk images')} instead of {right}"
            for (kind, value), right in zip(
                dataclasses.asdict(found.counts).items(),
                dataclasses.astuple(published),
                strict=True,
            )
            if right is not None and value != right
        ]
        if found.missing:
            names = shown(found.missing, most=_SHOWN)
            wrong.append(f"{split}: missing files: {names}")
    if wrong:
        raise UserError(
            f"This is not the published {data_set.title} ({'; '.join(wrong)}). If it "
            "should be, download and unpack it again. For a data set of your own in "
            "the same layout add --allow_other_counts --name=<its_name>."
        )


def open_source(source: str | os.PathLike, *, expected: str) -> AnyPath:
    """The top of a folder or of a zip file.

    Raises:
      UserError: it does not exist, or is neither.
    """
    path = storage.expanded(source)
    if not path.exists():
        raise UserError(f"--source={source} does not exist. {expected}")
    return path if path.is_dir() else _open_zip(path)


def find_root(
    source: str | os.PathLike, *layouts: Sequence[str], expected: str
) -> tuple[AnyPath, Sequence[str]]:
    """The folder that holds a layout: `source`, or one right below it.

    Args:
      source: folder or zip file.
      *layouts: each the names that must lie there, files or folders, as in
        `("query", "train/whole")`; an earlier layout wins.
      expected: what `source` should be, for messages.

    Returns:
      The folder, and the layout that was found in it.

    Raises:
      UserError: it says what was expected and what is there.
    """
    top = open_source(source, expected=expected)
    for candidates in ([top], [p for p in children(top) if p.is_dir()]):
        for layout in layouts:
            roots = [p for p in candidates if _holds(p, layout)]
            if len(roots) == 1:
                return roots[0], layout
            if roots:
                raise UserError(
                    f"--source={source} holds several data sets: "
                    f"{shown([p.name for p in roots])}. Name one of them."
                )
    found = shown([p.name for p in children(top)])
    raise UserError(f"{expected} Found in {source}: {found}.")


def children(folder: AnyPath) -> list[AnyPath]:
    """Entries of a folder by name, without hidden files and those of file managers."""
    return sorted(
        (p for p in folder.iterdir() if visible(p.name)), key=lambda p: p.name
    )


def visible(name: str) -> bool:
    """Whether a file is neither hidden nor one that file managers leave behind."""
    return not name.startswith(".") and name.lower() not in _IGNORED


def require_identities(
    entries: Iterable[Entry], *, where: object, expected: str
) -> None:
    """Refuses a split in which there is no image of an identity.

    Raises:
      UserError: it names the folder or list `where`.
    """
    if not any(e.person > 0 for e in entries):
        raise UserError(f"{where} has no image of an identity. {expected}")


def read_lines(path: AnyPath) -> list[str]:
    """The lines of a list file, without empty ones.

    Raises:
      UserError: it cannot be read as text.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {path} cannot be read ({error}).") from error
    return [line.strip() for line in lines if line.strip()]


def _holds(folder: AnyPath, layout: Sequence[str]) -> bool:
    return all((folder / name).exists() for name in layout)


def _open_zip(source: pathlib.Path) -> zipfile.Path:
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"--source={source} is neither a folder nor a whole zip file ({error}). "
            "Download it again, or unpack it and name the folder."
        ) from error
    (name, count), *_ = collections.Counter(archive.namelist()).most_common(1) or [
        ("", 0)
    ]
    if count > 1:
        raise UserError(f"{source} holds {name} {count} times. Pack it again.")
    return zipfile.Path(archive)
