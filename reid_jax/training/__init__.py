"""The training loop, the run it belongs to, its compiled step and its batches."""
