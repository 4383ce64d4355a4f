"""Weight files made to fill memory, to take for ever, or to crash: one message each."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.weights import files, pickles
from tests.weights import torch_writer

MOST = 100 << 20
"""Bytes that reading any of these small files may take."""

EMPTY = pickle.dumps({}, 2)
HUGE = 400_000_000


def read(path):
    """Reads a file; returns its arrays, or the message."""
    tracemalloc.start()
    try:
        return files.read(path).arrays
    except UserError as error:
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST, peak


def opcodes(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def nested_tuples(depth, opcode):
    """Each holds the one before it, once (\\x85) or twice (2\\x86)."""
    return b")" + opcode * depth


LIST = b"]q\x00(" + b"K\x01" * 10_000 + b"e0"
"""In the memo, not on the stack."""

PAIRS = b"".join(b"M" + struct.pack("<H", i) + b"K\x01\x86" for i in range(2000))

PICKLES = {
    "memo index": opcodes(b"}r" + struct.pack("<I", HUGE)),
    "memo index as text": opcodes(b"}p400000000\n"),
    "bytes": opcodes(b"\x8e" + struct.pack("<Q", 1 << 40)),
    "text": opcodes(b"\x8d" + struct.pack("<Q", 1 << 40)),
    "bytearray": opcodes(b"\x96" + struct.pack("<Q", 1 << 40)),
    "frame": opcodes(b"\x95" + struct.pack("<Q", 1 << 40)),
    "integer": opcodes(b"\x8b" + struct.pack("<i", 1 << 30)),
    "digits": opcodes(b"I" + b"9" * 100_000 + b"\n"),
    "a key that takes for ever to hash": opcodes(
        b"}", nested_tuples(80, b"2\x86"), b"K\x01s"
    ),
    "a key too deep to hash": opcodes(b"}", nested_tuples(60_000, b"\x85"), b"K\x01s"),
    "a set of such": opcodes(b"\x8f(", nested_tuples(80, b"2\x86"), b"\x90"),
    "copies of a list": opcodes(LIST, (name("torch", "Size") + b"h\x00\x85R") * 2_000),
    "copies of arguments": opcodes(
        b"(" + b"K\x01" * 10_000 + b"tq\x000",
        (name("numpy", "dtype") + b"h\x00R") * 2_000,
    ),
    "copies of a dictionary": opcodes(
        b"]q\x00(" + PAIRS + b"e0(",
        (name("collections", "OrderedDict") + b"h\x00\x85R") * 2_000,
        b"t",
    ),
    "a dictionary as attributes": opcodes(
        name("collections", "OrderedDict"), b")Rq\x00}X\x01\x00\x00\x00xh\x00sb"
    ),
    "a storage's method": opcodes(b"(X\x07\x00\x00\x00storage", b"tQ"),
    "a call of a storage": opcodes(name("torch", "FloatStorage"), b")R"),
    "no stack": opcodes(b"000"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", PICKLES)
def test_pickles(tmp_path, case, legacy):
    path = tmp_path / "w.pth"
    torch_writer.write_pickle(path, PICKLES[case], legacy=legacy)
    assert "w.pth" in read(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_memo_index_costs_nothing(tmp_path, legacy):
    """It is a legal pickle, if an odd one: its tensors are read."""
    arrays = {"a": np.arange(3, dtype=np.float32)}
    path = torch_writer.write(tmp_path / "w.pth", arrays, legacy=legacy)
    content = path.read_bytes()
    assert b"}q\x00" in content
    if legacy:
        path.write_bytes(content.replace(b"}q\x00", b"}r\x00\x84\xd7\x17", 1))
    else:
        with zipfile.ZipFile(path) as archive:
            parts = {n: archive.read(n) for n in archive.namelist()}
        key = "archive/data.pkl"
        parts[key] = parts[key].replace(b"}q\x00", b"}r\x00\x84\xd7\x17", 1)
        write_zip(path, parts)
    np.testing.assert_array_equal(read(path)["a"], arrays["a"])


def test_more_steps_than_any_network_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_STEPS", 50)
    arrays = {str(index): np.ones(2, np.float32) for index in range(9)}
    path = torch_writer.write(tmp_path / "w.pth", arrays)
    assert "more than 50 steps" in read(path)


def test_two_types_of_one_storage(tmp_path):
    path = torch_writer.write(
        tmp_path / "w.pth", {"a": np.ones(2, np.float32), "b": np.ones(2, np.int64)}
    )
    with zipfile.ZipFile(path) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    key = "archive/data.pkl"
    second = b"X\x01\x00\x00\x001"
    assert parts[key].count(second) == 1
    parts[key] = parts[key].replace(second, b"X\x01\x00\x00\x000")
    write_zip(path, parts)
    assert "one storage with two types" in read(path)


def write_zip(path, parts, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for member, content in parts.items():
            archive.writestr(member, content)


def npy(shape, content=b"", descr="<f4"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    head = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


@pytest.mark.parametrize("member", ["x.npy", "archive/data.pkl"])
def test_an_archive_that_unpacks_to_a_thousandfold(tmp_path, member):
    path = tmp_path / "w.zip"
    parts = {member: bytes(80 << 20), "archive/data/0": b""}
    write_zip(path, parts, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    message = "would unpack to 83,886,080 bytes"
    assert message in read(path)
    np.savez_compressed(path.with_suffix(".npz"), x=np.zeros(20 << 20, np.float32))
    assert "would unpack to 83,886" in read(path.with_suffix(".npz"))


def test_many_zeros_are_no_bomb(tmp_path):
    np.savez_compressed(tmp_path / "w.npz", x=np.zeros((1000, 1000), np.float32))
    assert read(tmp_path / "w.npz")["x"].shape == (1000, 1000)


def test_a_member_that_is_longer_than_it_says(tmp_path):
    path = tmp_path / "w.npz"
    write_zip(path, {"x.npy": bytes(200 << 20)}, zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    size = struct.pack("<I", 200 << 20)
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, struct.pack("<I", 1000)))
    assert "cut off or damaged" in read(path)


def test_other_compressions(tmp_path):
    write_zip(tmp_path / "w.npz", {"x.npy": npy((1,), b"0000")}, zipfile.ZIP_BZIP2)
    assert "another method than deflate" in read(tmp_path / "w.npz")


def test_a_version_that_no_program_reads(tmp_path):
    for member in ("x.npy", "archive/data.pkl"):
        path = tmp_path / "w.zip"
        write_zip(path, {member: EMPTY})
        content = path.read_bytes()
        place = content.index(b"PK\x01\x02") + 6
        path.write_bytes(content[:place] + bytes([97]) + content[place + 1 :])
        assert "zip file version 9.7" in read(path)


NPY = {
    "nested header": npy("(" * 5000),
    "nested in depth": npy("-" * 9000 + "1"),
    "longer than it is": npy((1 << 40,)),
    "empty and huge": npy((0, 1 << 62, 1 << 62)),
    "a hundred axes": npy((1,) * 100, b"0000"),
    "text": npy((1,), b"0000", "<U1"),
    "records": npy((1,), b"0000", "V4"),
    "times": npy((1,), b"00000000", "<M8[s]"),
    "complex": npy((1,), b"00000000", "<c8"),
    "no type": npy((1,), b"0000", "<<"),
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "version": b"\x93NUMPY\x09\x00\xff\xff",
    "nothing": b"",
}


@pytest.mark.parametrize("case", NPY)
def test_npy(tmp_path, case):
    write_zip(tmp_path / "w.npz", {"x.npy": NPY[case]})
    assert "w.npz" in read(tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("shape", "count"),
    [((1,) * 100, 1), ((0, 1 << 40, 1 << 40), 0), ((1 << 40,), 1), ((0, 1 << 62), 0)],
)
def test_safetensors(tmp_path, shape, count):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * count]}
    header = json.dumps({"x": entry}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * count))
    assert "cut off or damaged" in read(path)


def test_views_that_are_copied_again_and_again(tmp_path):
    """A thousand transposed views of one storage of 4 MB, by editing strides."""
    whole = np.ones((1000, 1000), np.float32)
    arrays = {str(index): whole for index in range(1000)}
    path = torch_writer.write(tmp_path / "w.pth", arrays)
    with zipfile.ZipFile(path) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    key = "archive/data.pkl"
    straight, turned = b"M\xe8\x03K\x01\x86", b"K\x01M\xe8\x03\x86"
    assert straight in parts[key]
    parts[key] = parts[key].replace(straight, turned)
    write_zip(path, parts)
    assert "its tensors would take 4,000,000,000 bytes" in read(path)


def test_names_that_cannot_be_printed(tmp_path):
    for text in ("a\x1b[2J", "a\nerror: b", "\ud800", "x" * 5000):
        pickled = io.BytesIO()
        pickle.dump({text: 1}, pickled, 2)
        path = tmp_path / "w.pth"
        torch_writer.write_pickle(path, pickled.getvalue(), legacy=False)
        assert read(path).isprintable()
