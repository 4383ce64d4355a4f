"""One file per paper, and `method.py`, the contract between a paper and the tools."""
