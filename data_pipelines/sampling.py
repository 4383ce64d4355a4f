"""Identity-balanced training batches: P identities x K images.

Batch i is a pure function of (seed, i), so that any number of workers and hosts, and
a run that was interrupted, see the same batches. An epoch follows the recipe of BoT
(Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification",
2019): every identity contributes its images in chunks of K, and meets others at random.
"""

import numpy as np

from reid_jax.errors import UserError

VERSION = 2
"""Of the plan. Another one has other batches for the same seed and step: 1, until
November 2026, gave neighbouring batches mostly the same identities."""

_ALWAYS_ALLOWED = 64  # Images of an identity, also where a tiny set has fewer in all.
_EPOCHS_CACHED = 2  # Prefetching threads stand on both sides of an epoch's end.


class PKPlan:
    """Which records make up training batch `step`; picklable.

    Attributes:
      labels: int32 [N], contiguous training label of each record, in the sorted order
        of the persons; -1 for records that are no identity (person <= 0).
      num_classes: number of training identities.
      steps_per_epoch: floor(sum over identities of max(1, floor(n / K)) / P).
      batch_size: P * K.
    """

    def __init__(
        self,
        person: np.ndarray,
        *,
        identities: int,
        images_per_identity: int,
        seed: int,
    ):
        """Groups the records by identity.

        Args:
          person: int [N], the identity of each record; those <= 0 are left out.
          identities: P, distinct identities in a batch.
          images_per_identity: K, images of each identity in a batch.
          seed: any int >= 0.

        Raises:
          UserError: P, K or the seed is out of range, there are fewer than P
            identities, or K is more than all images.
        """
        person = np.asarray(person)
        self.labels, self._groups = _group(person)
        self.num_classes = len(self._groups)
        _check(identities, images_per_identity, seed, self.num_classes, len(person))
        self._identities = int(identities)
        self._images = int(images_per_identity)
        self._seed = int(seed)
        chunks = [max(1, len(g) // self._images) for g in self._groups]
        self.steps_per_epoch = sum(chunks) // self._identities
        self.batch_size = self._identities * self._images
        self._chunks = [min(c, self.steps_per_epoch) for c in chunks]
        self._cache: dict[int, np.ndarray] = {}

    def batch(self, step: int) -> np.ndarray:
        """Record indices of global training batch `step`, counted from 0.

        Returns:
          int64 [P * K], identity-major: rows p*K to (p+1)*K show one identity.
        """
        epoch, position = divmod(int(step), self.steps_per_epoch)
        return self._epoch(epoch)[position]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": {}}

    def _epoch(self, epoch: int) -> np.ndarray:
        """The batches of one epoch, int64 [steps_per_epoch, P * K]."""
        cache = self._cache
        if epoch in cache:
            return cache[epoch]
        plan = self._draw(epoch)
        kept = sorted(cache)[1 - _EPOCHS_CACHED :]
        # Rebinding instead of changing in place keeps readers in other threads safe
        # without a lock, which would not pickle.
        self._cache = {e: cache[e] for e in kept} | {epoch: plan}
        return plan

    def _draw(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, epoch])
        batches = self._deal(rng)
        for batch in batches:
            self._fill(batch, rng)
        return np.stack([self._flatten(batch, rng) for batch in batches])

    def _deal(self, rng: np.random.Generator) -> list[dict[int, np.ndarray]]:
        """Deals each identity's chunks to as many batches, in rounds of all batches.

        Each round has an order of its own: in one order for all, identities whose
        chunks lie side by side would meet each other again and again, and few others.
        Each batch maps identity -> record indices [K].
        """
        batches: list[dict[int, np.ndarray]] = [{} for _ in range(self.steps_per_epoch)]
        waiting, rounds = np.empty(0, np.int64), self._identities
        for identity in rng.permutation(self.num_classes):
            count = self._chunks[identity]
            places, waiting = np.split(waiting, [count])
            if len(places) < count and rounds:
                order, rounds = rng.permutation(len(batches)), rounds - 1
                others = order[~np.isin(order, places)][: count - len(places)]
                waiting = order[~np.isin(order, others)]
                places = np.concatenate([places, others])
            chunks = self._draw_chunks(identity, count, rng)
            for place, chunk in zip(places, chunks, strict=False):
                batches[place][identity] = chunk
        return batches

    def _fill(self, batch: dict[int, np.ndarray], rng: np.random.Generator) -> None:
        """Adds identities where the cap on chunks has left a batch short."""
        missing = self._identities - len(batch)
        if missing == 0:
            return
        absent = np.setdiff1d(np.arange(self.num_classes), list(batch))
        for identity in rng.choice(absent, missing, replace=False):
            (batch[identity],) = self._draw_chunks(identity, 1, rng)

    def _draw_chunks(
        self, identity: int, count: int, rng: np.random.Generator
    ) -> np.ndarray:
        """`count` chunks of one identity's record indices, [count, K]."""
        group = self._groups[identity]
        if len(group) < self._images:
            drawn = rng.choice(group, count * self._images)
        else:
            drawn = rng.permutation(group)[: count * self._images]
        return drawn.reshape(count, self._images)

    def _flatten(
        self, batch: dict[int, np.ndarray], rng: np.random.Generator
    ) -> np.ndarray:
        chunks = np.stack(list(batch.values()))
        return rng.permutation(chunks, axis=0).reshape(-1)


def _group(person: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Contiguous labels int32 [N] and the record indices of each label."""
    labels = np.full(len(person), -1, np.int32)
    rows = np.flatnonzero(person > 0)
    if not len(rows):
        return labels, []
    _, inverse, counts = np.unique(
        person[rows], return_inverse=True, return_counts=True
    )
    labels[rows] = inverse
    ordered = rows[np.argsort(inverse, kind="stable")]
    return labels, np.split(ordered, np.cumsum(counts)[:-1])


def _check(
    identities: int, images: int, seed: int, available: int, records: int
) -> None:
    fields = {"identities": identities, "images_per_identity": images}
    for name, value in fields.items():
        if value < 1:
            raise UserError(
                f"config.stages.<stage>.{name} is {value}; it must be at least 1."
            )
    if seed < 0:
        raise UserError(f"The sampling seed is {seed}; it must not be negative.")
    if available < identities:
        raise UserError(
            f"A batch needs {identities} identities, but the training split has "
            f"{available}. Lower config.stages.<stage>.identities to at most "
            f"{available}."
        )
    if images > max(records, _ALWAYS_ALLOWED):
        raise UserError(
            f"config.stages.<stage>.images_per_identity is {images}; the whole "
            f"training split has {records} images. Lower it: 4 is usual."
        )
