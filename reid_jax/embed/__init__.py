"""`reid-jax embed`: many images to a file of embeddings, in shares that can be resumed.

`listing` says which images, `job` embeds a share of them, `parts` keeps what is done,
`files` are what is written and read back.
"""
