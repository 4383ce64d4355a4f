"""Losses that papers share; each is a function of arrays."""
