"""Embedding, ranking, the second look of pair models; figures, entries and pictures."""
