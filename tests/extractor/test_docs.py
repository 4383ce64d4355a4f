"""`docs/python.md`, as it stands there."""

import re
import shutil

from reid_jax import __main__ as verbs
from tests.conftest import CHECKOUT


def test_the_examples(places, photos, tmp_path, monkeypatch, capsys):
    text = (CHECKOUT / "docs" / "python.md").read_text()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "aaformer-demo").symlink_to(places.run)
    (tmp_path / "photos").symlink_to(photos)
    shutil.copy(photos / "camera1" / "04.png", tmp_path / "someone.jpg")
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"`reid-jax (embed --model[^`]*)`", text)
    verbs.main(command.split())
    assert "21 images in photos.parquet" in capsys.readouterr().out
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "someone.jpg"
    assert shown[1].split() == ["1", "0.0000", "photos/camera1/04.png"]
    assert len(names["ranking"].index[0]) == 3
    assert names["averaged"]["vector"].shape == names["vectors"]["vector"].shape
