"""The rows of a CSV or Parquet table of images, as text."""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from reid_jax.errors import UserError, first_line

if TYPE_CHECKING:
    import pyarrow.parquet

EXPECTED = (
    "Expected a .csv or .parquet table with the columns path, person, split and, where "
    "there are any, camera and parts."
)
"""What `scan` reads, for messages."""

MISSING = frozenset(
    {
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan"),
        *("1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a"),
        *("nan", "null"),
    }
)
"""What stands for a missing value, as `pandas.read_csv` has it by default."""

REQUIRED = ("path", "person", "split")
USED = (*REQUIRED, "camera", "parts")
"""Names of the columns that must be there, and of all that are used."""

PARQUET = (".parquet", ".pq")
# Every row names another file, so that even well packed ones take up some bits.
_MOST_ROWS, _FREE_ROWS, _ROWS_PER_BYTE = 5_000_000, 100_000, 8
_MOST_BYTES = 1 << 30

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

    @property
    def parts(self) -> str:
        """The label file; empty where there is none."""
        name = self.cells.get("parts", "")
        return "" if name in MISSING else name


def read(
    table: pathlib.Path, wanted: Collection[str] = USED
) -> tuple[list[str], list[Row]]:
    """Names of the columns, and the rows; of Parquet only cells of `wanted` columns."""
    if table.suffix.lower() in PARQUET:
        return _read_parquet(table, wanted)
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


def _read_parquet(
    table: pathlib.Path, wanted: Collection[str]
) -> tuple[list[str], list[Row]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{table}: reading Parquet needs pyarrow. Install it with: pip install "
            "pyarrow. Or save the table as CSV."
        ) from error
    try:
        with table.open("rb") as file:
            declared = pyarrow.parquet.ParquetFile(file)
            stored = declared.schema_arrow.names
            used = [name for name in stored if name.strip().lower() in wanted]
            _check_declared(table, declared, used)
            # As dictionaries, so that equal cells share their text.
            opened = pyarrow.parquet.ParquetFile(file, read_dictionary=used)
            batches = opened.iter_batches(columns=used, use_threads=False)
            cells = (row for batch in batches for row in _parquet_cells(batch))
            names = [name.strip().lower() for name in used]
            rows = [Row.make(n, names, row) for n, row in enumerate(cells, start=1)]
            return [name.strip().lower() for name in stored], rows
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = first_line(error)
        raise UserError(f"{table} cannot be read as Parquet ({reason}).") from error


def _check_declared(
    table: pathlib.Path, opened: "pyarrow.parquet.ParquetFile", used: Sequence[str]
) -> None:
    """Refuses, by what it declares, a small file that would unpack to a huge one."""
    if len(set(used)) < len(used):
        raise UserError(f"{table} has a column twice: {', '.join(used)}. Keep one.")
    size, declared = table.stat().st_size, opened.metadata
    nested = [n for n in used if opened.schema_arrow.field(n).type.num_fields]
    if nested:
        raise UserError(
            f"{table}: column {nested[0]} holds lists instead of one value."
        )
    most = min(_MOST_ROWS, _FREE_ROWS + _ROWS_PER_BYTE * size)
    if declared.num_rows > most:
        raise UserError(
            f"{table} declares {declared.num_rows} rows in {size} bytes, more than the "
            f"{most} that a table of so many files could have. Export it again."
        )
    groups = [declared.row_group(i) for i in range(declared.num_row_groups)]
    chunks = [g.column(i) for g in groups for i in range(g.num_columns)]
    unpacked = sum(
        c.total_uncompressed_size for c in chunks if c.path_in_schema in used
    )
    if unpacked > _MOST_BYTES:
        raise UserError(
            f"{table} declares {unpacked} bytes of cells; more than {_MOST_BYTES} are "
            "not read. Save it as CSV."
        )


def _parquet_cells(batch: "pyarrow.RecordBatch") -> Iterator[tuple[str, ...]]:
    return zip(*map(_texts, batch.columns), strict=True)


def _texts(column: "pyarrow.Array") -> Iterator[str]:
    if not hasattr(column, "dictionary"):
        return map(_text, column.to_pylist())
    values = [_text(value) for value in column.dictionary.to_pylist()]
    return ("" if i is None else values[i] for i in column.indices.to_pylist())


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
