"""ONNX files of tests, written by hand after onnx.proto; hostile ones, too."""

import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.weights import files


def varint(value):
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number, content):
    """A number, or bytes with their length."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name, array, kind=1, raw=True):
    dims = b"".join(field(1, n) for n in array.shape)
    numbers = field(9 if raw else 4, array.tobytes())
    return dims + field(2, kind) + field(8, name.encode()) + numbers


def model(*tensors):
    """Version, producer, a graph with a node and these initialisers."""
    graph = field(1, b"\x0a\x01x") + b"".join(field(5, t) for t in tensors)
    return field(1, 8) + field(2, b"pytorch") + field(7, graph)


def read(tmp_path, content):
    path = tmp_path / "w.onnx"
    path.write_bytes(content)
    return files.read(path).arrays


A = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_initialisers_by_name(tmp_path):
    """Floats alone: integers, in whatever field, are no weights."""
    half = A.astype(np.float16)
    shape = field(1, 2) + field(2, 7) + field(7, b"\x01\x02") + field(8, b"shape")
    content = model(
        tensor("conv1.weight", A),
        tensor("bn1.weight", A[0], raw=False),
        tensor("bn1.num_batches_tracked", np.array(7), kind=7),
        tensor("fc.weight", half, kind=10),
        tensor("axes", np.arange(2, dtype=np.int32), kind=6),
        tensor("given", np.array([True]), kind=9),
        shape,
    )
    found = read(tmp_path, content)
    expected = {"conv1.weight": A, "bn1.weight": A[0], "fc.weight": half}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


HOSTILE = {
    "cut off": model(tensor("a", A))[:-3],
    "no initialisers": model(),
    "a length beyond the file": field(1, 8) + varint(7 << 3 | 2) + varint(1 << 50),
    "a number without end": field(1, 8) + b"\x3a" + b"\xff" * 40,
    "a huge shape": model(field(1, 1 << 60) + field(2, 1) + field(9, b"1234")),
    "a product that overflows": model(
        field(1, 1 << 39) * 3 + field(2, 1) + field(9, b"1234")
    ),
    "many axes": model(field(1, 1) * 100 + field(2, 1) + field(9, b"1234")),
    "packed axes": model(field(1, b"\x01" * 1000) + field(2, 1) + field(9, b"1234")),
    "another length": model(tensor("a", A) + field(1, 2)),
    "quantised": model(tensor("a", A.astype(np.int8), kind=3)),
    "text": model(field(1, 1) + field(2, 8) + field(6, b"text")),
    "another file": model(tensor("a", A) + field(13, b"\x0a\x08location")),
    "a number for a graph": field(1, 8) + field(7, 5),
    "a number for a name": model(field(8, 1 << 40) + field(2, 1)),
    "a group": field(1, 8) + b"\x3b",
    "a name that is no text": model(field(8, b"\xff\xfe") + field(2, 1)),
    "a name that cannot be printed": model(tensor("a\x1b[2J", A)),
    "numbers as a number": model(field(1, 1) + field(2, 1) + field(9, 5)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(tmp_path, case):
    with pytest.raises(UserError, match=r"w\.onnx"):
        read(tmp_path, HOSTILE[case])


def test_no_onnx_file(tmp_path):
    with pytest.raises(UserError, match="a text file, not a weight file"):
        read(tmp_path, b"hello, this is no protocol buffer")
