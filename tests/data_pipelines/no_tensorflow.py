"""Importing this hides TensorFlow from later imports, as if it were not installed."""

import sys
from typing import Any


class _Blinded:
    """A finder of `sys.meta_path` that does not find TensorFlow."""

    def __init__(self, finder: Any):
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] == "tensorflow":
            return None
        return self._finder.find_spec(name, path, target)


sys.meta_path[:] = [_Blinded(finder) for finder in sys.meta_path]
