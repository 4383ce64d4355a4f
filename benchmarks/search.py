"""A gallery on Milvus Lite at size: adding, asking, kinds of index; FAISS beside it.

  python -m benchmarks.search --count=100000 --width=768

Vectors are unit ones around the directions of their persons, 20 images each, over eight
cameras. Each part runs in a process of its own, whose peak memory is its own; the
vectors themselves are in it (0.3 GB for 100,000 of 768). Needs `pip install
'reid_jax[search]'`.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import faiss
import numpy as np

from benchmarks import memory
from reid_jax.search import check, rows, schema
from reid_jax.search import gallery as galleries
from reid_jax.search.layout import About

TOP, QUERIES, BLOCK = 100, 50, 5000
IMAGES, CAMERAS, SPREAD = 20, 8, 0.8


def vectors(count: int, width: int) -> np.ndarray:
    """Unit vectors [count, width], those of a person near each other."""
    rng = np.random.default_rng(0)
    person = rng.integers(max(1, count // IMAGES), size=count)
    look = rng.normal(size=(person.max() + 1, width)).astype(np.float32)
    found = look[person] + SPREAD * rng.normal(size=(count, width)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def chosen(count: int) -> np.ndarray:
    return np.random.default_rng(1).choice(count, QUERIES, replace=False)


def adding(uri: str, count: int, width: int) -> Iterator[str]:
    """Fills a gallery and asks it as it stands."""
    of = vectors(count, width)
    arrays = {"vector": ("float32", (width,))}
    about = About("benchmark", "none", "", (256, 128), arrays)
    with galleries.made(uri, about) as gallery:
        begin = time.monotonic()
        for start in range(0, count, BLOCK):
            block = range(start, min(start + BLOCK, count))
            entries = [
                rows.Entry(f"/{i}.jpg", str(i), {"camera": str(i % CAMERAS)})
                for i in block
            ]
            rows.put(gallery, entries, {"vector": of[block.start : block.stop]})
        gallery.flush()
        yield f"added and flushed: {count / (time.monotonic() - begin):.0f}/s"
        size = sum(f.stat().st_size for f in pathlib.Path(uri).rglob("*"))
        yield f"on disk: {size / 1e6:.0f} MB"
        for what, options in {
            "ids": {},
            "ids, of seven cameras in eight": {"where": 'camera != "0"'},
            "ids, of one camera in eight": {"where": 'camera == "0"'},
            "whole entries, as `search query` asks": {"fields": ["*"]},
        }.items():
            seconds, _ = check.asked(gallery, of[chosen(count)], TOP, **options)
            yield f"top {TOP}, {what}: {_ms(seconds)}"
        begin = time.monotonic()
        gallery.nearest(of[chosen(count)], TOP)
        each = (time.monotonic() - begin) / QUERIES
        yield f"top {TOP}, ids, {QUERIES} queries at once: {1e3 * each:.1f} ms each"


def indexed(uri: str, count: int, width: int, kind: str) -> Iterator[str]:
    """Another index over the same gallery."""
    ids = [rows.identity(f"/{i}.jpg") for i in range(count)]
    of = vectors(count, width)
    with galleries.existing(uri) as gallery:
        done = check.of_index(gallery, kind, ids, of, chosen(count), top=TOP)
    yield (
        f"{kind}: built in {done.build:.0f} s, {_ms(done.seconds)}, "
        f"recall {100 * done.recall:.1f} %"
    )


def alone(kind: str, count: int, width: int) -> Iterator[str]:
    """FAISS with the same index, without anything around it."""
    of = vectors(count, width)
    options = schema.INDEXES[kind]
    factory = {
        "FLAT": "Flat",
        "HNSW": f"HNSW{options.get('M')},Flat",
        "IVF_FLAT": f"IVF{options.get('nlist')},Flat",
    }
    index = faiss.index_factory(width, factory[kind], faiss.METRIC_INNER_PRODUCT)
    begin = time.monotonic()
    if kind == "HNSW":
        faiss.ParameterSpace().set_index_parameter(
            index, "efConstruction", options["efConstruction"]
        )
    index.train(of)
    index.add(of)
    built = time.monotonic() - begin
    look = {
        "HNSW": ("efSearch", schema.ef(TOP)),
        "IVF_FLAT": ("nprobe", schema.NPROBE),
    }
    if kind in look:
        faiss.ParameterSpace().set_index_parameter(index, *look[kind])
    seconds, found = [], []
    for query in of[chosen(count)]:
        begin = time.monotonic()
        found.append(set(index.search(query[None], TOP)[1][0]))
        seconds.append(time.monotonic() - begin)
    truth = check.exact(of, of[chosen(count)], TOP)
    hits = sum(len(set(a) & b) for a, b in zip(truth, found, strict=True))
    yield (
        f"FAISS {kind}: {count / built:.0f}/s added, {_ms(seconds)}, "
        f"recall {100 * hits / truth.size:.1f} %"
    )


def _ms(seconds: list[float]) -> str:
    median, slow = (1e3 * np.quantile(seconds, q) for q in (0.5, 0.95))
    return f"{median:.1f} ms (95 % within {slow:.1f})"


def _alone_in_a_process(work: Callable[[], Iterator[str]]) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_say, args=(work,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def _say(work: Callable[[], Iterator[str]]) -> None:
    for line in work():
        print(line, flush=True)
    print(f"  peak memory {memory.peak_gib():.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768)
    args = parser.parse_args()
    size = {"count": args.count, "width": args.width}
    print(f"{args.count} x {args.width}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        uri = os.path.join(folder, "gallery.db")
        parts = [functools.partial(adding, uri, **size)]
        parts += [
            functools.partial(indexed, uri, kind=kind, **size)
            for kind in schema.INDEXES
        ]
        parts += [functools.partial(alone, kind, **size) for kind in schema.INDEXES]
        for part in parts:
            _alone_in_a_process(part)


if __name__ == "__main__":
    main()
