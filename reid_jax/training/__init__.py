"""The training loop, its compiled step, and where its batches come from."""
