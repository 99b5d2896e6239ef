"""Losses made from a convex function: the Fenchel-Young construction."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent._float import dtypes, sums


@_checks.public
def make_fenchel_young_loss(max_fun: Callable[..., ArrayLike]) -> Callable[..., jax.Array]:
    r"""Makes the Fenchel-Young loss of a regularised maximum, which predicts by its gradient.

    .. math::
        \ell(x, t) = \Omega^*(x) - \sum_j t_j x_j, \qquad
        \Omega^*(x) = \max_p \Big( \sum_j p_j x_j - \Omega(p) \Big)

    The gradient of the loss is the maximal p less the target. The term :math:`\Omega(t)`, which
    does not depend on the scores, is left out, as in optax; where it is 0, on true classes say,
    the loss is non-negative on paper. In floating point it is a difference of two numbers that may
    be nearly equal, and nothing is known of the function that would help: use
    `jaxent.softmax_cross_entropy` (for logsumexp) and `jaxent.multiclass_sparsemax_loss`, which are
    exact, where they are what you need.

    Args:
        max_fun: The function :math:`\Omega^*` of the scores `[V]` of one example, in their unit:
            returns a scalar, differentiable; other arguments are handed on to it.

    Returns:
        A function `(scores, targets, *args, **kwargs)` of scores `[..., V]`, floating point, and
        targets of the same rank and V, real. A score of `-inf` is an impossible class: it counts 0
        against a target of 0, if `max_fun` knows it as well, and `+inf` against a positive one. It
        gives one loss per example in units of the scores, shape
        `[...]`, float32 (float64 if any input is): scores and targets of 16 bits are converted
        first. It raises AssertionError if dtypes or shapes are refused. Whatever follows goes to
        `max_fun`, the same for all examples; to mask examples, see `jaxent.mean`.

    Raises:
        ArgumentError: If `max_fun` is not callable.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> loss = jaxent.make_fenchel_young_loss(jax.scipy.special.logsumexp)
        >>> scores, targets = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 1.0]] * 2)
        >>> print(loss(scores, targets))
        [0.31326175 0.6931472 ]

    References:
        Blondel, Martins, Niculae, `Learning with Fenchel-Young Losses
        <https://arxiv.org/abs/1901.02324>`_, 2020.
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

        def of_row(row: jax.Array) -> jax.Array:
            highest = jnp.asarray(max_fun(row, *args, **kwargs))
            _checks.require(
                highest.shape == (),
                f"`max_fun` must return a scalar for scores [V], got {_checks.describe(highest)}.",
            )
            return highest.astype(dtype)

        # Of an impossible class, whose score is -inf, a target of 0 takes 0.
        x, t = jnp.broadcast_arrays(x, t)
        return jnp.vectorize(of_row, signature="(n)->()")(x) - sums.expectation(t, x)

    return fenchel_young_loss
