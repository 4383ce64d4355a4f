"""What a checkpoint says of itself, for tests that save one by hand."""


def meta(**fields):
    """All that there must be, with some fields of one's own."""
    found = {"stage": "train", "stage_index": 0, "step": 1, "global_step": 1}
    found |= {"method": "reid_jax.models.baseline", "num_classes": 5}
    return found | {"process_count": 1, "config": {}} | fields
