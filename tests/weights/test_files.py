"""Reading weight files: every format, and everything that is none."""

import collections
import io
import os
import pathlib
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from reid_jax.errors import UserError
from reid_jax.runtime.checkpoint import Checkpoints
from reid_jax.runtime.state import TrainState
from reid_jax.weights import damage, files, folders
from tests.metas import meta
from tests.weights import torch_writer

DATA = pathlib.Path(__file__).parent / "data"
FORMATS = ("zip", "legacy")


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        array = np.asarray(array)
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def counted(*shape, start=0, dtype=np.float32):
    return np.arange(start, start + np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("form", FORMATS)
def test_pytorchs_own_state_dict(form):
    file = files.read(DATA / f"plain_{form}.pth")
    assert file.convention == files.PYTORCH
    assert_same(
        file.arrays,
        {
            "0.weight": counted(4, 3, 2, 2),
            "0.bias": counted(4, start=100),
            "1.weight": counted(4, start=200),
            "1.bias": counted(4, start=300),
            "1.running_mean": counted(4, start=400),
            "1.running_var": counted(4, start=500),
            "1.num_batches_tracked": np.int64(600),
        },
    )


@pytest.mark.parametrize("form", FORMATS)
def test_pytorchs_own_checkpoint_with_views_and_types(form):
    whole = counted(4, 6)
    wanted = {
        "whole": whole,
        "transposed": whole.T,
        "slice": whole[1:3, ::2],
        "half": counted(5, dtype=np.float16),
        "brain": counted(5, dtype=jnp.bfloat16),
        "double": counted(5, dtype=np.float64),
        "long": counted(3, dtype=np.int64),
        "flags": np.array([True, False]),
        "scalar": np.float32(4),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": counted(3, start=7),
    }
    got = files.read(DATA / f"strange_{form}.pth").arrays
    assert_same(got, {f"module.{name}": array for name, array in wanted.items()})


@pytest.mark.parametrize(
    "options", [{}, {"legacy": True}, {"legacy": True, "ancient": True}]
)
@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_wrapped_state_dicts_of_all_ages(tmp_path, options, key):
    arrays = {"a.weight": counted(2, 3), "b": counted(4, dtype=np.int64)}
    content = collections.OrderedDict(arrays)
    if key is not None:
        content = {"epoch": 3, key: content, "lr": 0.1, "loss": counted(1)}
    path = torch_writer.write(tmp_path / "w.pth.tar", content, **options)
    assert_same(files.read(path).arrays, arrays)


@pytest.mark.parametrize("form", FORMATS)
def test_what_trainings_keep_beside_the_state_dict(form):
    """torchreid's accuracy, counters of a schedule, a command's options: by PyTorch."""
    file = files.read(DATA / f"beside_{form}.pth")
    assert_same(file.arrays, {"0.weight": counted(3, 2), "0.bias": counted(3)})


@pytest.mark.parametrize("options", [{}, {"legacy": True}])
@pytest.mark.parametrize("protocol", [2, 4])
def test_numpys_numbers(tmp_path, options, protocol):
    arrays = {"a.weight": counted(2, 3)}
    content = {"rank1": np.float64(0.9), "epoch": np.int32(4), "state_dict": arrays}
    path = torch_writer.write(
        tmp_path / "w.pth.tar-60", content, protocol=protocol, **options
    )
    assert_same(files.read(path).arrays, arrays)


@pytest.mark.parametrize(
    "text", ["numpy.core.multiarray _reconstruct", "numpy ndarray", "_codecs decode"]
)
def test_no_more_of_numpy_than_its_numbers(tmp_path, text):
    pickled = b"\x80\x02c" + text.replace(" ", "\n").encode() + b"\n."
    path = torch_writer.write_pickle(tmp_path / "w.pth", pickled, legacy=False)
    with pytest.raises(UserError, match="which is neither a tensor nor a dictionary"):
        files.read(path)


def test_a_teacher_before_its_student(tmp_path):
    pair = {name: {"a": np.full(2, i, np.float32)} for i, name in enumerate("ts")}
    path = torch_writer.write(
        tmp_path / "w.pth", {"student": pair["s"], "teacher": pair["t"], "epoch": 1}
    )
    assert_same(files.read(path).arrays, pair["t"])


def test_a_big_endian_machines_file(tmp_path):
    arrays = {"a.weight": counted(2, 3, start=1)}
    path = torch_writer.write(tmp_path / "w.pth", arrays)
    torch_writer.swap_bytes(path)
    assert_same(files.read(path).arrays, arrays)


def test_no_state_dict_names_what_there_is(tmp_path):
    path = torch_writer.write(tmp_path / "w.pth", {"epoch": 3, "net": {"x": 1}})
    with pytest.raises(UserError, match=r"no state dict; its entries are: epoch, net"):
        files.read(path)
    path = torch_writer.write(tmp_path / "v.pth", [counted(2)])
    with pytest.raises(UserError, match="no state dict"):
        files.read(path)


def test_safetensors(tmp_path):
    arrays = {
        "a.weight": counted(2, 3),
        "half": counted(4, dtype=np.float16),
        "scalar": np.float32(3),
    }
    path = tmp_path / "w.safetensors"
    files.write_safetensors(path, arrays)
    assert_same(files.read(path).arrays, arrays)
    assert_same(safetensors.numpy.load_file(path), arrays)
    renamed = path.rename(tmp_path / "w.bin")  # told by content
    assert_same(files.read(renamed).arrays, arrays)


def test_safetensors_bfloat16(tmp_path):
    header = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    values = np.array([1.5, -2], jnp.bfloat16)
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    assert_same(files.read(path).arrays, {"x": values})
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"I16" '))
    assert files.read(path).arrays["x"].dtype == np.int16
    path.write_bytes(path.read_bytes().replace(b'"I16" ', b'"U16" '))
    with pytest.raises(UserError, match="x is of type U16, which is not supported"):
        files.read(path)


def test_npz_and_its_objects(tmp_path):
    arrays = {"Transformer/encoder_norm/scale": counted(3), "cls": counted(1, 1, 3)}
    np.savez(tmp_path / "w.npz", **arrays)
    file = files.read(tmp_path / "w.npz")
    assert file.convention == files.GOOGLE
    assert_same(file.arrays, arrays)
    np.savez(tmp_path / "o.npz", x=np.array([{}], object))
    with pytest.raises(UserError, match=r"x\.npy holds other things than numbers"):
        files.read(tmp_path / "o.npz")


def test_orbax_conversion_export_and_run(tmp_path, caplog):
    params = {"backbone": {"norm": {"scale": counted(3)}}, "head": counted(2)}
    statistics = {"backbone": {"bn": {"mean": counted(3, start=5)}}}
    wanted = {
        "params/backbone/norm/scale": counted(3),
        "params/head": counted(2),
        "batch_stats/backbone/bn/mean": counted(3, start=5),
    }
    folders.write(tmp_path / "converted", {"params": params, "batch_stats": statistics})
    (tmp_path / "export").mkdir()
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        tree = {"params": params, "batch_stats": statistics}
        writer.save(tmp_path / "export" / "params", tree)
    run = Checkpoints(str(tmp_path / "run"))
    state = TrainState(
        step=np.int32(1),
        rng=np.zeros(2, np.uint32),
        params=params,
        collections={"batch_stats": statistics},
        opt_state={"trace": params},
    )
    run.save_best(1, state, meta())
    run.close()
    for name in ("converted", "export", "run"):
        file = files.read(tmp_path / name)
        assert file.convention == files.OURS
        assert_same(file.arrays, wanted)
    assert "Metadata file does not exist" not in caplog.text


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        files.read(tmp_path)
    (tmp_path / "_METADATA").write_text("{}")
    with pytest.raises(UserError, match="damaged, or no checkpoint"):
        files.read(tmp_path)


# Bad input: one message each, and nothing of a file is ever run.


class Attack:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Evaluation(Attack):
    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("attack", [Attack, Evaluation])
def test_code_in_a_pickle_is_refused_by_name(tmp_path, legacy, protocol, attack):
    marker = tmp_path / "marker"
    pickled = pickle.dumps({"state_dict": attack(marker)}, protocol)
    path = torch_writer.write_pickle(tmp_path / "w.pth", pickled, legacy=legacy)
    name = "system" if attack is Attack else r"(builtins|__builtin__)\.eval"
    with pytest.raises(UserError, match=f"asks for .*{name}.*Nothing of it was run"):
        files.read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    ["collections OrderedDict.__init__", "torch._utils _rebuild_sparse", "os path"],
)
def test_only_exact_names_are_known(tmp_path, name):
    module, attribute = name.split()
    stream = io.BytesIO(b"\x80\x04")
    stream.seek(2)
    for text in (module, attribute):
        stream.write(b"\x8c" + bytes([len(text)]) + text.encode())
    stream.write(b"\x93.")  # STACK_GLOBAL, STOP
    path = torch_writer.write_pickle(
        tmp_path / "w.pth", stream.getvalue(), legacy=False
    )
    with pytest.raises(UserError, match="which is neither a tensor nor a dictionary"):
        files.read(path)


def test_code_in_the_older_formats_first_pickles(tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "w.pth"
    path.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(Attack(marker), 2)
    )
    with pytest.raises(UserError, match=r"asks for .*system"):
        files.read(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["plain_zip", "plain_legacy"])
def test_a_file_cut_off_anywhere(tmp_path, name):
    whole = (DATA / f"{name}.pth").read_bytes()
    path = tmp_path / "w.pth"
    for length in (*range(16, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut off or damaged"):
            files.read(path)


@pytest.mark.parametrize("name", ["strange_zip", "strange_legacy"])
def test_damage_is_never_a_traceback(tmp_path, name):
    whole = (DATA / f"{name}.pth").read_bytes()
    path = tmp_path / "w.pth"
    rng = np.random.default_rng(0)
    failures = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(16, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            files.read(path)
        except UserError:
            failures += 1
    assert failures > 50


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_other_formats_cut_off(tmp_path, form):
    path = tmp_path / f"w.{form}"
    if form == "npz":
        np.savez(path, x=counted(100))
    else:
        files.write_safetensors(path, {"x": counted(100)})
    whole = path.read_bytes()
    for length in (20, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut off or damaged"):
            files.read(path)


def test_a_tensor_that_reaches_beyond_its_storage(tmp_path):
    path = torch_writer.write(tmp_path / "w.pth", {"x": counted(4)})
    for shape, stride in ((b"K\x05", b"K\x01"), (b"K\x04", b"K\x02")):
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        pickled = parts["archive/data.pkl"]
        # Shape (4,) and strides (1,), each a tuple of one small integer.
        assert pickled.count(b"K\x04\x85") == pickled.count(b"K\x01\x85") == 1
        pickled = pickled.replace(b"K\x04\x85", shape + b"\x85")
        pickled = pickled.replace(b"K\x01\x85", stride + b"\x85")
        bad = tmp_path / "bad.pth"
        with zipfile.ZipFile(bad, "w") as archive:
            for name, content in (parts | {"archive/data.pkl": pickled}).items():
                archive.writestr(name, content)
        with pytest.raises(UserError, match="reaches beyond its storage"):
            files.read(bad)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"layer1 0.5 0.25\n", "is a text file"),
        (b"weights {x: 1}\n", "text file|not safetensors|damaged"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "a Git LFS pointer"),
        (pickle.dumps({"x": 1}), "a pickle that torch.save did not write"),
        (bytes(range(160, 256)), "of an unknown format"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
def test_files_that_are_no_weights(tmp_path, content, message, suffix):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        files.read(path)


def test_other_archives_and_programs(tmp_path):
    path = tmp_path / "w.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.pth", b"x")
    with pytest.raises(UserError, match=r"zip archive of w\.pth.* unpack it"):
        files.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"x")
        archive.writestr("net/constants.pkl", b"x")
    with pytest.raises(UserError, match="TorchScript program; save its state_dict"):
        files.read(path)


def test_neither_a_file_nor_a_folder(tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        files.read(tmp_path / "w.pth")


def test_a_folder_that_claims_more_than_it_holds(tmp_path, monkeypatch):
    folders.write(tmp_path / "w", {"params": {"backbone": {"x": counted(30)}}})
    monkeypatch.setattr(damage, "capacity", lambda size: 119)
    with pytest.raises(UserError, match="bytes that claim to hold 120"):
        files.read(tmp_path / "w")


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read weights: .*nothing\.pth"):
        files.read(tmp_path / "nothing.pth")
