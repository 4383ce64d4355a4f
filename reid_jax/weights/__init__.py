"""Pretrained weights: files of other libraries in, our variables out, and back.

    python -m reid_jax.weights --from=resnet50-19c8e357.pth --to=weights/resnet50

converts a file once; `config.pretrained` takes the file, the converted folder, or a
known name.
"""

from reid_jax.weights.fetch import KNOWN, locate, other_statistics
from reid_jax.weights.load import Report, load_pretrained

__all__ = ["KNOWN", "Report", "load_pretrained", "locate", "other_statistics"]
