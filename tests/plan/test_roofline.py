import pytest

from reid_jax.benchmark.peaks import Peak
from reid_jax.plan.roofline import bound
from reid_jax.plan.topologies import CHIPS

V5E = {"chip": CHIPS["v5e"], "peak": Peak(197.0, "here")}


def test_the_busiest_resource_binds():
    """By hand: 197 TFLOP/s, 819 GB/s, 200 GB/s one way of a TPU v5e."""
    found = bound(flops=1.97e12, hbm_bytes=8.19e9, link_bytes=1e9, **V5E)
    assert found.matrix == pytest.approx(0.010)
    assert found.hbm == pytest.approx(0.010)
    assert found.links == pytest.approx(0.005)
    assert found.share_of_links == pytest.approx(1 / 3)
    more = bound(flops=1.97e12, hbm_bytes=16.38e9, link_bytes=1e9, **V5E)
    assert (more.binds, more.seconds) == ("hbm", pytest.approx(0.020))
    alone = bound(flops=0, hbm_bytes=0, link_bytes=4e9, **V5E)
    assert (alone.binds, alone.seconds) == ("links", pytest.approx(0.020))
    nothing = bound(flops=0, hbm_bytes=0, link_bytes=0, **V5E)
    assert (nothing.seconds, nothing.share_of_links) == (0, 0)
