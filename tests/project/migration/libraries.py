"""The libraries that people come from, by the name of their package."""

from project.migration import (
    from_jax_libraries,
    from_keras,
    from_metrics,
    from_optax,
    from_torch,
)
from project.migration.case import Library, of_jax, of_numpy, of_torch

LIBRARIES = {
    "optax": Library("From optax", "optax.losses", of_jax, from_optax.CASES),
    "torch": Library("From torch.nn.functional", "torch.nn.functional", of_torch, from_torch.CASES),
    "keras": Library("From Keras", "keras.losses", of_jax, from_keras.CASES),
    "rax": Library("From rax", "rax", of_jax, from_jax_libraries.RAX),
    "distrax": Library("From distrax", "distrax", of_jax, from_jax_libraries.DISTRAX),
    "scikit-learn": Library(
        "From scikit-learn", "sklearn.metrics", of_numpy, from_metrics.SCIKIT_LEARN
    ),
    "torchmetrics": Library(
        "From torchmetrics", "torchmetrics.functional", of_torch, from_metrics.TORCHMETRICS
    ),
    # Not on PyPI; the numbers are those of its file of 2022, commit 08058ed.
    "t5x": Library("From t5x", "", of_jax, from_jax_libraries.T5X),
}
