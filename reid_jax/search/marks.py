"""What a reviewer says of pairs of images, and the table of persons that it makes.

A folder holds `marks.jsonl`, a line for each mark in the order they were made; the last
one of a pair counts; `table.csv`, which `prepare --dataset=table` reads; and `images`,
the queries that came from outside the gallery.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Mapping

from reid_jax import staging, storage
from reid_jax.errors import UserError

MARKS = ("same", "different", "unsure")
LEFT_OUT = "-1"
"""The person of an image that `prepare` leaves out."""

_UNKNOWN = "unknown"
Pair = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Marked:
    """An image of a marked pair: its absolute path, and its camera if known."""

    path: str
    camera: str | None = None


class Marks:
    """The marks of one folder, which one process has at a time.

    Raises:
      UserError: another process has it, or its marks are damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = storage.expanded(folder).absolute()
        self._lock = staging.locked(self.folder, doing="reviewing")
        self._file = self.folder / "marks.jsonl"
        self._marks: dict[Pair, str] = {}
        self._cameras: dict[str, str | None] = {}
        if self._file.exists():
            for number, line in enumerate(self._file.read_text().splitlines(), 1):
                self._read(number, line)

    def close(self) -> None:
        """Lets another process have the folder."""
        self._lock.close()

    def mark(self, query: Marked, candidate: Marked, said: str, *, at: str) -> None:
        """Keeps a mark and writes the table anew.

        Args:
          query, candidate: the two images, which may come in either order.
          said: one of `MARKS`.
          at: the time.
        """
        images = [dataclasses.asdict(image) for image in (query, candidate)]
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"mark": said, "at": at, "images": images}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(images, said)
        storage.write_bytes(self.folder / "table.csv", self._table().encode())

    def of(self, one: str, other: str) -> str | None:
        """What was said of two paths."""
        return self._marks.get(_pair(one, other))

    def place(self, digest: str, suffix: str) -> str:
        """Where a query from outside the gallery lies, once a mark names it."""
        return str(self.folder / "images" / f"{digest[:32]}{suffix}")

    def keep(self, path: str, data: bytes) -> None:
        """Keeps a query from outside the gallery at its `place`."""
        if not os.path.exists(path):
            storage.write_bytes(path, data)

    def counts(self) -> Mapping[str, int]:
        """How many pairs have each mark."""
        return dict.fromkeys(MARKS, 0) | collections.Counter(self._marks.values())

    def _read(self, number: int, line: str) -> None:
        try:
            mark = json.loads(line)
            self._keep(mark["images"], mark["mark"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._file}: line {number} is damaged; remove it, or choose another "
                "folder with --marks=..."
            ) from error

    def _keep(self, images: list[dict], said: str) -> None:
        one, other = (image["path"] for image in images)
        self._marks[_pair(one, other)] = said
        for image in images:
            known = self._cameras.get(image["path"])
            self._cameras[image["path"]] = image["camera"] or known

    def _table(self) -> str:
        cameras = any(self._cameras.values())
        found = persons(self._cameras, self._marks)
        text = io.StringIO()
        columns = ["path", "person", "split", *(["camera"] if cameras else [])]
        table = csv.DictWriter(text, columns, extrasaction="ignore")
        table.writeheader()
        for path, person in found.items():
            camera = self._cameras[path] or _UNKNOWN
            row = {"path": path, "person": person, "split": "train", "camera": camera}
            table.writerow(row)
        return text.getvalue()


def persons(paths: Iterable[str], marks: Mapping[Pair, str]) -> dict[str, str]:
    """Who each image shows, as far as pairs tell.

    Images that "same" joins, over others too, are one person. Others are left out: of
    two images that were only told apart from a third, nobody knows whether they show
    one person. So is a person of whom two images were marked "different".
    """
    paths = sorted(paths)
    root = {path: path for path in paths}

    def find(path: str) -> str:
        while root[path] != path:
            path = root[path]
        return path

    for (one, other), said in marks.items():
        if said == "same":
            first, second = sorted((find(one), find(other)))
            root[second] = first
    sizes = collections.Counter(map(find, paths))
    torn = {
        find(one)
        for (one, other), said in marks.items()
        if said == "different" and find(one) == find(other)
    }
    kept = [top for top in sizes if sizes[top] > 1 and top not in torn]
    names = {top: f"person {n}" for n, top in enumerate(sorted(kept), 1)}
    return {path: names.get(find(path), LEFT_OUT) for path in paths}


def _pair(one: str, other: str) -> Pair:
    first, second = sorted((one, other))
    return first, second
