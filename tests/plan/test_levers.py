import dataclasses

from configs import aaformer, sanet
from reid_jax import experiment
from reid_jax.plan.levers import levers


def _stage(config, **changes):
    method = experiment.build_method(config, num_classes=2)
    stage = experiment.build_stages(config, method)[0]
    return dataclasses.replace(stage, **changes)


def test_what_leaves_results_alone_is_tried_first():
    config = aaformer.get_config("demo")
    split, again = {"shard_parameters": True}, {"model.remat": True}
    half = {"model.dtype": "bfloat16"}
    everything = split | again | half
    parts = [{"stages.train.micro_batches": count} for count in (2, 4, 8)]
    assert list(levers(config, _stage(config), devices=4)) == [
        *(split, again, split | again, half, everything),
        *(fields for part in parts for fields in (part, everything | part)),
    ]


def test_what_is_done_already_is_not_tried():
    config = aaformer.get_config("demo")
    config.model.remat, config.model.dtype = True, "bfloat16"
    stage = _stage(config, micro_batches=4)
    # One device has nothing to split parameters over.
    assert list(levers(config, stage, devices=1)) == [{"stages.train.micro_batches": 8}]
    assert not list(levers(config, _stage(config, micro_batches=8), devices=1))


def test_parts_are_whole_identities_that_the_devices_divide():
    config = sanet.get_config("demo")
    config.model.remat, config.model.dtype = True, "bfloat16"
    stage = _stage(config, identities=6, images_per_identity=4)
    split, part = {"shard_parameters": True}, {"stages.train.micro_batches": 2}
    found = list(levers(config, stage, devices=4))
    assert found == [split, part, split | part]
    assert list(levers(config, stage, devices=8)) == [split]
    # An image has to find another person in its part.
    stage = _stage(config, identities=2, images_per_identity=8)
    assert list(levers(config, stage, devices=1)) == []
