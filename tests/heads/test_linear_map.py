"""A linear function with a transpose of its own: when that is used, and that all else is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxent._heads.linear_map import linear_map

SIZE = 3


@pytest.fixture
def calls():
    """What the transpose was handed, one entry per call."""
    return []


@pytest.fixture
def mapped(calls):
    """Two results of (residual, operand), and what stands in for the function once compiled."""

    def function(residuals, operands):
        def step(total, scale):
            return total + scale * residuals["scale"] * operands["x"], None

        start = jnp.zeros_like(operands["x"])
        total, _ = jax.lax.scan(step, start, jnp.arange(1.0, 3.0))
        return total, operands["x"] - operands["y"]

    def transpose(residuals, cotangents):
        calls.append(tuple(cotangent is not None for cotangent in cotangents))
        total, difference = cotangents
        x = y = jnp.zeros(SIZE)
        if total is not None:
            x += 3.0 * residuals["scale"] * total
        if difference is not None:
            x, y = x + difference, y - difference
        return {"x": x, "y": y}

    def map_(scale, x, y):
        return linear_map(function, transpose, {"scale": scale}, {"x": x, "y": y})

    return map_


def plain(scale, x, y):
    """The same function."""
    return 3.0 * scale * x, x - y


@pytest.fixture(scope="module")
def arguments():
    return jnp.arange(1.0, 4.0), jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0, 0.0, -3.0])


def assert_equal(actual, expected):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), actual, expected)


def squares(function):
    """A scalar that is not linear, so that second derivatives say something."""
    return lambda *arguments: sum(jnp.sum(jnp.square(r)) for r in function(*arguments))


def test_the_value_is_that_of_the_function(mapped, arguments):
    assert_equal(mapped(*arguments), plain(*arguments))
    assert_equal(jax.jit(mapped)(*arguments), plain(*arguments))


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_the_gradient_in_the_operands_is_by_the_given_transpose(mapped, calls, arguments, wrap):
    gradient = jax.grad(wrap(squares(mapped)), (1, 2))(*arguments)
    assert_equal(gradient, jax.grad(squares(plain), (1, 2))(*arguments))
    assert calls == [(True, True)]


def test_the_transpose_hears_of_results_that_are_not_used(mapped, calls, arguments):
    for index in range(2):
        of_one = [lambda *a, f=f, i=index: jnp.sum(f(*a)[i]) for f in (mapped, plain)]
        actual, expected = (jax.grad(f, (1, 2))(*arguments) for f in of_one)
        assert_equal(actual, expected)
    assert calls == [(True, False), (False, True)]


def test_only_operands_that_are_asked_for_get_cotangents(mapped, calls, arguments):
    scale, x, y = arguments
    for index in (1, 2):
        actual = jax.grad(squares(mapped), index)(scale, x, y)
        assert_equal(actual, jax.grad(squares(plain), index)(scale, x, y))
    transposed = jax.linear_transpose(lambda y: mapped(scale, jnp.zeros(SIZE), y), y)
    assert_equal(transposed((x, y)), (-y,))
    assert len(calls) == 3


def test_the_residuals_are_differentiated_too(mapped, calls, arguments):
    actual = jax.grad(squares(mapped), (0, 1, 2))(*arguments)
    assert_equal(actual, jax.grad(squares(plain), (0, 1, 2))(*arguments))
    assert calls == [(True, True)]
    assert_equal(jax.grad(squares(mapped))(*arguments), jax.grad(squares(plain))(*arguments))


def test_forward_mode_is_that_of_the_function(mapped, calls, arguments):
    directions = tuple(jnp.cos(a) for a in arguments)
    for moving in ((0, 1, 2), (0,), (1,), (1, 2)):
        points, along = ([whole[i] for i in moving] for whole in (arguments, directions))

        def of(function, moving=moving):
            def some(*values):
                given = dict(enumerate(arguments)) | dict(zip(moving, values, strict=True))
                return function(*given.values())

            return some

        actual, expected = (jax.jvp(of(f), points, along) for f in (mapped, plain))
        assert_equal(actual, expected)
        assert_equal(jax.linearize(of(mapped), *points)[1](*along), expected[1])
    assert not calls


def test_second_derivatives_are_right(mapped, arguments):
    numbers = (0, 1, 2)

    def everything(function):
        scalar, directions = squares(function), tuple(jnp.cos(a) for a in arguments)
        gradient = jax.grad(scalar, numbers)

        def along(*a):
            return jax.jvp(scalar, a, directions)[1]

        return {
            "forward over reverse": jax.jvp(gradient, arguments, directions),
            "reverse over reverse": jax.vjp(gradient, *arguments)[1](directions),
            "reverse over forward": jax.grad(along, numbers)(*arguments),
            "forward over forward": jax.jvp(along, arguments, directions),
        }

    actual, expected = (jax.jit(everything, static_argnums=0)(f) for f in (mapped, plain))
    assert_equal(actual, expected)


@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, 1)])
def test_maps_are_right_and_so_are_their_gradients(mapped, arguments, axes):
    stacked = tuple(
        a if axis is None else jnp.stack([a, 2.0 * a], axis)
        for a, axis in zip(arguments, axes, strict=True)
    )

    def everything(function):
        def total(*a):
            return jnp.sum(jax.vmap(squares(function), axes)(*a) * jnp.array([1.0, -2.0]))

        return {
            "value": jax.vmap(function, axes)(*stacked),
            "vmap(grad)": jax.vmap(jax.grad(squares(function), (0, 1, 2)), axes)(*stacked),
            "grad(vmap)": jax.grad(total, (0, 1, 2))(*stacked),
            "jvp(vmap)": jax.jvp(total, stacked, stacked),
            "jvp(grad(vmap))": jax.jvp(jax.grad(total, (0, 1, 2)), stacked, stacked),
        }

    actual, expected = (jax.jit(everything, static_argnums=0)(f) for f in (mapped, plain))
    assert_equal(actual, expected)


def test_what_is_compiled_may_be_another_program(arguments):
    """It is run wherever nothing differentiates or maps any more, and nowhere else."""
    scale, x, _ = arguments

    def of(scale, x):
        return linear_map(
            lambda residual, operand: (residual * operand,),
            lambda residual, cotangents: residual * cotangents[0],
            scale,
            x,
            compiled=lambda residual, operand: (residual * operand + 1000.0,),
        )[0]

    assert_equal(of(scale, x), scale * x + 1000.0)
    assert_equal(jax.jit(of)(scale, x), scale * x + 1000.0)
    assert_equal(jax.grad(lambda x: jnp.sum(of(scale, x)))(x), scale)
    assert_equal(jax.vmap(of, (None, 0))(scale, jnp.stack([x])), (scale * x)[None])


def test_loops_may_hold_it(mapped, calls, arguments):
    scale, x, y = arguments

    def looped(function):
        def step(carry, _):
            total, difference = function(scale, 0.1 * carry, y)
            return total + difference, None

        return lambda x: jnp.sum(jax.lax.scan(step, x, None, length=3)[0])

    actual, expected = (jax.grad(looped(f))(x) for f in (mapped, plain))
    assert_equal(actual, expected)
    assert calls
