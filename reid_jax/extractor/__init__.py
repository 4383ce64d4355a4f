"""A trained network at work on images: load one, embed, compare, rank.

`load` finds it, `trained` and `exported` read it, `extractor` runs it, `images` are
what it takes. An export needs only JAX and what reads image files: nothing here but
`trained` imports more.
"""
