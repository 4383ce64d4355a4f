"""Writes a sheet for each paper, `docs/papers/NAME.md`, from its module and its config.

    python -m benchmarks.paper_sheets
    python -m benchmarks.paper_sheets --papers=drop,sanet
    python -m benchmarks.paper_sheets --texts_only

A sheet has the citation and the deviations of the module's docstring, the commands of
the config's, each row of the paper's tables with the fields that it changes, its size
at full size and what the paper reports, and the fields that there are. Nothing is
computed: programs are traced, for a few seconds a row. With `--texts_only` rows keep
the sizes that the sheets have of them, for changes that affect no network.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

import configs
from data_pipelines.readers.datasets import DATASETS
from reid_jax import experiment
from reid_jax.benchmark.flops import count_flops
from reid_jax.models.method import Method, PairScorer, parameter_count

ROOT = pathlib.Path(__file__).resolve().parents[1]

Sizes = tuple[int, int, int]
"""Parameters, FLOPs of embedding an image, and of scoring a pair (0: nothing does)."""

SIZES = re.compile(r"\| [\d,]+ \| \d+\.\d\d \|( (\d+\.\d{3}|–) \|)?")
"""The cells of a row that are traced."""

HEAD = """\
# {title}

Written by `python -m benchmarks.paper_sheets` from
[reid_jax/models/{name}.py](../../reid_jax/models/{name}.py) and
[configs/{name}.py](../../configs/{name}.py).

{citation}

```bash
{commands}
```

## Rows

Parameters include the classifiers of the data set's identities, at {size} pixels
(height × width). GFLOPs are those of embedding one image{pairs}:
matrix products and convolutions, two per multiplication and addition, with all that an
image may skip. Fields are those of `config.model` where no other is named.

The last column is what the paper reports, rank-1 / mAP in percent: none of it was
measured here. What was is in [docs/results.md](../results.md#{anchor}).

"""

FIELDS = """\
## Fields

Those of `config.model`, set as `--config.model.NAME=VALUE`, with the values of the
paper's system; the others are in [configs/common.py](../../configs/common.py).

| fields | |
|---|---|
{lines}
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the sheets, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--papers", default=",".join(papers()), help="comma-separated")
    parser.add_argument("--out", default=ROOT / "docs" / "papers", type=pathlib.Path)
    parser.add_argument("--texts_only", action="store_true", help="keep known sizes")
    options = parser.parse_args(argv)
    names = options.papers.split(",")
    if unknown := set(names) - set(papers()):
        parser.error(f"unknown papers {sorted(unknown)}; known: {', '.join(papers())}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = options.out / f"{name}.md"
        known = {}
        if options.texts_only and path.exists():
            known = traced_cells(path.read_text())
        path.write_text(sheet(name, known))
        print(path, flush=True)


def papers() -> list[str]:
    """Names of the configs that say what their paper reports."""
    names = sorted(module.name for module in pkgutil.iter_modules(configs.__path__))
    return [name for name in names if hasattr(_config_file(name), "REPORTED")]


def _config_file(name: str) -> Any:
    return importlib.import_module(f"configs.{name}")


def traced_cells(text: str) -> dict[str, str]:
    """First cell of each row of a sheet -> the cells with its sizes."""
    found = ((line.split(" | ")[0], SIZES.search(line)) for line in text.splitlines())
    return {row.removeprefix("| "): sizes[0] for row, sizes in found if sizes}


def sheet(name: str, known: Mapping[str, str]) -> str:
    """The sheet of a paper as Markdown.

    Args:
      name: of its module and its config.
      known: `traced_cells` of an earlier sheet; rows that it does not have are traced.
    """
    module = importlib.import_module(f"reid_jax.models.{name}")
    file = _config_file(name)
    default = file.get_config()
    has_pairs = _scorer(_method(default)) is not None
    title, citation = inspect.cleandoc(module.__doc__).split("\n\n")[:2]
    head = HEAD.format(
        name=name,
        title=title.removesuffix("."),
        citation=_plain(citation),
        commands="\n".join(re.findall(r"(?m)^    (.+)$", file.__doc__)),
        size=" × ".join(map(str, experiment.image_size(default))),
        pairs=", and of scoring one pair" if has_pairs else "",
        anchor=_anchor(title.partition(":")[0]),
    )
    rows = "\n".join(_rows(file, known, has_pairs=has_pairs))
    fields = FIELDS.format(lines="\n".join(_options(module.Options, default.model)))
    return f"{head}{rows}\n\n{fields}\n## Deviations\n\n{_deviations(module)}\n"


def _rows(file: Any, known: Mapping[str, str], *, has_pairs: bool) -> list[str]:
    """Lines of the table; the first row is the config without `:row=`."""
    sizes = "| parameters | GFLOPs |" + " a pair |" * has_pairs
    lines = [f"| row | fields | data set {sizes} the paper reports |"]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    traced: dict[str, str] = {}  # of rows that are one network under several names
    for row, fields in {"": {}, **file.ROWS}.items():
        config = file.get_config(f"row={row}")
        name = f"`{row}`" if row else "the paper's system"
        network = f"{config.data}\n{config.model}"
        if name not in known and network not in traced:
            traced[network] = _size_cells(measure(config), has_pairs=has_pairs)
        sizes = known[name] if name in known else traced[network]
        lines.append(
            f"| {name} | {_fields(fields)} | `{config.data.dataset}` {sizes} "
            f"{_reported(file.REPORTED, row)} |"
        )
    return lines


def _size_cells(sizes: Sizes, *, has_pairs: bool) -> str:
    parameters, image, pair = sizes
    cells = f"| {parameters:,} | {image / 1e9:.2f} |"
    if not has_pairs:
        return cells
    return cells + (f" {pair / 1e9:.3f} |" if pair else " – |")


def _fields(fields: dict[str, Any]) -> str:
    """Fields as they are written in Python; what is too long for a cell is left out."""
    written = {path: repr(value).replace("|", "\\|") for path, value in fields.items()}
    return ", ".join(
        f"`{path.removeprefix('model.')}={value if len(value) <= 100 else '...'}`"
        for path, value in written.items()
    )


def _options(options: type, chosen: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table of fields: those under one comment, and it."""
    lines = textwrap.dedent(inspect.getsource(options)).splitlines()
    body = ast.parse("\n".join(lines)).body[0].body
    together: list[tuple[str, list[str]]] = []
    for field in (node for node in body if isinstance(node, ast.AnnAssign)):
        if comment := _comment_above(lines, field.lineno - 1):
            together.append((comment, []))
        together[-1][1].append(field.target.id)
    for comment, names in together:
        written = _fields({name: chosen[name] for name in names})
        yield f"| {written} | {_plain(comment)} |"


def _comment_above(lines: Sequence[str], line: int) -> str:
    """What comments directly above a line say."""
    start = line
    while lines[start - 1].lstrip().startswith("#"):
        start -= 1
    words = (text.strip().lstrip("#").strip() for text in lines[start:line])
    return " ".join(words).replace("|", "\\|")


def _reported(reported: Any, row: str) -> str:
    """The paper's figures of a row, table by table."""
    tables = {table: rows[row] for table, rows in reported.items() if row in rows}
    return "; ".join(
        f"{table}: "
        + ", ".join(
            f"`{dataset}` " + " / ".join("–" if n is None else str(n) for n in figures)
            for dataset, figures in by_dataset.items()
        )
        for table, by_dataset in tables.items()
    )


def _anchor(title: str) -> str:
    """The section of docs/results.md with this title, or else that on full size."""
    sections = re.findall(r"(?m)^## (.+)$", (ROOT / "docs" / "results.md").read_text())
    section = title if title in sections else "The papers' networks at full size"
    if section not in sections:
        raise ValueError(f"docs/results.md has no section {section!r}")
    return re.sub(r"[^\w -]", "", section.lower()).replace(" ", "-")


def _deviations(module: Any) -> str:
    """The module's docstring from "Deviations" to its end."""
    doc = inspect.cleandoc(module.__doc__)
    return _plain(doc[doc.index("\nDeviations") + 1 :])


def _plain(text: str) -> str:
    """Text without what Markdown would take for markup, but for code in backticks."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([*<])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def measure(config: Any) -> Sizes:
    """The size of a config's network, by tracing it."""
    method = _method(config)
    batch = experiment.example_batch(config, 1)
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)

    def embed(variables: Any, batch: Any) -> Any:
        inputs = {name: batch[name] for name in method.embed_inputs}
        return method.embed(variables, batch["image"], **inputs)

    image = count_flops(embed, variables, batch)
    scorer = _scorer(method)
    pair = 0 if scorer is None else _measure_pair(scorer, variables, batch)
    return parameter_count(variables), image, pair


def _measure_pair(scorer: PairScorer, variables: Any, batch: Any) -> int:
    """FLOPs of scoring one pair of images whose maps are there."""

    def find(variables: Any, batch: Any) -> Any:
        inputs = {name: batch[name] for name in scorer.inputs}
        return scorer.pair_maps(variables, batch["image"], **inputs)

    query = jax.eval_shape(find, variables, batch)
    candidates = jax.tree.map(lambda x: x.update(shape=(1, *x.shape)), query)
    return count_flops(scorer.score_pairs, variables, query, candidates)


def _method(config: Any) -> Method:
    """With as many identities as the config's data set has for training."""
    published = DATASETS[config.data.dataset].published
    return experiment.build_method(config, num_classes=published["train"].identities)


def _scorer(method: Method) -> PairScorer | None:
    return method.pair_scorer(method.stages[-1])


if __name__ == "__main__":
    main()
