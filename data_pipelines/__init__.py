"""Data sets: prepared once, opened as records, sampled, augmented, loaded."""
