"""A config file of `tests/toy_method.py`, for runs that are started by a script."""

from configs import common


def get_config(arg=None):
    config = common.base("toy", common.parse(arg))
    config.method = "tests.toy_method"
    config.model.update(width=6, top_k=3, bank_batches=3, explode_at=-1.0)
    config.data.dataset = "tiny"
    config.data.height, config.data.width = 32, 16
    config.augment.pad_crop.pad = 2
    config.evaluation.batch_size = 8
    config.evaluation.every_epochs = 0.0
    config.evaluation.pictured = (0, 7)
    config.checkpoint.every_epochs = 1 / 6  # every step
    config.log_every_steps = 1
    config.stages = {"first": common.stage(), "second": common.stage()}
    for stage in config.stages.values():
        stage.identities, stage.images_per_identity = 4, 2
        stage.epochs = 1.0
        stage.optimizer.learning_rate = 0.1
        stage.optimizer.warmup_epochs = 0.0
    return config
