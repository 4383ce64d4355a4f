"""The contract between a paper and the tools (`method.py`), and one file per paper."""
