"""The contrastive losses: equal to the dense losses of all similarities, exact, and as small."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf

import jaxent
from conformance import oracle, sigmoid, softmax
from conformance.case import with_float64
from heads.derivatives import weighted
from heads.test_rows import buffers, products, relative_error, temporaries

PAIRS, FURTHER, FEATURES = 13, 6, 5  # a prime number of pairs, so that no chunk comes out even
cross_entropy = jaxent.softmax_cross_entropy_with_integer_labels

# Worst errors allowed, in units in the last place of the sum of the absolute terms.
VALUE, GRADIENT = 4, 4


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "rows": jax.random.normal(keys[0], (PAIRS, FEATURES)),
        "partners": jax.random.normal(keys[1], (PAIRS + FURTHER, FEATURES)),
        "weights": jax.random.uniform(keys[2], (PAIRS,), minval=0.5),
        "labels": jax.random.permutation(keys[3], PAIRS + FURTHER)[:PAIRS],
        "where": jnp.arange(PAIRS) % 4 != 1,
        "further": jnp.arange(FURTHER) % 3 != 1,
    }


def reduced(losses, reduction, where=None, weights=None):
    if reduction == "mean":
        return jaxent.mean(losses, where, weights)
    losses = losses if weights is None else losses * weights
    losses = losses if where is None else jnp.where(where, losses, 0.0)
    return jnp.sum(losses) if reduction == "sum" else losses


def unit(rows):
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def dense_info_nce(
    queries, keys, temperature, *, labels=None, where=None, exists=None, normalize=False, **counts
):
    """All similarities at once, and the loss of their rows; one without a class is masked."""
    if normalize:
        queries, keys = unit(queries), unit(keys)
    logits = queries @ keys.T / temperature
    labels = jnp.arange(len(queries)) if labels is None else labels
    mask = where
    if exists is not None:
        mask = exists[None, :] if where is None else exists[None, :] & where[:, None]
    return reduced(cross_entropy(logits, labels, where=mask), where=where, **counts)


def dense_clip(images, texts, log_temperature, *, reduction, **counts):
    temperature = jnp.exp(log_temperature)
    counts |= {"exists": counts.get("where"), "reduction": reduction}
    there = dense_info_nce(images, texts, temperature, **counts)
    return 0.5 * (there + dense_info_nce(texts, images, temperature, **counts))


def dense_sigmoid(
    images, texts, log_temperature, bias, *, labels=None, exists=None, normalize=False, **counts
):
    if normalize:
        images, texts = unit(images), unit(texts)
    logits = images @ texts.T * jnp.exp(-log_temperature) + bias
    labels = jnp.arange(len(images)) if labels is None else labels
    targets = jax.nn.one_hot(labels, len(texts))
    exists = None if exists is None else exists[None, :]
    losses = jaxent.sigmoid_binary_cross_entropy(logits, targets, exists)
    return reduced(jnp.sum(losses, axis=-1), **counts)


# Each loss with and without what may be given to it: (loss, reduction, options).
CASES = [
    ("info_nce", "mean", ("where", "weights", "normalize")),
    ("clip_loss", "mean", ("where", "weights", "normalize")),
    ("sigmoid_contrastive_loss", "sum", ("labels", "where", "exists")),
    ("info_nce", "none", ("labels", "where", "exists")),
    ("clip_loss", "none", ("where", "weights")),
    ("sigmoid_contrastive_loss", "none", ("where", "weights", "normalize")),
]
NAMES = ("info_nce", "clip_loss", "sigmoid_contrastive_loss")


def make_pair(inputs, name, reduction, options):
    """The streamed and the dense loss, and their arguments."""
    given = {"reduction": reduction, "normalize": "normalize" in options}
    given |= {option: inputs[option] for option in ("labels", "where") if option in options}
    partners = inputs["partners"][:PAIRS] if name == "clip_loss" else inputs["partners"]
    exists, streamed_exists = None, None
    if "exists" in options:
        exists = streamed_exists = jnp.ones(len(partners), bool).at[inputs["labels"][1]].set(False)
    elif "where" in options and name != "clip_loss":
        exists = jnp.concatenate([inputs["where"], jnp.ones(FURTHER, bool)])
    mask = {"info_nce": "key_where", "sigmoid_contrastive_loss": "text_where"}.get(name)
    numbers = {
        "info_nce": (jnp.float32(0.4),),
        "clip_loss": (jnp.float32(-0.7),),
        "sigmoid_contrastive_loss": (jnp.float32(-0.7), jnp.float32(-1.5)),
    }[name]
    weights = inputs["weights"] if "weights" in options else jnp.float32(1.0)

    def streamed(weights, *arguments):
        also = {} if mask is None else {mask: streamed_exists}
        also |= {"weights": weights} if "weights" in options else {}
        return getattr(jaxent, name)(*arguments, chunk_size=4, **given, **also)

    def dense(weights, *arguments):
        function = {
            "info_nce": dense_info_nce,
            "clip_loss": dense_clip,
            "sigmoid_contrastive_loss": dense_sigmoid,
        }[name]
        also = {} if name == "clip_loss" else {"exists": exists}
        also |= {"weights": weights} if "weights" in options else {}
        return function(*arguments, **given, **also)

    return streamed, dense, (weights, inputs["rows"], partners, *numbers)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join((*case[:2], *case[2])))
def test_equals_the_dense_loss_in_every_derivative(inputs, case):
    streamed, dense, arguments = make_pair(inputs, *case)
    directions = tuple(jnp.cos(a + 1) for a in arguments)
    numbers = tuple(range(len(arguments)))
    cotangent = jnp.sin(jnp.arange(float(PAIRS))) if case[1] == "none" else 1.0

    @functools.partial(jax.jit, static_argnums=0)  # one program: compiling takes all the time
    def everything(function):
        _, grad, slope_along = weighted(function, cotangent, directions)

        stacked = jnp.stack([arguments[1], 2 * arguments[1]])
        return {
            "value": function(*arguments),
            "grad": grad(*arguments),
            "jvp(grad)": jax.jvp(grad, arguments, directions),
            "grad(grad)": jax.grad(slope_along, numbers)(*arguments),
            "vmap(grad)": jax.vmap(grad, (None, 0, *[None] * len(numbers[2:])))(
                arguments[0], stacked, *arguments[2:]
            ),
        }

    actual, expected = everything(streamed), everything(dense)
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    assert max(errors.values()) < 1e-5, errors
    assert max(errors[name] for name in ("value", "grad")) < 3e-6, errors


def losses_of(name, rows, partners, **options):
    """A loss with ordinary numbers, and as many partners as it takes."""
    numbers = {"info_nce": (0.5,), "clip_loss": (-0.7,), "sigmoid_contrastive_loss": (-0.7, -2.0)}
    partners = partners[: len(rows)] if name == "clip_loss" else partners
    return getattr(jaxent, name)(rows, partners, *numbers[name], **options)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("name", NAMES)
def test_any_chunk_will_do(inputs, name):
    def value_and_gradients(chunk_size):
        loss = functools.partial(losses_of, name, chunk_size=chunk_size)
        gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))
        return gradients(inputs["rows"], inputs["partners"])

    expected = value_and_gradients(PAIRS)
    for chunk_size in (1, 5, None):
        assert relative_error(value_and_gradients(chunk_size), expected) < 1e-6


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("name", NAMES)
def test_a_masked_pair_is_as_if_it_were_not_in_the_batch(inputs, name):
    where, keep = inputs["where"], np.flatnonzero(inputs["where"])
    pairs = inputs["rows"], inputs["partners"][:PAIRS], inputs["weights"]

    def value_and_gradients(*pairs, **options):
        def loss(further, rows, partners, weights):
            everybody = jnp.concatenate([partners, further])
            return losses_of(
                name, rows, everybody, weights=weights, normalize=True, chunk_size=4, **options
            )

        gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))
        value, (further, *beside) = gradients(inputs["partners"][PAIRS:], *pairs)
        return (value, further), beside

    expected = value_and_gradients(*(array[keep] for array in pairs))
    for garbage in (jnp.nan, jnp.inf):
        spoiled = jnp.where(where, 0.0, garbage)
        dirty = (array + spoiled.reshape(-1, *[1] * (array.ndim - 1)) for array in pairs)
        others, own = value_and_gradients(*dirty, where=where)
        assert relative_error((others, [g[keep] for g in own]), expected) < 2e-6
        for gradient in own:
            np.testing.assert_array_equal(gradient[~where], 0.0)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("name", NAMES)
def test_a_masked_pair_has_no_loss(inputs, name):
    where = inputs["where"]
    losses = losses_of(name, inputs["rows"], inputs["partners"], where=where, reduction="none")
    np.testing.assert_array_equal(losses > 0.0, where)
    weighted = losses_of(
        name,
        inputs["rows"],
        inputs["partners"],
        where=where,
        weights=inputs["weights"],
        reduction="none",
    )
    np.testing.assert_allclose(weighted, losses * inputs["weights"], rtol=1e-6)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("name", ["info_nce", "sigmoid_contrastive_loss"])
def test_masks_of_keys_are_their_own(inputs, name):
    """With labels a masked query leaves its key to the others; an absent key is in no sum."""
    mask = {"info_nce": "key_where", "sigmoid_contrastive_loss": "text_where"}[name]
    rows, partners, where = inputs["rows"], inputs["partners"], inputs["where"]
    labels = jnp.arange(PAIRS)
    plain = losses_of(name, rows, partners, reduction="none")
    masked = losses_of(name, rows, partners, labels=labels, where=where, reduction="none")
    np.testing.assert_allclose(masked, jnp.where(where, plain, 0.0), rtol=1e-6)

    exists = jnp.concatenate([jnp.ones(PAIRS, bool), inputs["further"]])
    spoiled = jnp.where(exists[:, None], partners, jnp.nan)
    options = {"labels": labels, "reduction": "none", mask: exists}
    actual = losses_of(name, rows, spoiled, **options)
    expected = losses_of(name, rows, partners[np.flatnonzero(exists)], reduction="none")
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    summed = lambda p: jnp.sum(losses_of(name, rows, p, **options))  # noqa: E731
    gradient = jax.jit(jax.grad(summed))(spoiled)
    np.testing.assert_array_equal(gradient[~exists], 0.0)
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("name", ["info_nce", "sigmoid_contrastive_loss"])
def test_labels_without_a_key_are_nan_unless_masked(inputs, name):
    mask = {"info_nce": "key_where", "sigmoid_contrastive_loss": "text_where"}[name]
    rows, partners, labels = inputs["rows"], inputs["partners"], inputs["labels"]
    for bad in (-1, -100, len(partners)):
        spoiled = labels.at[2].set(bad)
        losses = losses_of(name, rows, partners, labels=spoiled, reduction="none")
        np.testing.assert_array_equal(jnp.isnan(losses), jnp.arange(PAIRS) == 2)
        assert jnp.isnan(losses_of(name, rows, partners, labels=spoiled))
        where = jnp.arange(PAIRS) != 2
        value = losses_of(name, rows, partners, labels=spoiled, where=where)
        expected = losses_of(name, rows, partners, labels=labels, where=where)
        np.testing.assert_array_equal(value, expected)
    exists = jnp.ones(len(partners), bool).at[labels[2]].set(False)
    for given in (labels, labels.astype(jnp.uint8)):
        losses = losses_of(name, rows, partners, labels=given, reduction="none", **{mask: exists})
        np.testing.assert_array_equal(jnp.isnan(losses), jnp.arange(PAIRS) == 2)
    losses = losses_of(name, rows, partners, reduction="none", **{mask: exists.at[3].set(False)})
    expected = (jnp.arange(PAIRS) == 3) | (jnp.arange(PAIRS) == labels[2])
    np.testing.assert_array_equal(jnp.isnan(losses), expected)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_zero_with_zero_gradient(inputs, name):
    loss = functools.partial(losses_of, name, where=False)
    gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, gradients = gradients(inputs["rows"] * jnp.nan, inputs["partners"])
    assert value == 0.0
    assert all(jnp.all(g == 0.0) for g in gradients)


def test_a_single_pair_has_nothing_to_be_told_from():
    one = jnp.full((1, 3), 2.0)
    for loss in (
        lambda a, b, t: jaxent.info_nce(a, b, t),
        lambda a, b, t: jaxent.clip_loss(a, b, jnp.log(t)),
    ):
        value, gradients = jax.value_and_grad(loss, (0, 1, 2))(one, one, 0.1)
        assert value == 0.0
        assert all(jnp.all(g == 0.0) for g in gradients)
    value = jaxent.sigmoid_contrastive_loss(one, one, 0.0, -10.0)  # 12 - 10 = 2
    np.testing.assert_allclose(value, math.log1p(math.exp(-2)), rtol=1e-6)


# The definitions, and the truth from them.


def test_clip_is_the_pseudo_code_of_its_paper(inputs):
    """`logits = dot(I_e, T_e.T) * exp(t)`, with t the negative of our logarithm."""
    images, texts = unit(inputs["rows"]), unit(inputs["partners"][:PAIRS])
    logit_scale = jnp.log(1 / 0.07)
    logits = images @ texts.T * jnp.exp(logit_scale)
    labels = jnp.arange(PAIRS)
    there = -jnp.mean(jax.nn.log_softmax(logits, axis=1)[labels, labels])
    back = -jnp.mean(jax.nn.log_softmax(logits, axis=0)[labels, labels])
    expected = (there + back) / 2
    np.testing.assert_allclose(jaxent.clip_loss(images, texts, -logit_scale), expected, rtol=1e-6)
    scaled = 3 * inputs["rows"], 0.5 * inputs["partners"][:PAIRS]
    actual = jaxent.clip_loss(*scaled, jnp.log(0.07), normalize=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_sigmoid_is_the_pseudo_code_of_its_paper(inputs):
    """`-sum(log_sigmoid(labels * (dot(img, txt.T) * exp(t_prime) + b))) / n`."""
    images, texts = unit(inputs["rows"]), unit(inputs["partners"][:PAIRS])
    t_prime, bias = jnp.log(10.0), -10.0
    logits = images @ texts.T * jnp.exp(t_prime) + bias
    signs = 2 * jnp.eye(PAIRS) - jnp.ones((PAIRS, PAIRS))
    expected = -jnp.sum(jax.nn.log_sigmoid(signs * logits)) / PAIRS
    actual = jaxent.sigmoid_contrastive_loss(images, texts, -t_prime, bias)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def _softmax_slopes(logits):
    """Cross-entropies of the diagonal, and their derivatives in the logits with their scales."""
    truths = [
        softmax.softmax_cross_entropy_with_integer_labels(row, i) for i, row in enumerate(logits)
    ]
    return [t.value for t in truths], [t.gradients[0] for t in truths]


def _truth(name, rows, partners, number, bias):
    """The mean loss, and its gradients with the sums of their absolute terms, in mpmath."""
    count = len(rows)
    scale = 1 / number if name == "info_nce" else mpmath.exp(-number)
    dots = [[mpmath.fdot(a, b) for b in partners] for a in rows]
    logits = [[scale * p + (bias or 0) for p in row] for row in dots]
    if name == "sigmoid_contrastive_loss":
        truths = [
            [sigmoid.sigmoid_binary_cross_entropy(x, mpf(i == j)) for j, x in enumerate(row)]
            for i, row in enumerate(logits)
        ]
        values = [mpmath.fsum(t.value for t in row) for row in truths]
        slopes = [[t.gradients[0] for t in row] for row in truths]
    else:
        values, slopes = _softmax_slopes(logits)
    if name == "clip_loss":
        back_values, back_slopes = _softmax_slopes([list(c) for c in zip(*logits, strict=True)])
        values = [(a + b) / 2 for a, b in zip(values, back_values, strict=True)]
        back_slopes = zip(*back_slopes, strict=True)
        slopes = [
            [(a + b) / 2 for a, b in zip(*pair, strict=True)]
            for pair in zip(slopes, back_slopes, strict=True)
        ]
    slopes = np.array(slopes, object) / count
    rows, partners, dots = (np.array(a, object) for a in (rows, partners, dots))
    # The derivative of a quotient by a temperature, or of a power of e by its exponent.
    along_number = -dots * scale * (scale if name == "info_nce" else 1)
    terms = lambda f: (  # noqa: E731
        f(slopes) @ f(partners) * scale,
        f(slopes).T @ f(rows) * scale,
        np.sum(f(slopes * along_number)),
        *(() if bias is None else (np.sum(f(slopes)),)),
    )
    return mpmath.fsum(values) / count, terms(lambda a: a), terms(abs)


def _hard_batches():
    """Embeddings in eighths, so that every product is exact: (name, rows, partners)."""
    generator = np.random.default_rng(3)
    eighths = generator.integers(-8, 9, size=(2, 4, 4)) / 8
    # The similarity of a pair is 20, 42, 64 or 80; all others are 0.
    sure = np.diag([4, 6, 8, 8.0]), np.diag([5, 7, 8, 10.0])
    return {
        "ordinary": 2 * eighths,
        "sure": sure,
        "sure and wrong": (sure[0], np.roll(sure[1], 1, axis=0)),
        "large": 8 * eighths,
        "alike": np.ones((2, 4, 4)),
        "sure but for one": (sure[0], sure[1] + np.eye(4)[3] * 2),
        "nearly orthogonal": (np.eye(4) / 8, np.roll(np.eye(4), 1, axis=0) + eighths[0] / 1024),
    }


@functools.cache
def _value_and_gradients(name):
    places = (0, 1, 2, 3) if name == "sigmoid_contrastive_loss" else (0, 1, 2)
    loss = functools.partial(getattr(jaxent, name), chunk_size=3)
    return jax.jit(jax.value_and_grad(loss, places))


@pytest.mark.parametrize("batch", _hard_batches())
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_exact(name, batch):
    """Also where the model is sure and right, and a loss by log-sum-exp is 0 without a gradient."""
    rows, partners = _hard_batches()[batch]
    # Numbers that make no rounding: what is judged is the loss.
    numbers = (1.0 if name == "info_nce" else 0.0,)
    numbers += (-4.0,) if name == "sigmoid_contrastive_loss" else ()
    for dtype in (np.float32, np.float64):
        with with_float64():
            arguments = [jnp.asarray(a, dtype) for a in (rows, partners, *numbers)]
            value, gradients = _value_and_gradients(name)(*arguments)
        with mp.workdps(80):
            number, *bias = map(mpf, numbers)
            truth, slopes, scales = _truth(
                name, oracle.exact(rows), oracle.exact(partners), number, bias[0] if bias else None
            )
            error = oracle.scaled_ulps(value, np.array(truth), np.array(truth), dtype)
            assert error <= VALUE
            for gradient, slope, scale in zip(gradients, slopes, scales, strict=True):
                slope, scale = np.asarray(slope, object), np.asarray(scale, object)
                worst = np.max(oracle.scaled_ulps(gradient, slope, scale, dtype))
                assert worst <= GRADIENT


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_of_a_sure_model_are_right(name):
    """All of them are of the size of the loss, 1e-9 to 1e-18, like those in float64."""
    rows, partners = _hard_batches()["sure"]
    dense = {"info_nce": dense_info_nce, "clip_loss": dense_clip}.get(name, dense_sigmoid)
    numbers = (1.0 if name == "info_nce" else 0.0,)
    numbers += (-4.0,) if name == "sigmoid_contrastive_loss" else ()

    def hessian(function, dtype):
        arguments = [jnp.asarray(a, dtype) for a in (rows, partners, *numbers)]
        bend = jax.hessian(functools.partial(function, reduction="sum"), (0, 2))
        return jax.jit(bend)(*arguments)

    actual = hessian(getattr(jaxent, name), jnp.float32)
    with with_float64():
        expected = jax.tree.map(np.asarray, hessian(dense, jnp.float64))
    assert relative_error(actual, expected) < 2e-6


def test_a_small_temperature_keeps_its_gradients():
    """At 0.01, where those of optax.ntxent are NaN."""
    keys = jax.random.split(jax.random.key(5))
    queries, others = (jax.random.normal(key, (64, 8)) for key in keys)
    loss = functools.partial(jaxent.info_nce, normalize=True)
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(queries, others, 0.01)
    assert jnp.isfinite(value)
    assert all(jnp.all(jnp.isfinite(g)) and jnp.any(g != 0.0) for g in gradients)


@pytest.mark.thorough
def test_vectors_of_any_length_are_normalised():
    """Vectors of zeros stay, without a gradient; the largest and the smallest have direction."""
    queries = jnp.array([[3e37, 3e37], [0.0, 0.0], [-4e-30, 3e-30], [3.0, 4.0]])
    directions = jnp.array([[0.5**0.5, 0.5**0.5], [0.0, 0.0], [-0.8, 0.6], [0.6, 0.8]])
    keys = jnp.eye(4, 2)
    loss = functools.partial(jaxent.info_nce, keys=keys, temperature=0.5, reduction="none")

    def total(queries):
        losses = loss(queries, normalize=True)
        return jnp.sum(losses), losses

    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(queries)
    np.testing.assert_allclose(losses, loss(directions), rtol=1e-6)
    assert jnp.all(jnp.isfinite(gradient))
    np.testing.assert_array_equal(gradient[1], 0.0)
    along = jnp.sum(gradient[3] * queries[3])  # the length is no matter
    np.testing.assert_allclose(along, 0.0, atol=1e-6)
    bend = jax.jvp(jax.grad(lambda q: total(q)[0]), (queries,), (jnp.ones_like(queries),))[1]
    np.testing.assert_array_equal(bend[1], 0.0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("name", NAMES)
def test_sixteen_bits_err_no_more_than_the_dense_loss(name, dtype):
    """Three-way: against float64 truth, streamed may not err more than plain 16-bit logits."""
    keys = jax.random.split(jax.random.key(1))
    rows, partners = (unit(jax.random.normal(key, (67, 16))) for key in keys)
    arrays = rows.astype(dtype), (rows + 0.3 * partners).astype(dtype)
    numbers = (0.1,) if name == "info_nce" else (-2.0,)
    numbers += (-3.0,) if name == "sigmoid_contrastive_loss" else ()
    dense = {"info_nce": dense_info_nce, "clip_loss": dense_clip}.get(name, dense_sigmoid)
    dense = functools.partial(dense, reduction="mean")

    def results(function, dtype, number_dtype=jnp.float32):
        arguments = [jnp.asarray(a, dtype) for a in arrays]
        arguments += [jnp.asarray(n, number_dtype) for n in numbers]
        gradients = jax.jit(jax.value_and_grad(function, tuple(range(len(arguments)))))
        return jax.tree.leaves(gradients(*arguments))

    streamed = results(functools.partial(getattr(jaxent, name), chunk_size=16), dtype)
    plain = results(dense, dtype, dtype)
    with with_float64():
        truth = results(dense, jnp.float64, jnp.float64)
    for s, p, t in zip(streamed, plain, truth, strict=True):
        s, p, t = (np.asarray(a, np.float64) for a in (s, p, t))
        assert np.linalg.norm(s - t) <= 1.1 * np.linalg.norm(p - t) + 1e-7 * np.linalg.norm(t)
    expected = [jnp.float32, dtype, dtype, *[jnp.float32] * len(numbers)]
    assert [r.dtype for r in streamed] == expected


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("name", ["info_nce", "sigmoid_contrastive_loss"])
def test_devices_that_gather_the_keys_compute_the_loss_of_all(inputs, name):
    """As the docstring has it, in value and gradient."""
    devices, local = 3, 4
    rows, partners = (inputs[n][: devices * local] for n in ("rows", "partners"))

    @functools.partial(jax.vmap, axis_name="devices")
    def on_each(rows, partners):
        def loss(rows, partners):
            everybody = jax.lax.all_gather(partners, "devices", tiled=True)
            labels = jnp.arange(local) + local * jax.lax.axis_index("devices")
            return losses_of(name, rows, everybody, labels=labels)

        value, gradients = jax.value_and_grad(loss, (0, 1))(rows, partners)
        return jax.lax.pmean(value, "devices"), gradients

    pieces = (array.reshape(devices, local, FEATURES) for array in (rows, partners))
    values, gradients = on_each(*pieces)
    expected = jax.value_and_grad(functools.partial(losses_of, name), (0, 1))(rows, partners)
    together = [g.reshape(devices * local, FEATURES) / devices for g in gradients]
    assert relative_error((values[0], tuple(together)), expected) < 2e-6


# What the compiler makes of it.


def lowered(name, pairs, dtype=jnp.float32, chunk_size: int | None = 256, **options):
    shape = jax.ShapeDtypeStruct((pairs, 64), dtype)

    def loss(rows, partners, temperature):
        also = (-2.0,) if name == "sigmoid_contrastive_loss" else ()
        function = getattr(jaxent, name)
        losses = function(rows, partners, temperature, *also, chunk_size=chunk_size, **options)
        return jnp.sum(losses)

    number = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(shape, shape, number)


@functools.cache
def compiled(*arguments, **options):
    return lowered(*arguments, **options).compile()


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("name", "expected"), [("info_nce", 3), ("clip_loss", 6), ("sigmoid_contrastive_loss", 3)]
)
def test_the_similarities_never_exist_all_at_once(name, expected, dtype):
    pairs = 4096
    program = compiled(name, pairs, dtype, where=True)
    assert products(program) == expected
    assert not buffers(program, pairs, pairs)
    assert temporaries(program) < 4 * pairs * pairs  # less than one such matrix


@pytest.mark.parametrize("name", NAMES)
def test_products_are_fed_what_they_are_given_and_summed_in_float32(name):
    text = lowered(name, 64, jnp.bfloat16, chunk_size=None, where=True).as_text()
    types = re.findall(r"dot_general .* : \((.*), (.*)\) -> (.*)", text)
    assert len(types) == (6 if name == "clip_loss" else 3)
    for left, right, result in types:
        assert left.endswith("xbf16>")
        assert right.endswith("xbf16>")
        assert re.search(r"xf32>", result)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("name", NAMES)
def test_memory_is_linear_in_the_batch(name):
    small, large = (temporaries(compiled(name, pairs, where=True)) for pairs in (4096, 16384))
    assert large < 4.1 * small


def test_the_check_for_buffers_can_fail():
    program = compiled("info_nce", 4096, chunk_size=4096)
    assert buffers(program, 4096, 4096)


# Refusals.

REFUSALS = {
    "`queries` must be floating point, of 16 bits or more, got int32[13,5]": {
        "queries": np.zeros((PAIRS, FEATURES), np.int32)
    },
    "`queries` float32[5] and": {"queries": np.zeros(FEATURES, np.float32)},
    "of equal D": {"keys": np.zeros((PAIRS, FEATURES + 1), np.float32)},
    "without a partner": {"keys": np.zeros((PAIRS - 1, FEATURES), np.float32)},
    "has no rows": {"keys": np.zeros((0, FEATURES), np.float32)},
    "`labels` must be integers, got float32[13]": {"labels": np.zeros(PAIRS, np.float32)},
    "`labels` int32[12] must have the shape (13,)": {"labels": np.zeros(PAIRS - 1, np.int32)},
    "`where` bool[12] must have the leading shape (13,) of `queries`": {
        "where": np.zeros(PAIRS - 1, bool)
    },
    "`key_where` bool[13] must have the leading shape (19,) of `keys`": {
        "key_where": np.zeros(PAIRS, bool)
    },
    "`where` must be boolean, got int32[13]": {"where": np.zeros(PAIRS, np.int32)},
    "`weights` float32[13,1]": {"weights": np.zeros((PAIRS, 1), np.float32)},
    "`normalize` must": {"normalize": "yes"},
    "`reduction` must": {"reduction": "average"},
    "`chunk_size` must": {"chunk_size": 0},
    "`temperature` must lie": {"temperature": 0.0},
    "`temperature` must be a scalar, got float32[13]": {"temperature": np.ones(PAIRS, np.float32)},
}


@pytest.mark.parametrize("words", REFUSALS)
def test_refusals_name_the_argument(inputs, words):
    given = {"queries": inputs["rows"], "keys": inputs["partners"], "temperature": 0.1}
    with pytest.raises(AssertionError, match=rf"^jaxent\.info_nce: .*{re.escape(words)}"):
        jaxent.info_nce(**(given | REFUSALS[words]))


def test_refusals_of_pairs_name_images_and_texts(inputs):
    images, texts = inputs["rows"], inputs["partners"]
    for function, extra, words in (
        (jaxent.clip_loss, (texts, 0.0), "`images` float32[13,5] and `texts` float32[19,5]"),
        (jaxent.clip_loss, (texts[:PAIRS], math.inf), "`log_temperature` must be finite"),
        (jaxent.clip_loss, (texts[:PAIRS], images), "`log_temperature` must be a scalar"),
        (jaxent.sigmoid_contrastive_loss, (texts[:2], 0.0, 0.0), "`texts` float32[2,5]"),
        (jaxent.sigmoid_contrastive_loss, (texts, 0.0, math.nan), "`bias` must be finite"),
    ):
        pattern = rf"^jaxent\.{function.__name__}: .*{re.escape(words)}"
        with pytest.raises(AssertionError, match=pattern):
            function(images, *extra)
    with pytest.raises(AssertionError, match="`text_where`"):
        jaxent.sigmoid_contrastive_loss(images, texts, 0.0, 0.0, text_where=jnp.ones(3, bool))


def test_improper_numbers_are_nan(inputs):
    rows, partners = inputs["rows"], inputs["partners"]
    pairs = rows, partners[:PAIRS]
    for bad in (jnp.nan, jnp.inf, 0.0, -1.0):
        assert jnp.isnan(jaxent.info_nce(rows, partners, jnp.float32(bad)))
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        bad, good = jnp.float32(bad), jnp.float32(0.0)
        assert jnp.isnan(jaxent.clip_loss(*pairs, bad))
        assert jnp.isnan(jaxent.sigmoid_contrastive_loss(*pairs, bad, good))
        assert jnp.isnan(jaxent.sigmoid_contrastive_loss(*pairs, good, bad))
        # Also where the only other logits are those of texts that do not exist.
        where = jnp.arange(PAIRS) == 0
        assert jnp.isnan(jaxent.sigmoid_contrastive_loss(*pairs, good, bad, where=where))
