"""The row sweep: equal to the unfused loss in every derivative, and as small as promised."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from heads.compiled import buffers, products, temporaries
from heads.derivatives import weighted

ROWS, FEATURES, CLASSES = 23, 5, 13  # primes, so that no chunk and no vector lane comes out even
cross_entropy = jaxent.softmax_cross_entropy_with_integer_labels


def squared(logits, targets):
    """A loss that is no softmax, with floating point arguments per row."""
    return jnp.sum(jnp.square(logits - targets), axis=-1)


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 6)
    return {
        "hidden": jax.random.normal(keys[0], (ROWS, FEATURES)),
        "kernel": jax.random.normal(keys[1], (FEATURES, CLASSES)),
        "bias": jax.random.normal(keys[2], (CLASSES,)),
        "weights": jax.random.uniform(keys[3], (ROWS,), minval=0.5),
        "labels": jax.random.randint(keys[4], (ROWS,), 0, CLASSES),
        "targets": jax.random.normal(keys[5], (ROWS, CLASSES)),
        "where": jnp.arange(ROWS) % 3 != 1,
    }


def relative_error(actual, expected):
    """The largest error of any leaf, relative to the leaf's largest entry."""

    def error(a, e):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape
        return np.max(np.abs(a - e), initial=0) / max(np.max(np.abs(e), initial=0), 1e-30)

    return max(jax.tree.leaves(jax.tree.map(error, actual, expected)))


def make_pair(inputs, reduction, loss, layout, masked, biased):
    """The streamed and the unfused function of (hidden, kernel, bias, weights, row argument)."""
    where = inputs["where"] if masked else None

    def streamed(hidden, kernel, bias, weights, argument):
        return jaxent.linear_loss(
            cross_entropy if loss == "labels" else squared,
            hidden,
            kernel.T if layout == 0 else kernel,
            inputs["labels"] if loss == "labels" else argument,
            bias=bias if biased else None,
            vocab_axis=layout,
            where=where,
            weights=weights if masked else None,
            reduction=reduction,
            chunk_size=4,
        )

    def unfused(hidden, kernel, bias, weights, argument):
        logits = hidden @ kernel
        logits = logits + bias[None] if biased else logits
        if loss == "labels":
            losses = cross_entropy(logits, inputs["labels"])
        else:
            losses = squared(logits, argument)
        if reduction == "mean":
            return jaxent.mean(losses, where, weights if masked else None)
        if masked:
            losses = jnp.where(inputs["where"], losses * weights, 0.0)
        return jnp.sum(losses) if reduction == "sum" else losses

    return streamed, unfused


CASES = [
    ("mean", "labels", -1, True, True),
    ("mean", "targets", 0, False, False),
    ("sum", "targets", 1, True, True),
    ("sum", "labels", 0, False, True),
    ("none", "labels", 0, True, True),
    ("none", "targets", -1, False, False),
]


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_equals_the_unfused_loss_in_every_derivative(inputs, case):
    arguments = tuple(inputs[n] for n in ("hidden", "kernel", "bias", "weights", "targets"))
    directions = tuple(jnp.cos(a + 1) for a in arguments)
    numbers = tuple(range(len(arguments)))
    cotangent = jnp.sin(jnp.arange(float(ROWS))) if case[0] == "none" else 1.0

    @functools.partial(jax.jit, static_argnums=0)  # one program: compiling takes all the time
    def everything(function):
        scalar, grad, slope_along = weighted(function, cotangent, directions)

        def scanned(*a):
            step = lambda total, scale: (total + scalar(a[0] * scale, *a[1:]), None)  # noqa: E731
            return jax.lax.scan(step, 0.0, jnp.array([0.5, 1.0, 2.0]))[0]

        stacked = jnp.stack([arguments[0], 2 * arguments[0]])
        return {
            "value": function(*arguments),
            "grad": grad(*arguments),
            "jvp": jax.jvp(function, arguments, directions),
            "jvp(grad)": jax.jvp(grad, arguments, directions),
            "grad(grad)": jax.grad(slope_along, numbers)(*arguments),
            "hessian": jax.hessian(scalar, (0, 2))(*arguments),
            "vmap(grad)": jax.vmap(grad, (0, *[None] * 4))(stacked, *arguments[1:]),
            "linearize": jax.linearize(function, *arguments)[1](*directions),
            "checkpoint": jax.grad(jax.checkpoint(scalar), numbers)(*arguments),
            "scan": jax.grad(scanned, (0, 1))(*arguments),
        }

    streamed, unfused = (everything(function) for function in make_pair(inputs, *case))
    errors = {name: relative_error(streamed[name], unfused[name]) for name in unfused}
    assert max(errors.values()) < 3e-6, errors
    assert max(errors[name] for name in ("value", "grad")) < 1e-6, errors


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("rows", [1, 2, 3, 23, 24])
@pytest.mark.parametrize("chunk_size", [1, 5, 23, 100, None])
def test_any_number_of_rows_and_any_chunk(inputs, rows, chunk_size):
    hidden = jnp.resize(inputs["hidden"], (rows, FEATURES))
    labels = jnp.resize(inputs["labels"], (rows,))

    def streamed(hidden, kernel):
        return jaxent.linear_loss(cross_entropy, hidden, kernel, labels, chunk_size=chunk_size)

    def unfused(hidden, kernel):
        return jnp.mean(cross_entropy(hidden @ kernel, labels))

    actual, expected = (
        jax.value_and_grad(f, (0, 1))(hidden, inputs["kernel"]) for f in (streamed, unfused)
    )
    assert relative_error(actual, expected) < 1e-6


def test_leading_axes_are_kept(inputs):
    hidden = jnp.resize(inputs["hidden"], (2, 3, 4, FEATURES))
    labels = jnp.resize(inputs["labels"], (2, 3, 4))
    losses = jaxent.linear_loss(
        cross_entropy, hidden, inputs["kernel"], labels, reduction="none", chunk_size=7
    )
    expected = cross_entropy(hidden @ inputs["kernel"], labels)
    assert losses.shape == (2, 3, 4)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def of_nested_functions(temperature, prior):
    held = {"temperature": temperature, "priors": [prior]}

    def loss(logits, labels):
        def inner(logits):
            return cross_entropy(logits / held["temperature"] + held["priors"][0][None], labels)

        return inner(logits)

    return loss


def of_a_partial_function(temperature, prior):
    def loss(prior, logits, labels, *, temperature):
        return cross_entropy(logits / temperature + prior[None], labels)

    return functools.partial(loss, prior, temperature=temperature)


def of_defaults(temperature, prior):
    def loss(logits, labels, temperature=temperature, *, prior=prior):
        return cross_entropy(logits / temperature + prior[None], labels)

    return loss


def of_an_object(temperature, prior):
    class Loss:
        def __init__(self):
            self.held = temperature, prior

        def __call__(self, logits, labels):
            temperature, prior = self.held
            return cross_entropy(logits / temperature + prior[None], labels)

    return Loss()


def of_a_jitted_function(temperature, prior):
    return jax.jit(lambda z, y: cross_entropy(z / temperature + prior[None], y))


def of_a_mapped_function(temperature, prior):
    return jax.vmap(lambda z, y: cross_entropy(z / temperature + prior, y))


def of_a_scan(temperature, prior):
    def loss(logits, labels):
        def step(total, scale):
            return total + cross_entropy(logits / temperature * scale + prior[None], labels), None

        return jax.lax.scan(step, jnp.zeros(logits.shape[0]), jnp.array([0.5, 1.0]))[0]

    return loss


def of_a_branch(temperature, prior):
    def loss(logits, labels):
        shift = jax.lax.cond(temperature > 1.0, lambda: prior, lambda: 2.0 * prior)
        return cross_entropy(logits / temperature + shift[None], labels)

    return loss


def of_a_derivative(temperature, prior):
    def loss(logits, labels):
        slope = jax.grad(lambda z: jnp.sum(cross_entropy(z / temperature + prior[None], labels)))
        return jnp.sum(jnp.square(slope(logits)), axis=-1)

    return loss


def of_a_custom_rule(temperature, prior):
    """The rule is handed what it depends on; only the loss around it closes over it."""

    @jax.custom_jvp
    def divided(logits, temperature):
        return logits / temperature

    @divided.defjvp
    def _(primals, tangents):
        (logits, temperature), (logits_dot, temperature_dot) = primals, tangents
        result = divided(logits, temperature)
        return result, (logits_dot - result * temperature_dot) / temperature

    return lambda z, y: cross_entropy(divided(z, temperature) + prior[None], y)


CLOSURES = (
    of_nested_functions,
    of_a_partial_function,
    of_defaults,
    of_an_object,
    of_a_jitted_function,
    of_a_mapped_function,
    of_a_scan,
    of_a_branch,
    of_a_derivative,
    of_a_custom_rule,
)
TRANSFORMS = {
    "eager": lambda f, a: jax.grad(f, (0, 1))(*a),
    "jit": lambda f, a: jax.jit(jax.grad(f, (0, 1)))(*a),
    "inner jit": lambda f, a: jax.grad(jax.jit(f), (0, 1))(*a),
    "jvp": lambda f, a: jax.jvp(jax.jit(f), a, a),
    "hessian": lambda f, a: jax.jit(jax.hessian(f, (0, 1)))(*a),
    "vmap": lambda f, a: jax.jit(jax.vmap(jax.grad(f), (0, None)))(jnp.array([1.0, 2.0]), a[1]),
    "vmap of jit": lambda f, a: jax.vmap(jax.jit(jax.grad(f)), (0, None))(jnp.ones(2), a[1]),
    "checkpoint": lambda f, a: jax.jit(jax.grad(jax.checkpoint(f), (0, 1)))(*a),
}
# Every closure in two transformations, each transformation on one closure or more.
SOME = {
    (make, list(TRANSFORMS)[(i + k) % len(TRANSFORMS)])
    for i, make in enumerate(CLOSURES)
    for k in (0, 4)
}


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize(
    ("make", "transform"),
    [
        pytest.param(m, t, marks=() if (m, t) in SOME else pytest.mark.thorough)
        for m in CLOSURES
        for t in TRANSFORMS
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_values_that_the_loss_closes_over_are_differentiated(inputs, make, transform):
    hidden, kernel, labels, where = (inputs[n] for n in ("hidden", "kernel", "labels", "where"))

    def streamed(temperature, prior):
        loss = make(temperature, prior)
        return jaxent.linear_loss(loss, hidden, kernel, labels, where=where, chunk_size=4)

    def unfused(temperature, prior):
        return jaxent.mean(make(temperature, prior)(hidden @ kernel, labels), where)

    arguments = jnp.float32(1.7), inputs["bias"]
    actual, expected = (TRANSFORMS[transform](f, arguments) for f in (streamed, unfused))
    assert relative_error(actual, expected) < 3e-6


def test_a_python_number_that_the_loss_closes_over(inputs):
    hidden, kernel, labels = inputs["hidden"], inputs["kernel"], inputs["labels"]

    def streamed(temperature, reduction):
        loss = lambda z, y: cross_entropy(z / temperature, y)  # noqa: E731
        return jnp.sum(jaxent.linear_loss(loss, hidden, kernel, labels, reduction=reduction))

    expected = jax.grad(lambda t: jnp.sum(cross_entropy(hidden @ kernel / t, labels)))(2.0)
    for reduction in ("sum", "none"):
        np.testing.assert_allclose(jax.grad(streamed)(2.0, reduction), expected, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_derivative_rule_that_closes_over_what_is_differentiated_is_refused(inputs, reduction):
    def streamed(temperature):
        @jax.custom_jvp
        def divided(logits):
            return logits / temperature

        divided.defjvp(lambda primals, tangents: (divided(*primals), tangents[0] / temperature))
        losses = jaxent.linear_loss(
            lambda z, y: cross_entropy(divided(z), y),
            *(inputs["hidden"], inputs["kernel"], inputs["labels"]),
            reduction=reduction,
        )
        return jnp.sum(losses)

    with pytest.raises(AssertionError, match=r"linear_loss: .* pass that value as an argument"):
        jax.grad(streamed)(2.0)
    assert jnp.isfinite(streamed(2.0))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_masked_rows_do_not_reach_what_the_loss_closes_over(inputs, reduction):
    """The loss is not defined for rows of zeros, and yet nothing is NaN; nor if no row counts."""

    @jax.jit
    def value_and_slope(temperature, where):
        def streamed(temperature):
            def loss(logits, scale):
                length = jnp.sqrt(jnp.sum(jnp.square(logits), axis=-1))
                return temperature * length / scale

            hidden = jnp.where(where[:, None], inputs["hidden"], jnp.nan)
            scale = jnp.where(where, 2.0, 0.0)
            losses = jaxent.linear_loss(
                loss, hidden, inputs["kernel"], scale, where=where, reduction=reduction
            )
            return jnp.sum(losses)

        return jax.value_and_grad(streamed)(temperature)

    value, slope = value_and_slope(1.5, inputs["where"])
    assert jnp.isfinite(value)
    np.testing.assert_allclose(slope, value / 1.5, rtol=1e-6)
    np.testing.assert_array_equal(value_and_slope(1.5, jnp.zeros(ROWS, bool)), 0.0)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("make", [of_nested_functions, of_defaults])
def test_no_value_of_a_transformation_is_kept(inputs, make):
    arrays = inputs["hidden"], inputs["kernel"], inputs["labels"]
    with jax.checking_leaks():
        jax.grad(lambda t: jaxent.linear_loss(make(t, inputs["bias"]), *arrays))(1.5)


def test_integers_that_the_loss_closes_over_may_be_mapped(inputs):
    def streamed(kernel, offset):
        loss = lambda z, y: cross_entropy(z, (y + offset) % CLASSES)  # noqa: E731
        return jaxent.linear_loss(loss, inputs["hidden"], kernel, inputs["labels"], chunk_size=4)

    def unfused(kernel, offset):
        labels = (inputs["labels"] + offset) % CLASSES
        return jnp.mean(cross_entropy(inputs["hidden"] @ kernel, labels))

    def mapped(function):
        return jax.jit(jax.vmap(jax.grad(function), (None, 0)))(inputs["kernel"], jnp.arange(3))

    assert relative_error(mapped(streamed), mapped(unfused)) < 1e-6


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("garbage", [jnp.nan, jnp.inf, -jnp.inf])
def test_masked_rows_have_no_influence_whatever_they_hold(inputs, reduction, garbage):
    where = inputs["where"]

    def value_and_gradients(hidden, labels, weights):
        def streamed(hidden, kernel, weights):
            losses = jaxent.linear_loss(
                cross_entropy,
                hidden,
                kernel,
                labels,
                where=where,
                weights=weights,
                reduction=reduction,
                chunk_size=4,
            )
            return jnp.sum(losses)

        return jax.value_and_grad(streamed, (0, 1, 2))(hidden, inputs["kernel"], weights)

    clean = value_and_gradients(inputs["hidden"], inputs["labels"], inputs["weights"])
    dirty = value_and_gradients(
        jnp.where(where[:, None], inputs["hidden"], garbage),
        jnp.where(where, inputs["labels"], -100),
        jnp.where(where, inputs["weights"], garbage),
    )
    for c, d in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(c, d)
    np.testing.assert_array_equal(dirty[1][0][~where], 0.0)


def test_a_loss_that_is_nan_for_masked_rows_only_is_harmless(inputs):
    where = inputs["where"]
    scale = jnp.where(where, 1.0, 0.0)
    loss = lambda logits, scale: jnp.sum(jnp.square(logits), -1) / scale  # noqa: E731
    for reduction in ("mean", "none"):
        gradient = jax.grad(
            lambda h, r=reduction: jnp.sum(
                jaxent.linear_loss(
                    loss, h, inputs["kernel"], scale, where=where, reduction=r, chunk_size=4
                )
            )
        )(inputs["hidden"])
        assert jnp.all(jnp.isfinite(gradient))


def test_bad_rows_that_are_not_masked_are_loud(inputs):
    bad = inputs["labels"].at[3].set(CLASSES)
    value, gradient = jax.value_and_grad(
        lambda kernel: jaxent.linear_loss(cross_entropy, inputs["hidden"], kernel, bad)
    )(inputs["kernel"])
    assert jnp.isnan(value)
    assert jnp.all(jnp.isnan(gradient))
    hidden = inputs["hidden"].at[3].set(jnp.nan)
    weights = jnp.ones(ROWS).at[3].set(0.0)
    value = jaxent.linear_loss(
        cross_entropy, hidden, inputs["kernel"], inputs["labels"], weights=weights
    )
    assert jnp.isnan(value)  # weights are no mask


def test_an_infinite_loss_in_a_row_that_fills_a_chunk_counts_once(inputs):
    """Rows that fill the last chunk are copies of the first; 0 * inf must not come of them."""
    hidden = jnp.ones((5, 1))
    kernel = jnp.array([[0.0, -jnp.inf]])
    labels = jnp.array([1, 0, 0, 0, 0])
    total = jaxent.linear_loss(cross_entropy, hidden, kernel, labels, reduction="sum", chunk_size=3)
    assert total == jnp.inf
    assert inputs["hidden"].shape[0] == ROWS


def test_nothing_is_zero_with_zero_gradient(inputs):
    def streamed(hidden, kernel, where):
        return jaxent.linear_loss(
            cross_entropy, hidden, kernel, inputs["labels"], where=where, chunk_size=4
        )

    value, gradients = jax.value_and_grad(streamed, (0, 1))(
        inputs["hidden"], inputs["kernel"], jnp.zeros(ROWS, bool)
    )
    assert value == 0.0
    assert all(jnp.all(g == 0.0) for g in gradients)
    empty, labels = jnp.zeros((0, FEATURES)), jnp.zeros(0, jnp.int32)
    for reduction, shape in (("mean", ()), ("sum", ()), ("none", (0,))):
        value = jaxent.linear_loss(
            cross_entropy, empty, inputs["kernel"], labels, reduction=reduction
        )
        assert value.shape == shape
        assert jnp.all(value == 0.0)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_sixteen_bits_err_no_more_than_the_unfused_loss(inputs, dtype, reduction):
    """Three-way: against float64 truth, streamed may not err more than plain 16-bit logits."""
    rows, features, classes = 401, 64, 211
    keys = jax.random.split(jax.random.key(1), 3)
    hidden = jax.random.normal(keys[0], (rows, features)).astype(dtype)
    kernel = (jax.random.normal(keys[1], (features, classes)) / 8).astype(dtype)
    labels = jax.random.randint(keys[2], (rows,), 0, classes)

    def streamed(hidden, kernel):
        return jnp.mean(
            jaxent.linear_loss(
                cross_entropy, hidden, kernel, labels, reduction=reduction, chunk_size=16
            )
        )

    def unfused(hidden, kernel):
        return jnp.mean(cross_entropy(hidden @ kernel, labels))

    def value_and_gradients(function, *arrays):
        return jax.tree.leaves(jax.value_and_grad(function, (0, 1))(*arrays))

    streamed_result = value_and_gradients(streamed, hidden, kernel)
    unfused_result = value_and_gradients(unfused, hidden, kernel)
    truth = _float64_truth(hidden, kernel, labels)
    assert inputs["hidden"].dtype == jnp.float32
    for s, u, t in zip(streamed_result, unfused_result, truth, strict=True):
        s, u = np.asarray(s, np.float64), np.asarray(u, np.float64)
        assert np.linalg.norm(s - t) <= 1.1 * np.linalg.norm(u - t) + 1e-7 * np.linalg.norm(t)
    assert [r.dtype for r in streamed_result] == [jnp.float32, dtype, dtype]


def _float64_truth(hidden, kernel, labels):
    """Mean cross-entropy and its gradients in NumPy's float64."""
    hidden, kernel = np.asarray(hidden, np.float64), np.asarray(kernel, np.float64)
    logits = hidden @ kernel
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    index = np.arange(len(hidden)), np.asarray(labels)
    slope = np.exp(log_p)
    slope[index] -= 1
    slope /= len(hidden)
    return -log_p[index].mean(), slope @ kernel.T, hidden.T @ slope


def test_agrees_to_a_millionth_with_plain_logits_at_a_realistic_size():
    keys = jax.random.split(jax.random.key(2), 3)
    hidden = jax.random.normal(keys[0], (509, 128))
    kernel = jax.random.normal(keys[1], (128, 8191)) / 8
    labels = jax.random.randint(keys[2], (509,), 0, 8191)
    actual, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, kernel)
        for f in (
            lambda h, k: jaxent.linear_loss(cross_entropy, h, k, labels, chunk_size=64),
            lambda h, k: jnp.mean(cross_entropy(h @ k, labels)),
        )
    )
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert np.linalg.norm(a - e) < 1e-6 * np.linalg.norm(e)


# What the compiler makes of it.

N, D, V = 8192, 512, 131072


def compiled(arguments, dtype=jnp.float32, vocab_axis=-1, **options):
    def loss(hidden, kernel, labels):
        losses = jaxent.linear_softmax_cross_entropy(
            hidden, kernel, labels, vocab_axis=vocab_axis, **options
        )
        return jnp.sum(losses)

    shapes = (
        jax.ShapeDtypeStruct((N, D), dtype),
        jax.ShapeDtypeStruct((D, V) if vocab_axis else (V, D), dtype),
        jax.ShapeDtypeStruct((N,), jnp.int32),
    )
    return jax.jit(jax.value_and_grad(loss, arguments)).lower(*shapes).compile()


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("vocab_axis", [-1, 0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradients_need_three_products_and_little_memory(dtype, vocab_axis):
    program = compiled((0, 1), dtype, vocab_axis)
    assert products(program) == 3
    # Compilers for CPUs up to JAX 0.7 widen a 16-bit kernel for the products.
    assert temporaries(program) <= (768 if dtype == jnp.float32 else 896) * 2**20
    assert not buffers(program, N, V)
    # Nothing of the kernel's size is transposed.
    transposed = (V, D) if vocab_axis else (D, V)
    assert not buffers(program, *transposed)


def test_a_frozen_kernel_costs_two_products_and_no_buffer_of_its_size():
    program = compiled(0)
    assert products(program) == 2
    assert not buffers(program, D, V)
    assert temporaries(program) <= 320 * 2**20
    assert buffers(compiled(1), D, V)  # the check above can fail


def test_a_loss_per_row_is_recomputed_in_chunks():
    program = compiled((0, 1), reduction="none")
    assert products(program) == 4
    assert not buffers(program, N, V)
    assert temporaries(program) <= 768 * 2**20


def test_the_value_alone_needs_one_product():
    def loss(hidden, kernel, labels):
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels)

    shapes = (
        jax.ShapeDtypeStruct((N, D), jnp.float32),
        jax.ShapeDtypeStruct((D, V), jnp.float32),
        jax.ShapeDtypeStruct((N,), jnp.int32),
    )
    program = jax.jit(loss).lower(*shapes).compile()
    assert products(program) == 1
    assert temporaries(program) <= 320 * 2**20


REFUSALS = {
    "loss_fn": {"loss_fn": lambda z, y: jnp.mean(cross_entropy(z, y))},
    "hidden": {"hidden": np.zeros((ROWS, FEATURES), np.int32)},
    "vocab_axis=0": {"kernel": np.zeros((CLASSES, FEATURES), np.float32)},
    "kernel": {"kernel": np.zeros((FEATURES, 0), np.float32)},
    "row_args[0]": {"labels": np.zeros(ROWS - 1, np.int32)},
    "bias": {"bias": np.zeros(CLASSES + 1, np.float32)},
    "where": {"where": np.zeros(ROWS - 1, bool)},
    "weights": {"weights": np.zeros((ROWS, 1), np.float32)},
    "reduction": {"reduction": "average"},
    "chunk_size": {"chunk_size": 0},
    "vocab_axis": {"vocab_axis": 2},
    "boolean": {"where": np.zeros(ROWS, np.int32)},
}


@pytest.mark.parametrize("words", REFUSALS)
def test_refusals_name_the_argument(inputs, words):
    given = {name: inputs[name] for name in ("hidden", "kernel", "labels")}
    given |= {"loss_fn": cross_entropy} | REFUSALS[words]
    data = [given.pop(name) for name in ("loss_fn", "hidden", "kernel", "labels")]
    with pytest.raises(AssertionError, match=rf"jaxent\.linear_loss: .*{re.escape(words)}"):
        jaxent.linear_loss(*data, **given)
