"""A loss has one value, one gradient and one Hessian, whatever transformation it goes through."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from conformance import level
from conformance.breaking import (
    after,
    with_another_hessian,
    without,
    without_forward_mode,
)
from conformance.case import Case
from conformance.comparing import agree
from conformance.obligation import new_table
from conformance.programs import (
    gradients,
    of_floats,
    of_vector,
    results,
    run,
    values,
)

OBLIGATIONS, obligation = new_table()

# Of which derivative of which: the first two have both orders.
MODES = (
    (jax.jacfwd, jax.jacrev),
    (jax.jacrev, jax.jacfwd),
    (jax.jacfwd, jax.jacfwd),
    (jax.jacrev, jax.jacrev),
)


@obligation(
    lambda loss: lambda *a, **k: loss(*a, **k) + 0.01 * isinstance(a[0], Tracer),
    after(lambda losses: losses + 0.01 * jnp.mean(losses)),
    after(lambda losses: losses + 0.01 * jnp.cumsum(losses, -1) if losses.ndim else losses),
)
def has_one_value_under_every_transformation(case: Case) -> None:
    arguments = case.inputs((2, 3))

    def every_way(*a):
        last = tuple(jnp.moveaxis(each, 1, -1) for each in a)
        return {
            "vmap": jax.vmap(case.loss)(*a),
            "vmap over axis 1": jax.vmap(case.loss, in_axes=1, out_axes=1)(*a),
            "vmap over the last axis": jnp.moveaxis(
                jax.vmap(case.loss, in_axes=-1, out_axes=-1)(*last), -1, 1
            ),
            "vmap of vmap": jax.vmap(jax.vmap(case.loss))(*a),
            "checkpoint": jax.checkpoint(case.loss)(*a),
            "scan": jax.lax.scan(lambda _, each: (None, case.loss(*each)), None, a)[1],
        }

    expected = values(case, arguments)
    agree(run(every_way, *arguments), expected, given=arguments)
    alone = tuple(a[1, 1] if case.has_class_axis else a[1, 1, 0] for a in arguments)
    of_one = expected[1, 1] if case.has_class_axis else expected[1, 1, 0]
    agree({"one example alone": values(case, alone)}, of_one, given=alone)


@obligation(
    without_forward_mode,
    after(lambda losses: losses + 0.01 * jnp.mean(losses)),
    fails_with=(AssertionError, TypeError),
)
def has_one_gradient_under_every_transformation(case: Case) -> None:
    arguments = case.inputs()
    _, floats = of_floats(case, arguments)
    losses = results(case, arguments).losses
    generator = np.random.default_rng(0)
    weights = generator.normal(size=losses.shape).astype(np.float32)
    directions = tuple(generator.normal(size=f.shape).astype(np.float32) for f in floats)

    def weighted(weight, *a, wrap=lambda f: f):
        loss, floats = of_floats(case, a)
        everything = tuple(range(len(floats)))
        return jax.grad(lambda *f: jnp.sum(weight * wrap(loss)(*f)), everything)(*floats)

    def every_way(weights, directions, *a):
        loss, floats = of_floats(case, a)
        linear_value, linear = jax.linearize(loss, *floats)
        value, tangent = jax.jvp(loss, floats, directions)
        by_row = jax.lax.scan(lambda _, each: (None, weighted(*each)), None, (weights, *a))[1]
        found = {
            "checkpoint": weighted(weights, *a, wrap=jax.checkpoint),
            "vmap": jax.vmap(weighted)(weights, *a),
            "scan": by_row,
            "transpose of linearize": jax.linear_transpose(linear, *floats)(weights),
        }
        primals = {"linearize": linear_value, "jvp": value}
        return found, primals, {"jvp": tangent, "linearize": linear(*directions)}

    expected = run(weighted, weights, *arguments)
    found, primals, tangents = run(every_way, weights, directions, *arguments)
    agree(found, expected, given=arguments)
    agree(primals, losses, given=arguments)
    agree(tangents, tangents["jvp"], given=arguments)
    assert all(g.dtype == np.float32 for g in (*expected, tangents["jvp"]))
    by_hand = sum(np.vdot(g, d) for g, d in zip(expected, directions, strict=True))
    agree({"jvp": np.vdot(weights, tangents["jvp"])}, by_hand, given=arguments, rtol=3e-6)


@obligation(without_forward_mode, with_another_hessian, fails_with=(AssertionError, TypeError))
def has_one_hessian_in_every_mode(case: Case) -> None:
    arguments = case.inputs((1,))
    one = tuple(a[0] if case.has_class_axis else a[0, 0] for a in arguments)
    loss, point = of_vector(case, one)
    modes = level.chosen(MODES, fast=2)
    steps = np.float32(5e-3) * np.eye(point.size, dtype=np.float32)

    def every_way(point):
        grad = jax.vmap(jax.grad(loss))
        near, far = (
            grad(point[None] + size * steps) - grad(point[None] - size * steps) for size in (1, 2)
        )
        differences = (8 * near - far) / 6e-2  # of the fourth order
        return differences, {
            f"{outer.__name__} of {inner.__name__}": outer(inner(loss))(point)
            for outer, inner in modes
        }

    differences, hessians = run(every_way, point)
    first = next(iter(hessians.values()))
    agree(hessians, first, given=arguments, rtol=2e-6)
    agree({"transposed": first.T}, first, given=arguments, rtol=2e-6)
    # Differences see what an argument does that counts as a constant.
    varies = np.array([each.name not in case.constants for each in case.arguments])
    moved = np.flatnonzero(varies) if case.constants else np.arange(point.size)
    np.testing.assert_allclose(first[moved], differences[moved], atol=2e-3)


@obligation(
    without("axis"),
    lambda loss: lambda *a, axis=-1, **k: loss(*a, axis=axis if axis != -2 else -1, **k),
    to=lambda case: case.has_class_axis,
)
def takes_any_axis(case: Case) -> None:
    arguments = case.inputs((4, 3), classes=6)

    def move(array, axis):
        return jnp.moveaxis(array, -1, axis) if array.ndim == 3 else array

    def unfold(array, pair):
        """The classes as two axes, [2, 3], put at the places of the pair."""
        if array.ndim < 3:
            return array
        return jnp.moveaxis(array.reshape(4, 3, 2, 3), (2, 3), pair)

    def every_way(*a):
        moved = {axis: tuple(move(each, axis) for each in a) for axis in range(-3, 3)}
        losses = {f"axis {axis}": case.loss(*given, axis=axis) for axis, given in moved.items()}
        for pair in ((2, 3), (-1, 0), (1, 3)):
            losses[f"axes {pair}"] = case.loss(*(unfold(each, pair) for each in a), axis=pair)
        grads = {
            f"gradient over axis {axis}": tuple(
                jnp.moveaxis(grad, axis, -1) for grad in gradients(case, moved[axis], axis=axis)
            )
            for axis in (-3, -2)
        }
        return losses, grads

    expected = results(case, arguments)
    losses, grads = run(every_way, *arguments)
    agree(losses, expected.losses, given=arguments)
    agree(grads, expected.gradients, given=arguments)
