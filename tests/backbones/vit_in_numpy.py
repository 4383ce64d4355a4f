"""An independent Vision Transformer forward in float64, loops where they explain."""

import numpy as np
from scipy import special


def layer_norm(tokens, params):
    mean = tokens.mean(-1, keepdims=True)
    var = tokens.var(-1, keepdims=True)
    return (tokens - mean) / np.sqrt(var + 1e-6) * params["scale"] + params["bias"]


def dense(tokens, params):
    return tokens @ params["kernel"] + params["bias"]


def patches(images, params, patch_size, stride):
    """Every window times the kernel, row-major: [B, N, D]."""
    _, height, width, _ = images.shape
    vectors = [
        np.einsum(
            "byxc,yxcd->bd",
            images[:, row : row + patch_size, column : column + patch_size],
            params["kernel"],
        )
        + params["bias"]
        for row in range(0, height - patch_size + 1, stride[0])
        for column in range(0, width - patch_size + 1, stride[1])
    ]
    return np.stack(vectors, axis=1)


def softmax_attention(query, key, value):
    """One head of one image: [T, d], [S, d], [S, d] -> [T, d]."""
    logits = query @ key.T / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def block(tokens, params, heads, attend):
    """`attend(query, key, value)` sees one head of one image, [L, d] each."""
    batch, _, width = tokens.shape
    size = width // heads
    qkv = dense(layer_norm(tokens, params["norm1"]), params["attn"]["qkv"])
    output = np.zeros_like(tokens)
    for b in range(batch):
        for h in range(heads):
            query, key, value = (
                qkv[b, :, i * width + h * size : i * width + (h + 1) * size]
                for i in range(3)
            )
            output[b, :, h * size : (h + 1) * size] = attend(query, key, value)
    tokens = tokens + dense(output, params["attn"]["proj"])
    hidden = dense(layer_norm(tokens, params["norm2"]), params["mlp"]["fc1"])
    hidden = 0.5 * hidden * (1 + special.erf(hidden / np.sqrt(2)))
    return tokens + dense(hidden, params["mlp"]["fc2"])


def forward(images, params, *, patch_size, stride, heads, attend=softmax_attention):
    """The normalised sequence CLS, extra tokens, patches: [B, L, D]."""
    embedded = patches(images, params["patch_embed"]["proj"], patch_size, stride)
    position = params["pos_embed"][0]
    first = [params["cls_token"][0] + position[:1]]
    if "extra_tokens" in params:
        first.append(params["extra_tokens"][0] + params["extra_pos_embed"][0])
    first = np.concatenate(first)
    tokens = np.stack(
        [np.concatenate([first, image + position[1:]]) for image in embedded]
    )
    depth = sum(name.startswith("blocks_") for name in params)
    for index in range(depth):
        tokens = block(tokens, params[f"blocks_{index}"], heads, attend)
    return layer_norm(tokens, params["norm"])
