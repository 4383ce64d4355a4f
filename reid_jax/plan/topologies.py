"""Chips and slices of them that nobody needs to have: what compilers compile for.

`v5e:4x4` is a slice of sixteen TPU v5e, `h200:8` a machine with eight H200. The real
compilers answer for them: libtpu's, and that of JAX's CUDA plugin.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies

from reid_jax.errors import UserError

# JAX's default; XLA_PYTHON_CLIENT_MEM_FRACTION changes it (JAX's documentation, "GPU
# memory allocation").
_SHARE_OF_GPU = 0.75
_CLOUD = "Google Cloud documentation, TPU {} system architecture, per chip"


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a program has of a chip.

    Attributes:
      platform: "tpu" or "cuda".
      kind: as `jax.Device.device_kind`.
      hbm_bytes: of memory.
      hbm_rate: bytes per second between the chip and its memory.
      link_rate: bytes per second that a chip sends to others, over all its links: half
        of what is published for both directions.
      most: chips that links of this kind connect.
      source: of these figures.
      gpu: fields of a GPU that its compiler reads.
    """

    platform: str
    kind: str
    hbm_bytes: int
    hbm_rate: float
    link_rate: float
    most: int
    source: str
    gpu: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def usable_bytes(self) -> int:
        """What a run has of the memory: all of a TPU's, JAX's share of a GPU's."""
        share = _SHARE_OF_GPU if self.platform == "cuda" else 1
        return int(share * self.hbm_bytes)


def _tpu(kind: str, name: str, gib: int, *rates: float, most: int) -> Chip:
    hbm, links = rates
    source = _CLOUD.format(name)
    return Chip("tpu", kind, gib << 30, hbm, links / 2, most, source)


def _gpu(kind: str, gb: int, *rates: float, **fields: Any) -> Chip:
    hbm, links = rates
    return Chip(
        "cuda", kind, gb * 10**9, hbm, links / 2, 8, f"{kind} data sheet", fields
    )


_AMPERE = {
    "major": 8,
    "core_count": 108,
    "fpus_per_core": 64,
    "clock_rate_ghz": 1.41,
    "l2_cache_size": 40 << 20,
    "shared_memory_per_core": 164 << 10,
    "shared_memory_per_block_optin": 163 << 10,
}
_HOPPER = {
    "major": 9,
    "core_count": 132,
    "fpus_per_core": 128,
    "clock_rate_ghz": 1.98,
    "l2_cache_size": 50 << 20,
    "shared_memory_per_core": 228 << 10,
    "shared_memory_per_block_optin": 227 << 10,
}

# Bytes per second of memory, and of links in both directions together.
CHIPS = {
    "v4": _tpu("TPU v4", "v4", 32, 1228e9, 600e9, most=4096),
    "v5e": _tpu("TPU v5 lite", "v5e", 16, 819e9, 400e9, most=256),
    "v5p": _tpu("TPU v5", "v5p", 95, 2765e9, 1200e9, most=6144),
    "v6e": _tpu("TPU v6 lite", "v6e", 32, 1638e9, 800e9, most=256),
    "a100-40": _gpu("NVIDIA A100-SXM4-40GB", 40, 1555e9, 600e9, **_AMPERE),
    "a100-80": _gpu("NVIDIA A100-SXM4-80GB", 80, 2039e9, 600e9, **_AMPERE),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 80, 3350e9, 900e9, **_HOPPER),
    "h200": _gpu("NVIDIA H200", 141, 4800e9, 900e9, **_HOPPER),
}

_TARGET = """gpu_device_info {{
threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
registers_per_core_limit: 65536 registers_per_block_limit: 65536
shared_memory_per_block: 49152 shared_memory_per_core: {shared_memory_per_core}
shared_memory_per_block_optin: {shared_memory_per_block_optin}
core_count: {core_count} fpus_per_core: {fpus_per_core} clock_rate_ghz: {clock_rate_ghz}
l2_cache_size: {l2_cache_size} memory_bandwidth: {memory_bandwidth}
device_memory_size: {device_memory_size} cuda_compute_capability {{ major: {major} }} }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 }} device_description_str: "{name}"
"""
"""What the compiler would ask a GPU: a `GpuTargetConfigProto` of XLA's."""

_COMPILERS = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda13"}

COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "tpu": {},
    # Autotuning runs kernels, and Triton's products need it for their tiles.
    "cuda": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that are compiled for.

    Attributes:
      name: such as "v5e:4x4".
      kind: before its colon, of `CHIPS`.
      devices: all of them, for a mesh; they hold no arrays.
    """

    name: str
    kind: str
    devices: tuple[Any, ...]

    @property
    def chip(self) -> Chip:
        """Each of them."""
        return CHIPS[self.kind]


def find(name: str) -> Topology:
    """The topology of a name.

    Raises:
      UserError: no such kind of chip or arrangement, no compiler for it installed, or
        another process has libtpu.
    """
    kind, _, arrangement = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"--topology={name}: known are {_known()}")
    if CHIPS[kind].platform == "tpu":
        return Topology(name, kind, _tpu_devices(name, kind, arrangement))
    return Topology(name, kind, _gpu_devices(name, kind, arrangement))


def has_compiler(platform: str) -> bool:
    """Whether that of a chip's platform is installed."""
    try:
        return importlib.util.find_spec(_COMPILERS[platform]) is not None
    except ModuleNotFoundError:  # no plugin of JAX's at all
        return False


def _known() -> str:
    tpus, gpus = (
        ", ".join(name for name, chip in CHIPS.items() if chip.platform == platform)
        for platform in ("tpu", "cuda")
    )
    return (
        f"slices of TPUs ({tpus}), such as v5e:2x2, v5e:16x16 or v5p:2x2x1, and one to "
        f"eight GPUs ({gpus}), such as h200:8"
    )


def _tpu_devices(name: str, kind: str, arrangement: str) -> tuple[Any, ...]:
    axes = 2 if kind in ("v5e", "v6e") else 3
    if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{axes - 1}}}", arrangement):
        raise UserError(f"--topology={name}: known are {_known()}")
    sides = [int(side) for side in arrangement.split("x")]
    if math.prod(sides) > CHIPS[kind].most:
        raise UserError(f"--topology={name}: a pod has {CHIPS[kind].most} chips")
    if not has_compiler("tpu"):
        raise UserError(
            f"--topology={name} needs the compiler for TPUs: "
            f'pip install "jax[tpu]=={jax.__version__}"'
        )
    # A machine of 2 x 2 chips is libtpu's default; a smaller slice is part of one.
    host = [min(side, 2) for side in sides[:2]]
    chosen = {"chips_per_host_bounds": (*host, 1)}
    if kind == "v4":  # both cores of a chip as one device, as a run sees it
        chosen["chip_config_name"] = "megacore"
    # Else libtpu asks a server for what machine this is, which only a TPU VM has.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    return _asked(name, topology_name=name, platform="tpu", **chosen)


def _gpu_devices(name: str, kind: str, arrangement: str) -> tuple[Any, ...]:
    if not re.fullmatch("[1-8]", arrangement):
        raise UserError(f"--topology={name}: known are {_known()}")
    if not has_compiler("cuda"):
        raise UserError(f"--topology={name} {_needs_cuda()}")
    chip = CHIPS[kind]
    target = _TARGET.format(
        **chip.gpu,
        name=chip.kind,
        memory_bandwidth=int(chip.hbm_rate),
        device_memory_size=chip.hbm_bytes,
    )
    topology = f"1x1x{arrangement}"  # of one machine of one partition
    chosen = {"target_config": target, "topology": topology}
    return _asked(name, topology_name=kind, platform="cuda", **chosen)


def _needs_cuda() -> str:
    version = jax.__version__
    return (
        "needs the compiler for NVIDIA GPUs, of which nothing else has to be there: "
        f"pip install --no-deps jax-cuda13-plugin=={version} "
        f'jax-cuda13-pjrt=={version} "nvidia-cuda-nvcc==13.*" "nvidia-nvvm==13.*"'
    )


def _asked(name: str, **arguments: Any) -> tuple[Any, ...]:
    with_errors(name, jax.devices)  # JAX finds its plugins when it starts
    found = with_errors(name, lambda: topologies.get_topology_desc(**arguments).devices)
    return tuple(found)


def with_errors(name: str, call: Callable[[], Any]) -> Any:
    """`call()`, with what a compiler's absence or lock raises as a UserError.

    Args:
      name: of the topology.
      call: asks its compiler.
    """
    try:
        return call()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        first = text.splitlines()[0]
        if "lockfile" in text:
            raise UserError(
                f"--topology={name}: another process is using libtpu, which serves one "
                "at a time (also a training on this machine's TPU): wait for it to end"
            ) from error
        if "No PTX compilation provider" in text or "libdevice" in text:
            raise UserError(
                f"--topology={name}: there is no ptxas, which assembles what was "
                'compiled: pip install --no-deps "nvidia-cuda-nvcc==13.*" '
                '"nvidia-nvvm==13.*", or put that of a CUDA 13 on the PATH'
            ) from error
        if "INVALID_ARGUMENT" in first and "opology" in text:
            raise UserError(f"--topology={name}: {first}; known are {_known()}") from (
                error
            )
        raise
