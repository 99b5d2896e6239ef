"""What jaxent exports: its functions, and the types of their results and errors."""

import inspect

import jaxent

FUNCTIONS = tuple(name for name in jaxent.__all__ if inspect.isfunction(getattr(jaxent, name)))
CLASSES = tuple(name for name in jaxent.__all__ if inspect.isclass(getattr(jaxent, name)))
# Functions that have a second name, so that users of optax find it.
OTHER_NAMES_OF_OPTAX = {"convex_kl_divergence", "safe_softmax_cross_entropy"}
