"""Embedding, ranking and reporting; the second look of pair models."""
