"""The rows of a CSV or Parquet table of images, as text."""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from reid_jax.errors import UserError

EXPECTED = (
    "Expected a .csv or .parquet table with the columns path, person, split and, where "
    "there are any, camera and parts."
)
"""What `scan` reads, for messages."""

_PARQUET = (".parquet", ".pq")

Cells = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row whose cells are there; `number` is what an editor shows."""

    number: int
    cells: Cells

    @classmethod
    def make(cls, number: int, columns: Sequence[str], cells: Iterable[str]) -> "Row":
        """A row without the blanks around its cells, the split in small letters."""
        row = dict(zip(columns, map(str.strip, cells), strict=True))
        return cls(number, row | {"split": row.get("split", "").lower()})

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


def read(table: pathlib.Path) -> tuple[list[str], list[Row]]:
    """Names of the columns, and the rows."""
    if table.suffix.lower() in _PARQUET:
        return _read_parquet(table)
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{table} cannot be read as UTF-8 text ({error}). {EXPECTED}"
        ) from error
    # Spreadsheets export with semicolons where the comma is the decimal point.
    separator = max(",;\t", key=text.partition("\n")[0].count)
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, strict=True, delimiter=separator)
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        return columns, list(_csv_rows(table, reader, columns))
    except csv.Error as error:
        raise UserError(f"{table}: row {reader.line_num}: {error}.") from error


def _csv_rows(
    table: pathlib.Path, reader: Iterator[list[str]], columns: Sequence[str]
) -> Iterator[Row]:
    for cells in reader:
        if not any(map(str.strip, cells)):
            continue
        if len(cells) != len(columns):
            raise UserError(
                f"{table}: row {reader.line_num} has {len(cells)} cells; the first "
                f"row names {len(columns)} columns."
            )
        yield Row.make(reader.line_num, columns, cells)


def _read_parquet(table: pathlib.Path) -> tuple[list[str], list[Row]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{table}: reading Parquet needs pyarrow. Install it with: pip install "
            "pyarrow. Or save the table as CSV."
        ) from error
    try:
        with table.open("rb") as file:
            stored = pyarrow.parquet.read_table(file, use_threads=False)
        columns = [name.strip().lower() for name in stored.column_names]
        values = [map(_text, column.to_pylist()) for column in stored.columns]
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{table} cannot be read as Parquet ({reason}).") from error
    rows = enumerate(zip(*values, strict=True), start=1)
    return columns, [Row.make(n, columns, cells) for n, cells in rows]


def _text(value: object) -> str:
    """A Parquet value as the text that a CSV file would hold."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    # A column of whole numbers with gaps comes as float.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)
