"""k-reciprocal re-ranking as the paper defines it, with full matrices in float64.

One image after the other, sets as Python's sets. The choices that the text leaves open
are named as in `reid_jax.retrieval.k_reciprocal.KReciprocal`.
"""

import numpy as np


def rerank(distances, queries, options):
    """Final distances [Q, G] from those of all images [N, N], queries first."""
    apart = distances.astype(np.float64)
    np.fill_diagonal(apart, 0)
    ordered = apart.copy()
    np.fill_diagonal(ordered, -1)  # itself first
    ranks = np.argsort(ordered, axis=1, kind="stable").tolist()
    if options.squared:
        apart = apart**2
    if options.normalised:
        apart = apart / np.maximum(apart.max(1, keepdims=True), 1e-300)
    size = len(apart)
    weights = np.zeros((size, size))
    for image in range(size):
        members = sorted(_expanded(ranks, image, options))
        row = np.exp(-apart[image, members])
        weights[image, members] = row / row.sum()
    weights = np.stack([weights[ranks[i][: options.k2]].mean(0) for i in range(size)])
    final = np.empty((queries, size - queries))
    for q in range(queries):
        for g in range(queries, size):
            pair = weights[[q, g]]
            jaccard = 1 - pair.min(0).sum() / pair.max(0).sum()
            final[q, g - queries] = (
                1 - options.lambda_value
            ) * jaccard + options.lambda_value * apart[q, g]
    return final


def _reciprocal(ranks, image, k):
    near = ranks[image][: k + 1]
    return {other for other in near if image in ranks[other][: k + 1]}


def _expanded(ranks, image, options):
    own = _reciprocal(ranks, image, options.k1)
    expanded = set(own)
    for other in own:
        theirs = _reciprocal(ranks, other, (options.k1 + 1) // 2)
        shared = len(own & theirs) / len(theirs)
        if shared > 2 / 3 or (shared == 2 / 3 and not options.strict):
            expanded |= theirs
    return expanded
