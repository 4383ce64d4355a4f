"""The commands of `docs/search.md`, as they stand there."""

import pathlib
import re
import shlex
import shutil

import pytest

from reid_jax import __main__ as verbs

pytest.importorskip("pymilvus")
server = pytest.importorskip("milvus_lite.adapter.grpc.server")

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "search.md"
ELSEWHERE = ("pip ", "milvus-lite ", "python -m data_pipelines")


def _commands():
    blocks = re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_every_command(photos, tmp_path, monkeypatch, capsys, extractors):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    (tmp_path / "more").mkdir()
    for name in ("someone.jpg", "more/one.jpg", "more/two.jpg"):
        shutil.copy(photos / "2_c1.png", name)
    rows = [f"photos/{p.name},{p.name[3]},2026-11-05" for p in photos.iterdir()]
    pathlib.Path("photos.csv").write_text("path,camera,time\n" + "\n".join(rows))
    monkeypatch.setattr("reid_jax.load", lambda place: extractors["toy"])
    monkeypatch.setattr("reid_jax.extractor.load.load", lambda place: extractors["toy"])
    running, database, port = server.start_server_in_thread("data")
    try:
        for line in _commands():
            if line.startswith(ELSEWHERE) or " serve " in line:
                continue
            program, *argv = shlex.split(line.replace("19530", str(port)))
            assert program == "reid-jax"
            verbs.main(argv)
            done = capsys.readouterr()
            assert "nothing passes the filter" not in done.out, line
    finally:
        running.stop(None).wait()
        database.close()
    assert (tmp_path / "ranking.png").exists()
    assert len((tmp_path / "hits.jsonl").read_text().splitlines()) > 0
