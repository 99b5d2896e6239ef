"""The column sweep: what it says of each row is exact, in every derivative, and costs little."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from conformance import logit_divergence, oracle, softmax
from conformance.case import with_float64
from conformance.inputs import Family, few_integer_labels, integer_labels, together
from conformance.oracle import Truth
from heads.compiled import buffers, products, temporaries
from jaxent._heads.columns import sweep
from jaxent._heads.tiling import make_tiling

# Primes, so that no block and no tile comes out even. (Of five features XLA for CPUs in JAX 0.7
# makes wrong products in float64.)
ROWS, FEATURES, CLASSES = 23, 3, 13
RESULTS = ("cross_entropy", "log_normalizer", "uniform_cross_entropy", "entropy", "top_logit")
dense_cross_entropy = jaxent.softmax_cross_entropy_with_integer_labels


@pytest.fixture
def several_tiles(monkeypatch):
    """Rows cut into three tiles, where there would be one until there are very many."""
    plan_columns, uses = sweep.plan_columns, []
    traced: Any = sweep._linear_softmax_stats

    def with_three_tiles(head, *options):
        uses.append(head)
        plan = plan_columns(head, *options)
        size = -(-math.prod(head.leading_shape) // 3)
        return plan._replace(tiling=make_tiling(plan.tiling.shape, size, 1))

    monkeypatch.setattr(sweep, "plan_columns", with_three_tiles)
    traced.clear_cache()  # of what other tests have traced, and for them
    yield
    traced.clear_cache()
    assert uses


def make_inputs(rows=ROWS, classes=CLASSES, dtype=np.float32):
    generator = np.random.default_rng([rows, classes])
    arrays = {
        "hidden": generator.normal(size=(rows, FEATURES)),
        "kernel": generator.normal(size=(FEATURES, classes)),
        "bias": generator.normal(size=classes),
    }
    inputs = {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
    labels = jnp.asarray(generator.integers(classes, size=rows), jnp.int32)
    return inputs | {"labels": labels, "where": jnp.arange(rows) % 3 != 1}


@pytest.fixture(scope="module")
def inputs():
    return make_inputs()


def statistics_of(logits, labels):
    """The differentiable results, from all logits at once and by their definitions."""
    top = jnp.max(logits, axis=-1)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    at_label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    mean, expected = jnp.mean(logits, axis=-1), jnp.sum(jax.nn.softmax(logits) * logits, axis=-1)
    return (
        log_normalizer - at_label,
        log_normalizer,
        log_normalizer - mean,
        log_normalizer - expected,
        top,
    )


def differentiable(results):
    return tuple(getattr(results, name) for name in RESULTS)


def relative_error(actual, expected):
    """The largest error of any leaf, relative to the leaf's largest entry."""

    def error(a, e):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape
        difference = np.where(a == e, 0.0, np.abs(a - e))
        return np.max(difference, initial=0) / max(np.max(np.abs(e), initial=0), 1e-30)

    return max(jax.tree.leaves(jax.tree.map(error, actual, expected)))


# Equal to the unfused statistics.


def make_pair(labels, where, class_where, layout, capped, block_size):
    """The streamed and the unfused results of (hidden, kernel, bias, soft_cap, temperature)."""
    kept = np.arange(CLASSES) if class_where is None else np.flatnonzero(class_where)
    new_index = jnp.asarray(np.searchsorted(kept, np.arange(CLASSES)), jnp.int32)

    def streamed(hidden, kernel, bias, soft_cap, temperature, labels=labels):
        results = jaxent.linear_softmax(
            hidden,
            kernel.T if layout == 0 else kernel,
            labels,
            bias=bias if capped else None,
            vocab_axis=layout,
            soft_cap=soft_cap if capped else None,
            temperature=temperature if capped else 1.0,
            where=where,
            class_where=class_where,
            block_size=block_size,
        )
        return differentiable(results)

    def unfused(hidden, kernel, bias, soft_cap, temperature, labels=labels):
        logits = hidden @ kernel
        if capped:
            logits = logits + bias.reshape(*[1] * (logits.ndim - 1), -1)
            logits = soft_cap * jnp.tanh(logits / soft_cap) / temperature
        results = statistics_of(logits[..., kept], new_index[labels])
        return results if where is None else tuple(jnp.where(where, r, 0.0) for r in results)

    return streamed, unfused


def every_derivative(arguments, cotangents, function):
    """Of all results together: one program, since compiling takes all the time."""
    numbers = tuple(range(len(arguments)))
    directions = tuple(jnp.cos(a + 1) for a in arguments)
    dtype = arguments[0].dtype

    def scalar(*a, **options):
        return sum(jnp.sum(r * c) for r, c in zip(function(*a, **options), cotangents, strict=True))

    def along(*a):
        return jax.jvp(function, a, directions)[1]

    def slope_along(*a):
        return sum(jnp.sum(g * d) for g, d in zip(grad(*a), directions, strict=True))

    def scanned(*a):
        step = lambda total, scale: (total + scalar(a[0] * scale, *a[1:]), None)  # noqa: E731
        scales = jnp.array([0.5, 1.0, 2.0], dtype)
        return jax.lax.scan(step, jnp.zeros((), dtype), scales)[0]

    grad = jax.grad(scalar, numbers)
    return {
        "value": function(*arguments),
        "grad": grad(*arguments),
        "jvp": along(*arguments),
        "jvp(jvp)": jax.jvp(along, arguments, directions)[1],
        "jvp(grad)": jax.jvp(grad, arguments, directions)[1],
        "grad(grad)": jax.grad(slope_along, numbers)(*arguments),
        "linearize": jax.linearize(function, *arguments)[1](*directions),
        "checkpoint": jax.grad(jax.checkpoint(scalar), (0, 1))(*arguments),
        "scan": jax.grad(scanned, (0, 1))(*arguments),
        "one kernel": jax.grad(scalar, 1)(*arguments),
        "one hidden": jax.grad(scalar, 0)(*arguments),
    }


def every_map(arguments, cotangents, labels, function):
    """What `vmap` is of, and what it is in: over rows, kernels and labels."""
    hidden, kernel, *rest = arguments

    def scalar(hidden, kernel, labels):
        results = function(hidden, kernel, *rest, labels=labels)
        return sum(jnp.sum(r * c) for r, c in zip(results, cotangents, strict=True))

    def twice(array):
        return jnp.stack([array, array[::-1]])

    def total(hidden, kernel, labels):
        return jnp.sum(jax.vmap(scalar)(hidden, kernel, labels) * jnp.array([1.0, -2.0]))

    grad = jax.grad(scalar, (0, 1))
    return {
        "hidden": jax.vmap(grad, (0, None, None))(twice(hidden), kernel, labels),
        "kernel": jax.vmap(grad, (None, 0, None))(hidden, twice(kernel), labels),
        "labels": jax.vmap(grad, (None, None, 0))(hidden, kernel, twice(labels)),
        "grad(vmap)": jax.grad(total, (0, 1))(twice(hidden), twice(kernel), twice(labels)),
        "value": jax.vmap(scalar, (None, 0, 0))(hidden, twice(kernel), twice(labels)),
    }


def each_alone(arguments, cotangents, function):
    """The gradients where something flows back from one result only."""
    numbers = tuple(range(len(arguments)))

    def gradients(index):
        return jax.grad(lambda *a: jnp.sum(function(*a)[index] * cotangents[index]), numbers)

    return {RESULTS[index]: gradients(index)(*arguments) for index in range(len(RESULTS))}


def make_case(case, dtype):
    leading, layout, masked, capped, block_size = case
    inputs = make_inputs(dtype=dtype)
    count = int(np.prod(leading))
    keep = lambda rows: jnp.resize(rows, (*leading, *rows.shape[1:]))  # noqa: E731
    # No class of the second block of four exists.
    class_where = ~np.isin(np.arange(CLASSES), [4, 5, 6, 7, 11]) if masked else None
    labels = keep(inputs["labels"])
    if masked:
        labels = jnp.where(jnp.asarray(class_where)[labels], labels, 3)
    pair = make_pair(
        labels, keep(inputs["where"]) if masked else None, class_where, layout, capped, block_size
    )
    scalars = jnp.asarray([3.0, 0.7], dtype)
    arguments = (keep(inputs["hidden"]), inputs["kernel"], inputs["bias"], *scalars)
    generator = np.random.default_rng(count)
    weights = generator.normal(size=(len(RESULTS), *leading)) * (
        generator.random((len(RESULTS), *leading)) < 0.8
    )
    return pair, arguments, jnp.asarray(weights, dtype), labels


CASES = {
    "plain": ((ROWS,), -1, False, False, 4),
    "everything": ((2, 3, 4), 0, True, True, 4),
}


def assert_equal_in_float64(transforms, streamed, unfused):
    """So closely that nothing but a mistake is seen."""
    actual, expected = (jax.jit(transforms, static_argnums=0)(f) for f in (streamed, unfused))
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.usefixtures("several_tiles")
def test_equals_the_unfused_results_in_every_derivative():
    with with_float64():
        pair, arguments, cotangents, _ = make_case(CASES["everything"], np.float64)
        derivatives = functools.partial(every_derivative, arguments, tuple(cotangents))
        assert_equal_in_float64(derivatives, *pair)


@pytest.mark.thorough
@pytest.mark.usefixtures("several_tiles")
def test_maps_equal_those_of_the_unfused_results():
    with with_float64():
        pair, arguments, cotangents, labels = make_case(CASES["everything"], np.float64)
        maps = functools.partial(every_map, arguments, tuple(cotangents), labels)
        assert_equal_in_float64(maps, *pair)


@pytest.mark.thorough(beyond=1)
@pytest.mark.usefixtures("several_tiles")
@pytest.mark.parametrize("name", CASES)
def test_each_result_alone_has_the_gradient_of_the_unfused_one(name):
    with with_float64():
        pair, arguments, cotangents, _ = make_case(CASES[name], np.float64)
        alone = functools.partial(each_alone, arguments, tuple(cotangents))
        assert_equal_in_float64(alone, *pair)


SHAPES = [  # rows, classes, block_size
    (23, 13, 1),
    (23, 13, 100),
    (1, 13, 4),
    (23, 1, 4),
    (2, 3, None),
]


def value_and_gradients(function, hidden, kernel):
    """Of the results in fixed proportions, jitted."""

    def scalar(hidden, kernel):
        results = function(hidden, kernel)
        weighted = (jnp.sum(jnp.cos(i + jnp.arange(r.size)) * r) for i, r in enumerate(results))
        return sum(weighted), results

    return jax.jit(jax.value_and_grad(scalar, (0, 1), has_aux=True))(hidden, kernel)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize(("rows", "classes", "block_size"), SHAPES)
def test_any_number_of_rows_classes_and_any_block(rows, classes, block_size):
    inputs = make_inputs(rows, classes)

    def streamed(hidden, kernel):
        return differentiable(
            jaxent.linear_softmax(
                hidden, kernel, inputs["labels"], vocab_axis=1, block_size=block_size
            )
        )

    def unfused(hidden, kernel):
        return statistics_of(hidden @ kernel, inputs["labels"])

    (_, values), gradients = value_and_gradients(streamed, inputs["hidden"], inputs["kernel"])
    (_, expected), slopes = value_and_gradients(unfused, inputs["hidden"], inputs["kernel"])
    # One class leaves nothing but the roundings of the reference.
    for actual, truth in zip((*values, *gradients), (*expected, *slopes), strict=True):
        np.testing.assert_allclose(actual, truth, rtol=3e-6, atol=3e-6)


@pytest.mark.thorough
def test_more_rows_than_a_tile_and_more_classes_than_a_block():
    """At sizes where the plan cuts by itself, into tiles and blocks that are not full."""
    rows, classes = 1031, 2053
    inputs = make_inputs(rows, classes)

    def streamed(hidden, kernel):
        return differentiable(jaxent.linear_softmax(hidden, kernel, inputs["labels"]))

    def unfused(hidden, kernel):
        return statistics_of(hidden @ kernel, inputs["labels"])

    (_, *actual), (_, *expected) = (
        jax.tree.leaves(value_and_gradients(f, inputs["hidden"], inputs["kernel"]))
        for f in (streamed, unfused)
    )
    assert relative_error(actual, expected) < 1e-5


def test_a_single_row_of_a_single_feature():
    """Its shape is that of one row without features."""
    hidden, kernel = jnp.array([2.0]), jnp.array([[0.5, -1.0, 0.0]])

    def losses(hidden, kernel):
        return jaxent.linear_softmax(hidden, kernel, jnp.array(1)).cross_entropy

    def dense(hidden, kernel):
        return jaxent.softmax_cross_entropy_with_integer_labels(hidden @ kernel, jnp.array(1))

    results, expected = (jax.value_and_grad(f, (0, 1))(hidden, kernel) for f in (losses, dense))
    for result, exact in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(result, exact, rtol=1e-6)


def test_no_rows_have_no_results_and_no_gradient():
    labels = jnp.zeros((0, 3), jnp.int32)

    def total(hidden, kernel):
        results = jaxent.linear_softmax(hidden, kernel, labels)
        assert all(result.shape == (0, 3) for result in results)
        return sum(jnp.sum(result) for result in differentiable(results))

    arguments = jnp.zeros((0, 3, FEATURES)), jnp.ones((FEATURES, CLASSES))
    value, gradients = jax.value_and_grad(total, (0, 1))(*arguments)
    assert value == 0.0
    assert [g.shape for g in gradients] == [a.shape for a in arguments]
    assert not np.any(gradients[1])


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("block_size", [1, 4, None])
def test_the_top_class_is_the_first_of_the_largest(block_size):
    logits = jnp.array([[0.0, 2.0, 2.0, 1.0, 2.0], [-3.0, -3.0, -4.0, -5.0, -2.0], [1.0] * 5])
    results = jaxent.linear_softmax(
        logits, jnp.eye(5), jnp.zeros(3, jnp.int32), block_size=block_size
    )
    np.testing.assert_array_equal(results.top_class, [1, 4, 0])
    np.testing.assert_array_equal(results.top_logit, [2.0, -2.0, 1.0])
    assert results.top_class.dtype == jnp.int32


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("hidden_dtype", "kernel_dtype"), [("float32", "bfloat16"), ("bfloat16", "")]
)
def test_dtypes_of_results_and_gradients(inputs, hidden_dtype, kernel_dtype):
    """Of two dtypes the products have operands in float32, so that neither is rounded."""
    hidden = inputs["hidden"].astype(hidden_dtype)
    kernel = inputs["kernel"].astype(kernel_dtype or "float32")

    def streamed(hidden, kernel):
        return differentiable(jaxent.linear_softmax(hidden, kernel, inputs["labels"], block_size=4))

    def unfused(hidden, kernel):
        logits = hidden.astype(jnp.float32) @ kernel.astype(jnp.float32)
        return statistics_of(logits, inputs["labels"])

    (_, values), gradients = value_and_gradients(streamed, hidden, kernel)
    (_, expected), slopes = value_and_gradients(unfused, hidden, kernel)
    assert relative_error(values, expected) < 3e-6
    assert {v.dtype for v in values} == {jnp.dtype(jnp.float32)}
    assert [g.dtype for g in gradients] == [hidden.dtype, kernel.dtype]
    assert relative_error(gradients, slopes) < 2.0**-7  # they are rounded to 8 bits, both


# Exact.

# Worst errors allowed, in units in the last place of the sums of absolute terms.
VALUE = {"cross_entropy": 4, "log_normalizer": 4, "uniform_cross_entropy": 4, "entropy": 8}
GRADIENT = {"cross_entropy": 8, "log_normalizer": 8, "uniform_cross_entropy": 8, "entropy": 8}


def log_normalizer(logits) -> Truth:
    """``log sum exp(x)``, a sum of the largest logit and the log of the rest, of either sign."""
    probabilities, normalizer = oracle.softmax(logits)
    scale = abs(max(logits)) + (normalizer - max(logits))
    return Truth(normalizer, (probabilities,), scale, (probabilities,))


def truths_of(logits, labels):
    cross_entropy = softmax.softmax_cross_entropy_with_integer_labels
    return {
        "cross_entropy": oracle.batch(cross_entropy, logits, labels),
        "log_normalizer": oracle.batch(log_normalizer, logits),
        "uniform_cross_entropy": oracle.batch(cross_entropy, logits, labels, label_smoothing=1.0),
        "entropy": oracle.batch(logit_divergence.softmax_entropy, logits),
    }


@functools.cache
def hard_batch(classes):
    largest = float(np.finfo(np.float32).max)
    label, ends = np.array([classes - 1]), np.where(np.arange(classes) % 2, 1.0, -1.0)
    chosen = [
        *integer_labels(np.float32, classes),
        Family("sure of a class at 0", (25 * np.eye(1, classes) - 25, label)),
        Family("as far apart as can be", (np.sort(largest * ends[None]), label)),
    ]
    names, (logits, labels) = together(chosen)
    logits, labels = logits.astype(np.float32), labels.astype(np.int32)
    return names, logits, labels, truths_of(logits, labels)


def values_and_gradients(function, *arguments):
    """Of each result by the first argument."""

    def pull_back(name):
        result, back = jax.vjp(lambda a: getattr(function(a, *arguments[1:]), name), arguments[0])
        return result, back(jnp.ones_like(result))[0]

    return {name: pull_back(name) for name in VALUE}


def judge(names, results, truths):
    for name, (value, gradient) in results.items():
        truth = truths[name]
        errors = oracle.scaled_ulps(value, truth.value, truth.value_scale, np.float32)
        assert np.max(errors) <= VALUE[name], (name, names[np.argmax(errors)], np.max(errors))
        slope, scale = truth.gradients[0], truth.gradient_scales[0]
        errors = np.max(oracle.scaled_ulps(gradient, slope, scale, np.float32), axis=-1)
        assert np.max(errors) <= GRADIENT[name], (name, names[np.argmax(errors)], np.max(errors))
        if name != "log_normalizer":
            assert np.all(np.asarray(value) >= 0.0), name


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize(("classes", "block_size"), [(10, 4), (10, None), (2, 1)])
def test_hard_logits_are_judged_as_in_the_dense_losses(classes, block_size):
    """As the bias of a head of nothing, so that logits are exact and may be -inf."""
    names, logits, labels, truths = hard_batch(classes)

    def row(x, label):
        head = jnp.zeros((1, 1)), jnp.zeros((1, classes)), label[None]
        results = jaxent.linear_softmax(*head, bias=x, block_size=block_size)
        return jax.tree.map(lambda result: result[0], results)

    @jax.jit
    def of_all(logits, labels):
        return jax.lax.map(lambda pair: values_and_gradients(row, *pair), (logits, labels))

    judge(names, of_all(logits, labels), truths)


@pytest.mark.thorough(beyond=1)
@pytest.mark.usefixtures("several_tiles")
@pytest.mark.parametrize("vocab_axis", [-1, 0])
def test_hard_logits_come_through_the_products(vocab_axis):
    """With the identity as kernel; the gradient of the hidden states is that of the logits."""
    names, logits, labels, truths = hard_batch(10)
    finite = np.all(np.isfinite(logits), axis=-1)
    truths = {
        name: Truth(t.value[finite], (t.gradients[0][finite],), t.value_scale[finite],
                    (t.gradient_scales[0][finite],))
        for name, t in truths.items()
    }  # fmt: skip

    def rows(logits, labels):
        options = {"vocab_axis": vocab_axis, "block_size": 4}
        return jaxent.linear_softmax(logits, jnp.eye(10), labels, **options)

    results = jax.jit(functools.partial(values_and_gradients, rows))(logits[finite], labels[finite])
    judge(np.array(names)[finite], results, truths)


@pytest.mark.thorough
def test_whole_vocabularies_are_exact():
    """131072 classes, whose sums are taken block by block."""
    classes = 131072
    chosen = list(few_integer_labels(np.float32, classes))[1:2]
    names, (logits, labels) = together(chosen)
    truths = truths_of(logits, labels)

    @jax.jit
    def row(x, label):
        def of(x, label):
            head = jnp.zeros((1, 1)), jnp.zeros((1, classes)), label[None]
            return jaxent.linear_softmax(*head, bias=x)

        return values_and_gradients(of, x, label)

    results = row(logits[0], labels[0])
    judge(names, {name: (value, slope[None]) for name, (value, slope) in results.items()}, truths)


INFINITIES = {
    "no class is possible": [-np.inf] * 5,
    "one class is certain": [np.inf, 0.0, 1.0, 2.0, 3.0],
    "two classes are certain": [0.0, np.inf, 1.0, np.inf, 2.0],
    "a NaN": [np.nan, 0.0, 1.0, 2.0, 3.0],
    "a NaN after impossible classes": [-np.inf, -np.inf, 1.0, np.nan, 2.0],
    "the first and the last impossible": [-np.inf, 1.0, 2.0, 3.0, -np.inf],
    "one class possible": [-np.inf, -np.inf, 2.0, -np.inf, -np.inf],
}


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("block_size", [2, None])
def test_infinite_logits_and_nan_are_as_in_the_dense_losses(block_size):
    logits = jnp.array(list(INFINITIES.values()), jnp.float32)
    dense = {
        "cross_entropy": dense_cross_entropy,
        "uniform_cross_entropy": functools.partial(dense_cross_entropy, label_smoothing=1.0),
        "entropy": lambda x, label: jaxent.softmax_entropy(x),
    }

    def streamed(name, x, label):
        head = jnp.zeros((1, 1)), jnp.zeros((1, 5)), label[None]
        results = jaxent.linear_softmax(*head, bias=x, block_size=block_size)
        return getattr(results, name)[0]

    @jax.jit
    def of_all(labels):
        def row(pair):
            return {
                name: [
                    jax.value_and_grad(function)(*pair)
                    for function in (functools.partial(streamed, name), dense[name])
                ]
                for name in dense
            }

        return jax.lax.map(row, (logits, labels))

    for label in range(2):
        for name, (actual, expected) in of_all(jnp.full(len(logits), label)).items():
            np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6, err_msg=name)
            np.testing.assert_array_equal(
                np.isnan(actual[1]).any(-1), np.isnan(expected[1]).any(-1)
            )
            whole = ~np.isnan(expected[1]).any(-1)
            np.testing.assert_allclose(
                actual[1][whole], expected[1][whole], rtol=1e-6, atol=1e-7, err_msg=name
            )


def test_the_normalizer_and_the_top_of_no_possible_class_have_no_gradient():
    @jax.jit
    def values_and_gradient(x):
        head = jnp.zeros((1, 1)), jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32)
        results = jaxent.linear_softmax(*head, bias=x, block_size=2)
        both = results.log_normalizer[0], results.top_logit[0]
        return sum(both), both

    gradient, both = jax.grad(values_and_gradient, has_aux=True)(jnp.full(3, -jnp.inf))
    np.testing.assert_array_equal(both, [-np.inf, -np.inf])
    np.testing.assert_array_equal(gradient, 0.0)


def test_nothing_is_nan_on_the_way():
    """On valid input, impossible classes and huge logits among it."""
    hidden, kernel = jnp.array([[0.0, 1.0], [1e37, 0.0], [-2.0, 5.0]]), jnp.ones((2, 5))
    bias = jnp.array([-jnp.inf, 0.0, -80.0, 300.0, -jnp.inf])
    kernel, labels = kernel.at[0, 3].set(-1.0), jnp.array([1, 2, 3])

    def total(hidden, kernel, bias):
        results = jaxent.linear_softmax(
            hidden, kernel, labels, bias=bias, class_where=jnp.arange(5) != 4, block_size=2
        )
        return sum(jnp.sum(r) for r in (results.cross_entropy, results.entropy, results.top_logit))

    arguments = hidden, kernel, bias
    gradient = jax.grad(total, (0, 1, 2))
    directions = hidden * 0.5, kernel, jnp.ones(5)
    along = jax.jit(lambda *arguments: jax.jvp(gradient, arguments, directions))
    jax.config.update("jax_debug_nans", True)
    try:
        values = jax.value_and_grad(total, (0, 1, 2))(*arguments), along(*arguments)
    finally:
        jax.config.update("jax_debug_nans", False)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(values[0]))
    assert not any(np.any(np.isnan(leaf)) for leaf in jax.tree.leaves(values[1]))


# The contract.


def weighted_total(results):
    """Of everything that can be differentiated, each row with a weight of its own."""
    return sum(jnp.sum(jnp.cos(i + jnp.arange(r.size)) * r) for i, r in enumerate(results))


@functools.partial(jax.jit, static_argnames=("block_size", "names"))
def masked_results(hidden, kernel, labels, where, block_size=4, names=RESULTS):
    def total(hidden, kernel):
        results = jaxent.linear_softmax(hidden, kernel, labels, where=where, block_size=block_size)
        return weighted_total([getattr(results, name) for name in names]), results

    return jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, kernel)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("garbage", [jnp.nan, jnp.inf, -jnp.inf])
def test_masked_rows_have_no_influence_whatever_they_hold(inputs, garbage):
    where, labels = inputs["where"], inputs["labels"]
    clean = masked_results(inputs["hidden"], inputs["kernel"], labels, where)
    dirty = masked_results(
        jnp.where(where[:, None], inputs["hidden"], garbage),
        inputs["kernel"],
        jnp.where(where, labels, -100),
        where,
    )
    for c, d in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(c, d)
    (_, results), (gradient, _) = dirty
    for result in results:
        np.testing.assert_array_equal(result[~where], 0)
    np.testing.assert_array_equal(gradient[~where], 0.0)


def test_bad_labels_are_loud_where_a_label_matters(inputs):
    bad = inputs["labels"].at[jnp.array([2, 5, 7])].set(jnp.array([-1, -100, CLASSES]))
    is_bad = bad != inputs["labels"]
    arguments = inputs["hidden"], inputs["kernel"], bad, jnp.ones(ROWS, bool)
    (_, results), (gradient, slope) = masked_results(*arguments)
    np.testing.assert_array_equal(jnp.isnan(results.cross_entropy), is_bad)
    np.testing.assert_array_equal(jnp.isnan(gradient).all(-1), is_bad)
    np.testing.assert_array_equal(jnp.isnan(gradient).any(-1), is_bad)
    assert jnp.all(jnp.isnan(slope))
    assert all(jnp.all(jnp.isfinite(getattr(results, name))) for name in RESULTS[1:])
    _, gradients = masked_results(*arguments, names=("entropy", "log_normalizer"))
    assert all(jnp.all(jnp.isfinite(gradient)) for gradient in gradients)


def test_a_label_of_a_class_that_does_not_exist_is_loud(inputs):
    class_where = jnp.arange(CLASSES) != inputs["labels"][3]

    def losses(hidden, where):
        return jaxent.linear_softmax(
            hidden, inputs["kernel"], inputs["labels"], where=where, class_where=class_where
        ).cross_entropy

    @jax.jit
    def losses_and_gradient(where):
        values, back = jax.vjp(lambda hidden: losses(hidden, where), inputs["hidden"])
        return values, back(jnp.ones(ROWS))[0]

    is_bad = inputs["labels"] == inputs["labels"][3]
    values, gradient = losses_and_gradient(jnp.ones(ROWS, bool))
    np.testing.assert_array_equal(jnp.isnan(values), is_bad)
    np.testing.assert_array_equal(jnp.isnan(gradient).all(-1), is_bad)
    values, gradient = losses_and_gradient(~is_bad)
    np.testing.assert_array_equal(values == 0.0, is_bad)
    np.testing.assert_array_equal((gradient == 0.0).all(-1), is_bad)


def test_nan_and_infinity_in_the_hidden_states_are_loud(inputs):
    everywhere = jnp.ones(ROWS, bool)
    for garbage in (jnp.nan, jnp.inf):
        hidden = inputs["hidden"].at[3, 1].set(garbage)
        arguments = hidden, inputs["kernel"], inputs["labels"], everywhere
        (_, results), (gradient, slope) = masked_results(*arguments)
        is_bad = jnp.arange(ROWS) == 3
        for name in RESULTS[:-1]:
            np.testing.assert_array_equal(jnp.isnan(getattr(results, name)), is_bad, err_msg=name)
        np.testing.assert_array_equal(jnp.isnan(gradient).any(-1), is_bad)
        assert jnp.all(jnp.isnan(slope[1]))


@pytest.mark.parametrize("option", ["soft_cap", "temperature"])
def test_improper_options_are_refused_or_nan(inputs, option):
    data = inputs["hidden"], inputs["kernel"], inputs["labels"]

    def losses(value: Any):
        options: dict[str, Any] = {option: value}
        return jaxent.linear_softmax(*data, **options).cross_entropy

    for value in (0.0, -1.0, float("inf")):
        with pytest.raises(AssertionError, match=rf"jaxent\.linear_softmax: .*`{option}`"):
            losses(value)
    losses = jax.jit(losses)
    assert jnp.all(jnp.isnan(losses(-1.0)))
    assert jnp.all(jnp.isnan(losses(jnp.inf)))


REFUSALS = {
    "hidden": {"hidden": np.zeros((ROWS, FEATURES), np.int32)},
    "vocab_axis=0": {"kernel": np.zeros((CLASSES, FEATURES), np.float32)},
    "kernel": {"kernel": np.zeros((FEATURES, 0), np.float32)},
    "labels": {"labels": np.zeros(ROWS, np.float32)},
    "of the examples of": {"labels": np.zeros((ROWS, 1), np.int32)},
    "bias": {"bias": np.zeros((1, CLASSES), np.float32)},
    "vocab_axis": {"vocab_axis": 2},
    "where": {"where": np.zeros((ROWS, CLASSES), bool)},
    "boolean": {"where": np.zeros(ROWS, np.float32)},
    "class_where": {"class_where": np.zeros(CLASSES + 1, bool)},
    "class_where` must be boolean": {"class_where": np.zeros(CLASSES, np.int32)},
    "block_size": {"block_size": 0},
    "integer": {"block_size": 4.5},
    "soft_cap": {"soft_cap": np.ones(2, np.float32)},
    "temperature": {"temperature": np.ones(1, np.float32)},
}


@pytest.mark.parametrize("words", REFUSALS)
def test_refusals_name_the_argument(inputs, words):
    given = {name: inputs[name] for name in ("hidden", "kernel", "labels")} | REFUSALS[words]
    data = [given.pop(name) for name in ("hidden", "kernel", "labels")]
    with pytest.raises(AssertionError, match=rf"jaxent\.linear_softmax: .*{words}"):
        jaxent.linear_softmax(*data, **given)


@pytest.mark.thorough
def test_sixteen_bits_err_no_more_than_the_unfused_results():
    """Three-way: against float64 truth, streamed may not err more than plain 16-bit logits."""
    rows, features, classes, dtype = 401, 64, 211, jnp.bfloat16
    generator = np.random.default_rng(1)
    hidden = jnp.asarray(generator.normal(size=(rows, features)), dtype)
    kernel = jnp.asarray(generator.normal(size=(features, classes)) / 8, dtype)
    labels = jnp.asarray(generator.integers(classes, size=rows), jnp.int32)

    def streamed(hidden, kernel):
        return differentiable(jaxent.linear_softmax(hidden, kernel, labels, block_size=16))

    def unfused(hidden, kernel):
        return statistics_of((hidden @ kernel).astype(jnp.float32), labels)

    def of(function, hidden, kernel):
        (_, values), gradients = value_and_gradients(function, hidden, kernel)
        return *values, *gradients

    actual, plain = of(streamed, hidden, kernel), of(unfused, hidden, kernel)
    with with_float64():
        exact = hidden.astype(jnp.float64), kernel.astype(jnp.float64)
        truth = of(lambda *arrays: statistics_of(arrays[0] @ arrays[1], labels), *exact)
    for a, p, t in zip(actual, plain, truth, strict=True):
        a, p, t = (np.asarray(each, np.float64) for each in (a, p, t))
        assert np.linalg.norm(a - t) <= 1.1 * np.linalg.norm(p - t) + 1e-7 * np.linalg.norm(t)
    assert [a.dtype for a in actual] == [*[jnp.float32] * 5, dtype, dtype]


# What the compiler makes of it.

N, D, V = 8192, 512, 131072
MIB = 2**20
# Before, a 16-bit gradient of the kernel is held once more, as integers.
UPDATES_IN_PLACE = jax.__version_info__ >= (0, 12)


def mean_of(*names):
    return lambda results: sum(jnp.mean(getattr(results, name)) for name in names)


@functools.cache
def lowered(names=("cross_entropy",), arguments=(0, 1), dtype="float32", shape=(N, D, V)):
    """`value_and_grad` of the mean of some results; only the value for no arguments."""
    n, d, v = shape

    def loss(hidden, kernel, labels):
        return mean_of(*names)(jaxent.linear_softmax(hidden, kernel, labels))

    shapes = (
        jax.ShapeDtypeStruct((n, d), dtype),
        jax.ShapeDtypeStruct((d, v), dtype),
        jax.ShapeDtypeStruct((n,), jnp.int32),
    )
    return jax.jit(jax.value_and_grad(loss, arguments) if arguments else loss).lower(*shapes)


@functools.cache
def compiled(*given, **options) -> Any:
    return lowered(*given, **options).compile()


def test_value_and_gradients_need_four_products_and_little_memory():
    program = compiled()
    assert products(program) == 4
    assert temporaries(program) <= 24 * MIB
    assert not buffers(program, N, V)
    assert largest_array(program) <= D * V


def largest_array(program):
    """The number of elements of the largest array of the program."""
    shapes = re.findall(r"\w+\[([\d,]+)\]", program.as_text())
    return max(np.prod([int(size) for size in shape.split(",")]) for shape in shapes)


@pytest.mark.thorough
def test_sixteen_bits_stay_sixteen_bits():
    program = compiled(dtype="bfloat16")
    assert products(program) == 4
    assert temporaries(program) <= (32 if UPDATES_IN_PLACE else 192) * MIB
    assert largest_array(program) <= D * V
    wide = re.compile(rf"f32\[(?:{D},{V}|{V},{D})\]")
    assert not wide.findall(outside_fusions(program))
    assert wide.findall(outside_fusions(compiled()))  # the check above can fail


def outside_fusions(program):
    """The text of those computations whose results are buffers."""
    computations = re.split(r"\n(?=(?:ENTRY )?%\S+ \()", program.as_text())
    fused = set(re.findall(r"fusion\(.*calls=(%[\w.-]+)", program.as_text()))
    assert fused
    return "\n".join(text for text in computations if text.split(" ", 1)[0] not in fused)


@pytest.mark.parametrize(("dtype", "name"), [("float32", "f32"), ("bfloat16", "bf16")])
def test_operands_of_products_have_the_dtype_of_the_input(dtype, name):
    """As it is asked for, before the compiler for CPUs makes of it what CPUs can do."""
    text = lowered(dtype=dtype).as_text()
    operands = re.findall(r"dot_general .*: \(tensor<(.*?)>, tensor<(.*?)>\) -> (\S+)", text)
    assert len(operands) == 4
    for left, right, result in operands:
        assert left.split("x")[-1] == right.split("x")[-1] == name
        assert result.endswith("f32>")


def test_a_frozen_kernel_costs_three_products_and_no_buffer_of_its_size():
    program = compiled(arguments=(0,))
    assert products(program) == 3
    in_parts = D, 8, V // 8
    assert not buffers(program, D, V)
    assert not buffers(program, *in_parts)
    assert buffers(compiled(), *in_parts)  # the check above can fail
    assert temporaries(program) <= 16 * MIB


def test_the_value_alone_needs_one_product():
    program = compiled(arguments=())
    assert products(program) == 1
    assert temporaries(program) <= 16 * MIB


@pytest.mark.thorough
def test_results_that_are_not_used_cost_nothing():
    """Of the cross-entropy alone three numbers per row are kept."""
    small = {"shape": (2048, 64, 16384)}
    rows = r"f32\[1024,2\]"  # two tiles of 1024 rows
    value = compiled(arguments=(), **small)
    loops = re.findall(r"= \((.*?)\) while\(", value.as_text())
    # The largest logit, the label's, and the sum over the others.
    assert max(len(re.findall(rows, state)) for state in loops) == 3
    assert not re.search(r"compare\(.*direction=EQ.*f32", value.as_text())
    alone, entropy, all_of_them = (
        compiled(names, **small) for names in (RESULTS[:1], ("entropy",), RESULTS)
    )
    for operation in ("exponential", "multiply"):
        assert count(operation, alone) < count(operation, entropy) < count(operation, all_of_them)


def count(operation, program):
    return len(re.findall(rf" {operation}\(", program.as_text()))


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("offset", [80.0, 300.0, -300.0])
def test_second_derivatives_stand_large_logits_and_large_directions(offset):
    """An exponential near the largest number times a direction in the hundreds would overflow."""
    generator = np.random.default_rng(0)
    logits = jnp.asarray(3.0 * generator.normal(size=(ROWS, CLASSES)) + offset, jnp.float32)
    direction = jnp.asarray(1000.0 * generator.normal(size=(ROWS, CLASSES)), jnp.float32)
    labels = jnp.asarray(generator.integers(CLASSES, size=ROWS), jnp.int32)

    def streamed(x):
        results = jaxent.linear_softmax(x, jnp.eye(CLASSES), labels, block_size=4)
        return jnp.sum(results.cross_entropy + results.entropy)

    def dense(x):
        return jnp.sum(dense_cross_entropy(x, labels) + jaxent.softmax_entropy(x))

    def products(function):
        grad = jax.grad(function)
        return jax.jvp(grad, (logits,), (direction,))[1], jax.vjp(grad, logits)[1](direction)[0]

    actual, expected = (jax.jit(products, static_argnums=0)(f) for f in (streamed, dense))
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("transform", ["grad", "linearize", "hessian-vector product"])
def test_what_is_called_eagerly_is_compiled_once(transform, inputs, caplog):
    arguments = inputs["hidden"], inputs["kernel"]

    def total(hidden, kernel):
        results = jaxent.linear_softmax(hidden, kernel, inputs["labels"], block_size=4)
        return jnp.sum(results.cross_entropy + results.entropy)

    def derivative():
        if transform == "grad":
            return jax.grad(total, (0, 1))(*arguments)
        if transform == "linearize":
            return jax.linearize(total, *arguments)[1](*arguments)
        return jax.jvp(jax.grad(total, (0, 1)), arguments, arguments)

    derivative()
    with jax.log_compiles():
        derivative()
        assert not [record.getMessage() for record in caplog.records]
        jax.jit(lambda x: x + 1.0)(arguments[0])
    assert caplog.records  # the check above can fail


def test_memory_grows_neither_with_the_vocabulary_nor_with_the_rows():
    """Beyond what is given and asked for, and numbers per row."""
    table = {
        (n, v): temporaries(compiled(shape=(n, 64, v)))
        for n, v in [(1024, 32768), (1024, 131072), (1024, 524288), (16384, 32768)]
    }
    few_rows = [size for (n, _), size in table.items() if n == 1024]
    assert max(few_rows) <= 1.01 * min(few_rows), table
    # The gradient [N, D] is an output; beside it there are some numbers per row.
    assert table[16384, 32768] <= table[1024, 32768] + 32 * 4 * 16384, table
    if UPDATES_IN_PLACE:
        sizes = [
            temporaries(compiled(dtype="bfloat16", shape=(1024, 64, v))) for v in (2**15, 2**19)
        ]
        assert sizes[1] <= 1.01 * sizes[0], sizes
