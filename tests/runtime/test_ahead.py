"""One is given out when the next is started, and no more than two are held."""

import pytest

from reid_jax.runtime.ahead import one_ahead


@pytest.mark.parametrize(
    "order",
    ["", "start 0, wait 0", "start 0, start 1, wait 0, start 2, wait 1, wait 2"],
)
def test_the_next_is_started_before_one_is_waited_for(order):
    happened = []
    started = (happened.append(f"start {i}") or i for i in range(order.count("start")))
    for one in one_ahead(started):
        happened.append(f"wait {one}")
    assert ", ".join(happened) == order
