"""Layers and small functions that papers share."""
