"""Backgrounds: one wide strip per camera, of which each picture shows a window.

A strip has a wall of the camera's kind above a floor in perspective. Rows and columns
are pixels at the size where a person is `BODY` pixels tall.
"""

import functools

import cv2
import numpy as np

from data_pipelines.synthetic import seeds
from data_pipelines.synthetic.camera import KINDS, camera
from data_pipelines.synthetic.raster import View

HEIGHT, SECTION = 208, 256
WIDTH = 3 * SECTION
BODY = 112
"""Height of a person in pixels of the strip."""
FEET = 180
"""Row on which people stand, give or take the depth of the pavement."""


@functools.cache
def strip(number: int, seed: int = seeds.SEED) -> np.ndarray:
    """Returns the float32 RGB strip [HEIGHT, WIDTH, 3] of a camera, in 0..1."""
    own = camera(number, seed)
    rng = seeds.generator("scene", number, seed=seed)
    base = int(FEET - BODY * rng.uniform(0.18, 0.5) - 40 * own.pitch)
    picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    # Cameras of one neighbourhood: each sees three kinds of places, others share them.
    for place, offset in enumerate((0, 1, 3)):
        kind = KINDS[(number + offset) % len(KINDS)]
        section = np.zeros((HEIGHT, SECTION, 3), np.float32)
        _WALLS[kind](section[:base], rng)
        _floor(section, base, kind, rng)
        _FURNITURE[kind](section, base, rng)
        picture[:, place * SECTION : (place + 1) * SECTION] = _hazy(section)
    light = np.linspace(rng.uniform(0.85, 1.1), rng.uniform(0.85, 1.1), WIDTH)
    picture *= np.float32(light[None, :, None])
    return np.clip(cv2.GaussianBlur(picture, (0, 0), 0.9), 0, 1)


def _hazy(picture: np.ndarray) -> np.ndarray:
    """Paler and of average brightness, so that people stand out, not places."""
    grey = picture.mean(axis=2, keepdims=True)
    pale = grey + 0.65 * (picture - grey)
    return np.clip(0.47 + 0.8 * (pale - pale.mean()), 0, 1)


def window(
    backdrop: np.ndarray, view: View, size: tuple[int, int], at: float
) -> np.ndarray:
    """Cuts the background of one picture.

    Args:
      backdrop: a strip.
      view: where the person stands in the frame, and how large they are.
      size: (height, width) of the frame.
      at: place along the strip, in 0..1.

    Returns:
      float32 [H, W, 3]; the strip is mirrored beyond its ends.
    """
    scale = view.height / BODY
    margin = size[1] / scale
    column = margin + at * (WIDTH - 2 * margin)
    x, y = view.foot
    shift = np.array([[scale, 0, x - scale * column], [0, scale, y - scale * FEET]])
    return cv2.warpAffine(
        backdrop, shift, size[::-1], borderMode=cv2.BORDER_REFLECT_101
    )


def grain(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Smooth noise [H, W] with mean 0 and deviation 1."""
    noise = cv2.GaussianBlur(
        rng.standard_normal(shape).astype(np.float32), (0, 0), sigma
    )
    return (noise - noise.mean()) / noise.std()


def _tone(rng: np.random.Generator, rgb: tuple[float, float, float]) -> np.ndarray:
    return np.float32(np.array(rgb) * rng.uniform(0.85, 1.15) + rng.normal(0, 0.02, 3))


def _rough(
    picture: np.ndarray, rng: np.random.Generator, size: float, sigma: float
) -> None:
    picture *= 1 + size * grain(rng, picture.shape[:2], sigma)[..., None]


def _bricks(picture: np.ndarray, rng: np.random.Generator) -> None:
    rows, columns = np.indices(picture.shape[:2])
    course = rows // 6
    across = columns + (course % 2) * 7
    tone = rng.normal(1, 0.12, (64, 64))[course % 64, (across // 14) % 64]
    picture[:] = _tone(rng, (0.50, 0.30, 0.24)) * tone[..., None]
    picture[(rows % 6 == 0) | (across % 14 == 0)] = _tone(rng, (0.62, 0.58, 0.54))
    _rough(picture, rng, 0.08, 4.0)


def _facade(picture: np.ndarray, rng: np.random.Generator) -> None:
    picture[:] = _tone(rng, (0.62, 0.58, 0.50))
    bottom = len(picture)
    for left in range(-10, SECTION, int(rng.integers(44, 60))):
        right, tone = left + int(rng.integers(22, 32)), rng.uniform(0.15, 0.35)
        for top in range(bottom - 130, bottom - 20, 56):
            glass = (tone * 0.8, tone, tone * 1.15)
            cv2.rectangle(
                picture,
                (left - 2, top - 2),
                (right + 2, top + 38),
                (0.75, 0.73, 0.7),
                -1,
            )
            cv2.rectangle(picture, (left, top), (right, top + 36), glass, -1)
            cv2.line(
                picture,
                ((left + right) // 2, top),
                ((left + right) // 2, top + 36),
                (0.7, 0.7, 0.68),
                1,
            )
    _rough(picture, rng, 0.06, 6.0)


def _trees(picture: np.ndarray, rng: np.random.Generator) -> None:
    picture[:] = _tone(rng, (0.60, 0.68, 0.70))
    bottom = len(picture)
    for column in range(0, SECTION, 37):
        x = column + int(rng.integers(-10, 10))
        cv2.rectangle(
            picture, (x - 3, bottom - 70), (x + 3, bottom), (0.25, 0.2, 0.15), -1
        )
    for _ in range(900):
        x, y = rng.integers(0, SECTION), int(bottom - 22 - abs(rng.normal(0, 75)))
        leaf = np.array((0.20, 0.36, 0.14)) * rng.uniform(0.4, 1.5)
        cv2.circle(picture, (int(x), y), int(rng.integers(3, 9)), leaf.tolist(), -1)
    hedge = picture[-24:]
    hedge[:] = _tone(rng, (0.17, 0.30, 0.12))
    _rough(hedge, rng, 0.25, 1.5)
    _rough(picture, rng, 0.10, 5.0)


def _shop(picture: np.ndarray, rng: np.random.Generator) -> None:
    picture[:] = _tone(rng, (0.35, 0.33, 0.34))
    bottom = len(picture)
    for left in range(-20, SECTION, 92):
        inside = rng.uniform(0.35, 0.75) * np.array((1.0, 0.93, 0.8))
        cv2.rectangle(
            picture, (left, bottom - 92), (left + 80, bottom - 10), inside.tolist(), -1
        )
        for _ in range(26):
            x, y = left + rng.integers(4, 70), bottom - rng.integers(16, 84)
            goods = rng.uniform(0.1, 0.95, 3).tolist()
            size = rng.integers(3, 12, 2)
            cv2.rectangle(
                picture,
                (int(x), int(y)),
                (int(x + size[0]), int(y + size[1])),
                goods,
                -1,
            )
        sign = rng.uniform(0.1, 0.8, 3).tolist()
        cv2.rectangle(picture, (left, bottom - 118), (left + 84, bottom - 97), sign, -1)
        for letter in range(left + 12, left + 70, 9):
            cv2.rectangle(
                picture,
                (letter, bottom - 112),
                (letter + 5, bottom - 103),
                (0.9, 0.9, 0.85),
                1,
            )
    _rough(picture, rng, 0.08, 5.0)


def _corridor(picture: np.ndarray, rng: np.random.Generator) -> None:
    bottom = len(picture)
    picture[:] = _tone(rng, (0.72, 0.70, 0.62))
    picture[bottom - 36 :] = _tone(rng, (0.45, 0.50, 0.52))
    picture[bottom - 5 :] = (0.22, 0.22, 0.22)
    for left in range(20, SECTION, 110):
        door = _tone(rng, (0.42, 0.28, 0.18)).tolist()
        cv2.rectangle(
            picture, (left - 3, bottom - 103), (left + 45, bottom), (0.5, 0.5, 0.5), -1
        )
        cv2.rectangle(picture, (left, bottom - 100), (left + 42, bottom), door, -1)
        cv2.rectangle(
            picture,
            (left + 60, bottom - 80),
            (left + 84, bottom - 52),
            rng.uniform(0.3, 0.9, 3).tolist(),
            -1,
        )
    _rough(picture, rng, 0.04, 8.0)


def _columns(picture: np.ndarray, rng: np.random.Generator) -> None:
    picture[:] = _tone(rng, (0.30, 0.32, 0.36))
    x = np.arange(SECTION)
    column = x % 70 < 26
    round_ = 0.45 + 0.4 * np.sin(np.pi * (x % 70) / 26)
    stone = _tone(rng, (0.78, 0.76, 0.72))
    picture[:, column] = (round_[column, None] * stone)[None]
    picture[-12:] = stone * 0.75
    _rough(picture, rng, 0.07, 5.0)


_FLOORS = {
    # kind: (tile colour, size of a tile, strength of the joints, roughness)
    "street": ((0.38, 0.38, 0.39), 0, 0.0, 0.10),
    "brick": ((0.60, 0.57, 0.53), 14, 0.25, 0.06),
    "park": ((0.30, 0.42, 0.18), 0, 0.0, 0.20),
    "shop": ((0.55, 0.53, 0.52), 20, 0.2, 0.05),
    "corridor": ((0.58, 0.56, 0.52), 26, 0.3, 0.03),
    "plaza": ((0.68, 0.62, 0.55), 18, 0.35, 0.06),
}


def _floor(picture: np.ndarray, base: int, kind: str, rng: np.random.Generator) -> None:
    """Tiles or ground below row `base`, in perspective towards a horizon above it."""
    colour, tile, joint, rough = _FLOORS[kind]
    horizon = FEET - BODY * 1.25
    rows, columns = np.indices((HEIGHT - base, SECTION), dtype=np.float32)
    distance = (FEET - horizon) / (rows + base - horizon)
    across = (columns - SECTION / 2) * distance
    ahead = 1.2 * BODY * distance
    ground = picture[base:]
    ground[:] = _tone(rng, colour)
    if tile:
        cell = (across // tile + ahead // tile).astype(int)
        ground *= np.where(cell % 2, 1.0, 1 - joint * 0.5)[..., None]
        ground[(across % tile < 1.2) | (ahead % tile < 1.2)] *= 1 - joint
    _rough(ground, rng, rough, 1.0)
    _rough(ground, rng, 0.08, 10.0)
    shadow = np.clip((rows + 2) / 10, 0.6, 1)
    ground *= shadow[..., None]


def _cars(picture: np.ndarray, base: int, rng: np.random.Generator) -> None:
    curb = slice(base, base + 5)
    picture[curb] = _tone(rng, (0.66, 0.65, 0.62))
    for left in range(-30, SECTION, int(rng.integers(130, 160))):
        paint = rng.uniform(0.1, 0.8) * np.array((1, 1, 1)) + rng.normal(0, 0.12, 3)
        car(picture, (left, base + 12), 118, np.clip(paint, 0.03, 0.9))


def car(
    picture: np.ndarray, corner: tuple[int, int], length: int, paint: np.ndarray
) -> None:
    """Draws the side of a car; `corner` is where its rear meets the ground."""
    x, y = corner
    unit = length / 100

    def points(*pairs: tuple[float, float]) -> np.ndarray:
        return np.int32([(x + unit * a, y - unit * b) for a, b in pairs])

    body = points(
        (0, 6),
        (0, 20),
        (6, 24),
        (20, 26),
        (32, 40),
        (62, 40),
        (76, 26),
        (96, 22),
        (100, 14),
        (100, 6),
    )
    cv2.fillPoly(picture, [body], paint.tolist())
    cv2.fillPoly(
        picture, [points((0, 6), (0, 14), (100, 14), (100, 6))], (paint * 0.7).tolist()
    )
    glass = (0.14, 0.17, 0.2)
    cv2.fillPoly(picture, [points((24, 27), (34, 37), (46, 37), (46, 27))], glass)
    cv2.fillPoly(picture, [points((49, 27), (49, 37), (61, 37), (71, 27))], glass)
    for wheel in (20, 80):
        centre = tuple(int(v) for v in points((wheel, 8))[0])
        cv2.circle(picture, centre, int(9 * unit), (0.06, 0.06, 0.06), -1)
        cv2.circle(picture, centre, int(5 * unit), (0.5, 0.5, 0.52), -1)


def _benches(picture: np.ndarray, base: int, rng: np.random.Generator) -> None:
    for left in range(30, SECTION, 150):
        x, wood = left + int(rng.integers(-20, 20)), (0.35, 0.24, 0.14)
        for row in (base - 18, base - 12, base - 4):
            cv2.rectangle(picture, (x, row), (x + 48, row + 3), wood, -1)
        for leg in (x + 4, x + 42):
            cv2.rectangle(
                picture, (leg, base - 18), (leg + 2, base + 8), (0.1, 0.1, 0.1), -1
            )
    cv2.rectangle(picture, (0, base + 14), (SECTION, base + 44), (0.62, 0.56, 0.45), -1)
    _rough(picture[base + 14 : base + 45], rng, 0.08, 1.0)


def _posts(picture: np.ndarray, base: int, rng: np.random.Generator) -> None:
    tone = rng.uniform(0.1, 0.3)
    for x in range(int(rng.integers(5, 30)), SECTION, 62):
        cv2.rectangle(
            picture, (x, base - 20), (x + 4, base + 8), (tone, tone, tone), -1
        )
        cv2.line(picture, (x, base - 14), (x + 62, base - 14), (tone, tone, tone), 1)


def _plants(picture: np.ndarray, base: int, rng: np.random.Generator) -> None:
    for x in range(int(rng.integers(20, 70)), SECTION, 128):
        cv2.rectangle(
            picture, (x - 9, base - 12), (x + 9, base + 8), (0.5, 0.28, 0.2), -1
        )
        for _ in range(40):
            at = (int(x + rng.normal(0, 8)), int(base - 24 + rng.normal(0, 8)))
            leaf = (np.array((0.15, 0.36, 0.14)) * rng.uniform(0.5, 1.5)).tolist()
            cv2.circle(picture, at, int(rng.integers(2, 5)), leaf, -1)


def _reflections(picture: np.ndarray, base: int, rng: np.random.Generator) -> None:
    for x in range(int(rng.integers(0, 60)), SECTION, 90):
        glow = picture[base:, x : x + 26]
        glow += np.float32(0.12) * np.linspace(1, 0.2, len(glow))[:, None, None]


_WALLS = {
    "street": _facade,
    "brick": _bricks,
    "park": _trees,
    "shop": _shop,
    "corridor": _corridor,
    "plaza": _columns,
}
_FURNITURE = {
    "street": _cars,
    "brick": _posts,
    "park": _benches,
    "shop": _plants,
    "corridor": _reflections,
    "plaza": _plants,
}
