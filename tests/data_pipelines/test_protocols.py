"""Protocols by name."""

import pytest

from data_pipelines import protocols
from reid_jax.errors import UserError


@pytest.mark.parametrize("name", ["market1501", "grocery", "synthetic/holistic_demo"])
def test_a_data_set_is_evaluated_like_market_on_itself(name):
    made = protocols.protocol(name)
    assert made == protocols.Protocol(
        name=name,
        dataset=name,
        train_dataset=name,
        camera_filter=True,
        ranks=(1, 5, 10, 20),
        ap="rectangle",
        query_split="query",
        gallery_split="gallery",
    )


def test_partial_sets_report_rank_3():
    assert protocols.protocol("synthetic/partial_small").ranks == (1, 3, 5, 10)


def test_an_empty_name_is_a_user_error():
    with pytest.raises(UserError, match="empty"):
        protocols.protocol("")
