"""Pictures of what a model does: ranking lists, maps, routes and pairs as PNG.

Everything is composed of NumPy tiles and written text with Pillow; files appear whole
or not at all, so that a viewer that watches the folder never sees half a picture.
"""

from reid_jax.pictures.overlays import group_colour
from reid_jax.pictures.pairs import draw_pairs
from reid_jax.pictures.rankings import VISIBLE, ranking_lists
from reid_jax.pictures.sheet import QUERY, RIGHT, WRONG
from reid_jax.pictures.single import draw

__all__ = [
    "QUERY",
    "RIGHT",
    "VISIBLE",
    "WRONG",
    "draw",
    "draw_pairs",
    "group_colour",
    "ranking_lists",
]
