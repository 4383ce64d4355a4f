"""Tables of the measurements of speed that are kept in `benchmarks/results`.

    python -m benchmarks.results_table
    python -m benchmarks.results_table runs/aaformer-demo/benchmark

`--mode=benchmark` leaves `benchmark.jsonl` in the folder of its run. To keep one, copy
it to `benchmarks/results/NAME.jsonl`; this prints each file's table with the hardware,
the date, the revision and the command that made it, for `docs/results.md`.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
from collections.abc import Sequence

from reid_jax import errors
from reid_jax.benchmark.lines import read_lines
from reid_jax.benchmark.speed_report import table
from reid_jax.errors import UserError

RESULTS = pathlib.Path(__file__).parent / "results"


def section(path: pathlib.Path) -> str:
    """The table of a JSONL file, and what was run on what.

    Raises:
      UserError: if there are no measurements.
    """
    lines = read_lines(path)
    if not lines:
        raise UserError(f"{path} has no measurements")
    launches = {
        (line["started"], line["git_revision"], shlex.join(line["command"])): line
        for line in lines
    }
    about = [
        f"{line['started'][:10]}, {line['device_kind']}, "
        f"{line['cpu_count']} CPU cores, jax {line['versions']['jax']}, "
        f"revision {str(revision)[:12]}:\n\n"
        f"    python -m reid_jax.main {command.partition(' ')[2]}\n"
        for (_, revision, command), line in launches.items()
    ]
    title = f"### {lines[0]['config']} ({path.stem})"
    return f"{title}\n\n{table(lines)}\n" + "\n".join(about)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the sections of files, or of all files in folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=pathlib.Path, default=[RESULTS])
    found = [
        file
        for path in parser.parse_args(argv).paths
        for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])
    ]
    if not found:
        raise UserError("there are no JSONL files of --mode=benchmark")
    print("\n".join(map(section, found)))


if __name__ == "__main__":
    with errors.answered():
        main()
