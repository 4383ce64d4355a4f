"""Peaks of devices and the arithmetic of MFU."""

import pytest

from reid_jax.benchmark.peaks import PEAKS, Peak, find_peak, mfu


def test_mfu_is_the_share_of_all_devices_peak():
    # 4 devices of 100 TFLOP/s work 0.5 s: 200 TFLOP could be done, 50 are.
    peak = Peak(100.0, "made up")
    assert mfu(50 * 10**12, seconds=0.5, devices=4, peak=peak) == pytest.approx(0.25)


def test_a_published_figure():
    """ViT-B/16 on 8 A100, of NVIDIA's JAX-Toolbox: 7,200 images/s, 29 % of the peak.

    105.4 GFLOPs of training per image, by L (24 n d^2 + 4 n^2 d) and the patches, x 3.
    """
    tokens, width, depth = 197, 768, 12
    forward = depth * (24 * tokens * width**2 + 4 * tokens**2 * width)
    training = 3 * (forward + 2 * 196 * width * 768)
    figure = mfu(
        512 * 8 * training,
        seconds=512 * 8 / 7200,
        devices=8,
        peak=find_peak("NVIDIA A100-SXM4-80GB"),
    )
    assert figure == pytest.approx(0.29, abs=0.02)


def test_unknown_devices_have_no_mfu():
    assert find_peak("cpu") is None
    assert mfu(10**12, seconds=1.0, devices=1, peak=None) is None
    assert mfu(None, seconds=1.0, devices=1, peak=Peak(1.0, "")) is None


def test_the_users_peak_goes_first():
    assert find_peak("TPU v4").tflops == 275
    assert find_peak("TPU v4", 200.0) == Peak(200.0, "--peak_tflops")
    assert find_peak("cpu", 1.5).tflops == 1.5


@pytest.mark.parametrize("kind", PEAKS)
def test_every_peak_has_a_source(kind):
    assert PEAKS[kind].source
    assert 100 < PEAKS[kind].tflops < 1000
