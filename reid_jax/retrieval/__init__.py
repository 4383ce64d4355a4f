"""Distances, ranking, re-scoring of candidates, fusion of scores."""
