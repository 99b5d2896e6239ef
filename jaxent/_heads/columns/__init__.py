"""The column sweep: softmax statistics of a linear head, a block of the vocabulary at a time.

Every softmax loss with an integer label is a function of a few numbers per row. The forward sweep
computes the logits of one tile after the other, some rows by some classes, and updates those
numbers. The derivative is a `jax.custom_jvp` rule whose tangents are a sweep of their own, with a
transpose written by hand (`_heads/linear_map.py`). Value and gradients take four matrix products
(one forward, three backward) and hold, beside the gradients, nothing larger than a tile.

    plan.py      static sizes: tiles of rows, blocks of classes, dtypes
    blocks.py    one tile: its rows, classes and logits
    forward.py   the statistics, and the forward sweep that computes them
    tangents.py  gradients of the statistics in the logits, and the sweep of tangents
    backward.py  the transpose of the tangents: the backward sweep, and loss scaling for float16
    sweep.py     all of it: `linear_softmax_stats`, from checked arguments, and its rule

Each file imports only from those above it.
"""
