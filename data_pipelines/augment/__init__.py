"""The steps that `data_pipelines.transforms` builds augmentations from."""
