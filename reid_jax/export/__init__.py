"""Artifacts for other programs: what is written, how it is checked, the model card."""
