"""Peak arithmetic of devices, which MFU is measured against."""

from __future__ import annotations

import dataclasses

_HOPPER = "NVIDIA H100 data sheet, H100 SXM, half of the figure with sparsity"
_HOPPER_PCIE = "NVIDIA H100 data sheet, H100 PCIe, half of the figure with sparsity"
_H200 = "NVIDIA H200 data sheet, H200 SXM, half of the figure with sparsity"
_AMPERE = "NVIDIA A100 data sheet, without sparsity"
_CLOUD = "Google Cloud documentation, {} system architecture, per chip"


@dataclasses.dataclass(frozen=True)
class Peak:
    """What a device could do at most.

    Attributes:
      tflops: 10^12 dense bf16 multiplications and additions per second.
      source: who says so.
    """

    tflops: float
    source: str


# By `jax.Device.device_kind`. A JAX device of the TPUs here is a whole chip.
PEAKS = {
    "NVIDIA H200": Peak(989.0, _H200),
    "NVIDIA H100 80GB HBM3": Peak(989.0, _HOPPER),
    "NVIDIA H100 PCIe": Peak(756.0, _HOPPER_PCIE),
    "NVIDIA A100-SXM4-40GB": Peak(312.0, _AMPERE),
    "NVIDIA A100-SXM4-80GB": Peak(312.0, _AMPERE),
    "NVIDIA A100-PCIE-40GB": Peak(312.0, _AMPERE),
    "NVIDIA A100 80GB PCIe": Peak(312.0, _AMPERE),
    "TPU v4": Peak(275.0, _CLOUD.format("TPU v4")),
    "TPU v5 lite": Peak(197.0, _CLOUD.format("TPU v5e")),
    "TPU v5e": Peak(197.0, _CLOUD.format("TPU v5e")),
    "TPU v5": Peak(459.0, _CLOUD.format("TPU v5p")),
    "TPU v5p": Peak(459.0, _CLOUD.format("TPU v5p")),
    "TPU v6 lite": Peak(918.0, _CLOUD.format("TPU v6e")),
    "TPU v6e": Peak(918.0, _CLOUD.format("TPU v6e")),
}


def find_peak(device_kind: str, given_tflops: float | None = None) -> Peak | None:
    """The peak of a kind of device; None if nobody says.

    Args:
      device_kind: as `jax.Device.device_kind`.
      given_tflops: the user's own figure, which goes before the table's.
    """
    if given_tflops is not None:
        return Peak(given_tflops, "--peak_tflops")
    return PEAKS.get(device_kind)


def mfu(
    flops: int | None, *, seconds: float, devices: int, peak: Peak | None
) -> float | None:
    """Model FLOPs utilisation: the share of the devices' peak that a call reaches.

    Args:
      flops: of one call, over all devices; None if they could not be counted.
      seconds: of one call.
      devices: that work on it.
      peak: of one of them; None if it is not known.
    """
    if peak is None or flops is None:
        return None
    return flops / (seconds * devices * peak.tflops * 1e12)
