"""Losses made from a convex function: the Fenchel-Young construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent._float import dtypes, sums

# Without `jax.jit` its rule would run operation by operation, which takes time and memory.
_expectation = jax.jit(sums.expectation, inline=True)


@_checks.public
def make_fenchel_young_loss(max_fun: Callable[..., ArrayLike]) -> Callable[..., jax.Array]:
    r"""Makes the Fenchel-Young loss of a regularised maximum, which predicts by its gradient.

    .. math:: \ell(x, t) = \Omega^*(x) - \sum_j t_j x_j, \qquad
        \Omega^*(x) = \max_p \Big( \sum_j p_j x_j - \Omega(p) \Big)

    Its gradient is the maximal p less the target. The term :math:`\Omega(t)` is left out, as in
    optax. It is a difference, and no more exact than one: for logsumexp use
    `softmax_cross_entropy`.

    Args:
        max_fun: The function :math:`\Omega^*` of the scores `[V]` of one example: differentiable,
            with a scalar as its result, in the unit of the scores.

    Returns:
        A function `(scores, targets, *args, **kwargs)` of scores and targets, `[..., V]` each, with
        one loss per example in units of the scores, `[...]`, float32 (float64 for float64 inputs).
        The other arguments go to `max_fun`. For masks use `jaxent.mean`.

    Raises:
        ArgumentError: If `max_fun` is not callable.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> loss = jaxent.make_fenchel_young_loss(jax.scipy.special.logsumexp)
        >>> print(loss(jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 1.0]] * 2)))
        [0.31326175 0.6931472 ]

    References:
        Blondel et al., `Fenchel-Young Losses <https://arxiv.org/abs/1901.02324>`_, 2020.
    """
    _checks.require(
        callable(max_fun), f"`max_fun` must be a function of scores [V], got {max_fun!r}."
    )

    @_checks.public
    def fenchel_young_loss(
        scores: ArrayLike, targets: ArrayLike, *args: Any, **kwargs: Any
    ) -> jax.Array:
        scores = _checks.as_floating("scores", scores)
        targets = _checks.as_real("targets", targets)
        _checks.require(
            scores.ndim == targets.ndim > 0 and scores.shape[-1] == targets.shape[-1],
            f"`scores` {_checks.describe(scores)} and `targets` {_checks.describe(targets)} must "
            "have one rank and one V, [..., V]; for class indices pass "
            "`jax.nn.one_hot(labels, V)`.",
        )
        _checks.check_broadcastable(scores=scores, targets=targets)
        dtype = dtypes.compute_dtype(scores, targets)
        x, t = scores.astype(dtype), targets.astype(dtype)

        def maximum(row: jax.Array) -> jax.Array:
            result = jnp.asarray(max_fun(row, *args, **kwargs))
            _checks.require(
                result.shape == (),
                f"`max_fun` must return a scalar for scores [V], got {_checks.describe(result)}.",
            )
            return result.astype(dtype)

        x, t = jnp.broadcast_arrays(x, t)
        return jnp.vectorize(maximum, signature="(n)->()")(x) - _expectation(t, x)

    return fenchel_young_loss
