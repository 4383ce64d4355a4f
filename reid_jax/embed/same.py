"""Whether a file of embeddings is of the work that is asked for."""

from __future__ import annotations

import pathlib

from reid_jax.embed import files
from reid_jax.embed.files import About
from reid_jax.embed.listing import Listing
from reid_jax.errors import UserError
from reid_jax.extractor.network import Network

_ELSE = "choose another --to, or --overwrite"


class Work:
    """A share of images, and the network that embeds them.

    What the rows depend on is noted now, before an image is read: an image that is
    replaced while it is embedded has changed since.

    Attributes:
      listing: the images.
      numbers: of those that are the share.
    """

    def __init__(
        self, listing: Listing, shard: tuple[int, int], flip: bool, network: Network
    ):
        self.listing, self.numbers = listing, listing.share(*shard)
        self._marks = listing.marks(self.numbers)
        self._about = About(
            method=network.method,
            fingerprint=network.fingerprint,
            image_size=network.image_size,
            flip=flip,
            images=listing.digest(self.numbers),
            shard=shard,
            folder=listing.folder,
        )

    def about(self, numbers: range | None = None) -> About:
        """What a file of the whole share, or of these images, says of itself."""
        digests = self._marks.digests(numbers or self.numbers)
        return About(**{**vars(self._about), **digests})

    def differing(self, about: About) -> list[str]:
        """How a file is of another network, or another share."""
        return [
            f"{name} {was} there, {now} here"
            for name in ("fingerprint", "image_size", "flip", "shard")
            if (was := getattr(about, name)) != (now := getattr(self._about, name))
        ]

    def other_images(self, about: About) -> bool:
        """Whether a file is of other images."""
        return about.images != self._about.images

    def changed(self, about: About, numbers: range | None = None) -> list[str]:
        """What has changed of these images since a file was written."""
        now = self.about(numbers)
        return [
            text
            for name, text in (
                ("facts", "person, camera or time of some images"),
                ("versions", "some image files (by their size or time)"),
            )
            if getattr(now, name) != getattr(about, name)
        ]


def check(path: pathlib.Path, work: Work) -> About:
    """What a file of this work says of itself.

    Raises:
      UserError: it is of other work; says what differs.
    """
    try:
        about = files.read_about(path)
        paths = files.read_paths(path) if work.other_images(about) else []
    except UserError as error:
        raise UserError(f"{error}; {_ELSE}") from error
    if differing := work.differing(about):
        raise UserError(
            f"{path} holds other embeddings ({'; '.join(differing)}); {_ELSE}"
        )
    if work.other_images(about):
        raise UserError(
            f"{path} holds embeddings of other images: {_which(paths, work)}. "
            f"{_ELSE.capitalize()}; a gallery (reid-jax search add) takes in what is "
            "new alone"
        )
    if changed := work.changed(about):
        raise UserError(
            f"{' and '.join(changed)} have changed since {path} was written; {_ELSE}"
        )
    return about


def _which(there: list[str], work: Work) -> str:
    """How the images of a file are others than those that are asked for."""
    here = work.listing.places(work.numbers)
    new, gone = sorted(set(here) - set(there)), sorted(set(there) - set(here))
    said = [
        f"{len(paths)} {text} (such as {paths[0]})"
        for paths, text in ((new, "are not in it"), (gone, "in it are not asked for"))
        if paths
    ]
    return " and ".join(said) or "they are in another order, or written long ago"
