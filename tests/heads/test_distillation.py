"""Divergences between two linear heads: equal to the dense ones, exact, and small."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import jaxent
from conformance.case import with_float64
from heads.compiled import buffers, products, temporaries

ROWS, FEATURES, TEACHER_FEATURES, CLASSES, LISTED = 13, 5, 3, 11, 4
KL, JENSEN_SHANNON = jaxent.linear_kl_divergence, jaxent.linear_jensen_shannon
TOP_K = jaxent.linear_top_k_kl_divergence
cross_entropy = jaxent.softmax_cross_entropy_with_integer_labels


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 9)
    teacher_logits = jax.random.normal(keys[6], (ROWS, CLASSES))
    log_probs, indices = jax.lax.top_k(jax.nn.log_softmax(teacher_logits), LISTED)
    return {
        "student": (
            jax.random.normal(keys[0], (ROWS, FEATURES)),
            jax.random.normal(keys[1], (FEATURES, CLASSES)),
            jax.random.normal(keys[2], (CLASSES,)),
        ),
        "teacher": (
            jax.random.normal(keys[3], (ROWS, TEACHER_FEATURES)),
            jax.random.normal(keys[4], (TEACHER_FEATURES, CLASSES)),
            jax.random.normal(keys[5], (CLASSES,)),
        ),
        "labels": jax.random.randint(keys[7], (ROWS,), 0, CLASSES),
        "weights": jax.random.uniform(keys[8], (ROWS,), minval=0.5),
        "where": jnp.arange(ROWS) % 3 != 1,
        "log_probs": log_probs,
        "indices": indices,
    }


def relative_error(actual, expected):
    """The largest error of any leaf, relative to the leaf's largest entry."""

    def error(a, e):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape
        return np.max(np.abs(a - e), initial=0) / max(np.max(np.abs(e), initial=0), 1e-30)

    return max(jax.tree.leaves(jax.tree.map(error, actual, expected)))


# --- equal to what is computed from all logits ----------------------------------------------------


def capped(logits, cap):
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def reduced(losses, reduction, where, weights):
    if reduction == "mean":
        return jaxent.mean(losses, where, weights)
    losses = losses if weights is None else losses * weights
    losses = losses if where is None else jnp.where(where, losses, 0.0)
    return jnp.sum(losses) if reduction == "sum" else losses


def listed_divergence(logits, log_probs, indices, rest):
    """From the definition, with a number for the classes that are not listed."""
    log_p = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_p, indices, axis=-1)
    if rest == "renormalize":
        log_probs = jax.nn.log_softmax(log_probs)
        return jnp.sum(jnp.exp(log_probs) * (log_probs - own), axis=-1)
    left, ours = (1.0 - jnp.sum(jnp.exp(x), axis=-1) for x in (log_probs, own))
    known = jnp.sum(jnp.exp(log_probs) * (log_probs - own), axis=-1)
    return known + left * jnp.log(left / ours)


CASES = {
    "forward": (KL, {"temperature": 2.0, "times_squared_temperature": True}, -1, "mean", True),
    "reverse": (KL, {"direction": "reverse", "student_soft_cap": 2.0}, (0, 1), "sum", False),
    "mixed": (KL, {"label_weight": 0.3, "temperature": 0.5, "teacher_soft_cap": 3.0}, 0, "none", 1),
    "jensen_shannon": (JENSEN_SHANNON, {"beta": 0.2, "label_weight": 0.6}, (-1, 0), "mean", False),
    "listed": (TOP_K, {"temperature": 2.0, "label_weight": 0.1}, -1, "mean", True),
    "renormalized": (TOP_K, {"rest": "renormalize", "soft_cap": 2.0}, 0, "none", False),
}
COVERED = ("forward", "renormalized")  # by other cases, but for their combination of options


def make_pair(inputs, case):
    """The streamed and the dense function of the student's arrays and the teacher's."""
    function, options, axes, reduction, masked = CASES[case]
    where, weights = (inputs["where"], inputs["weights"]) if masked else (None, None)
    labels = inputs["labels"] if "label_weight" in options else None
    common = {"where": where, "weights": weights, "reduction": reduction, "labels": labels}
    common |= {"vocab_axis": axes, "chunk_size": 4, **options}
    own, other = axes if isinstance(axes, tuple) else (axes, axes)

    def laid(kernel, axis):
        return kernel.T if axis == 0 else kernel

    def streamed(student, teacher):
        hidden, kernel, bias = student
        if function is TOP_K:
            given = hidden, laid(kernel, own), teacher, inputs["indices"]
            return TOP_K(*given, bias=bias, **common)
        theirs = teacher[0], laid(teacher[1], other)
        biases = {"student_bias": bias, "teacher_bias": teacher[2]}
        return function(hidden, laid(kernel, own), *theirs, **biases, **common)

    def dense(student, teacher):
        cap = options.get("soft_cap", options.get("student_soft_cap"))
        logits = capped(student[0] @ student[1] + student[2][None], cap)
        temperature = options.get("temperature", 1.0)
        x = logits / temperature
        if function is TOP_K:
            rest = options.get("rest", "bucket")
            losses = listed_divergence(x, teacher, inputs["indices"], rest)
        else:
            theirs = teacher[0] @ teacher[1] + teacher[2][None]
            t = capped(theirs, options.get("teacher_soft_cap")) / temperature
            if function is JENSEN_SHANNON:
                losses = jaxent.softmax_jensen_shannon(t, x, beta=options["beta"])
            else:
                pair = (t, x) if options.get("direction") == "reverse" else (x, t)
                losses = jaxent.softmax_kl_divergence(*pair)
        if options.get("times_squared_temperature"):
            losses = losses * temperature**2
        if labels is not None:
            share = options["label_weight"]
            losses = (1 - share) * losses + share * cross_entropy(logits, labels)
        return reduced(losses, reduction, where, weights)

    teacher = inputs["log_probs"] if function is TOP_K else inputs["teacher"]
    return streamed, dense, (inputs["student"], teacher)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.thorough if case in COVERED else ()) for case in CASES],
)
def test_equals_the_dense_divergence(inputs, case):
    *functions, arguments = make_pair(inputs, case)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(function):
        value, pull_back = jax.vjp(function, *arguments)
        return value, pull_back(jnp.sin(1 + jnp.arange(float(value.size))).reshape(value.shape))

    streamed, dense = map(value_and_gradients, functions)
    assert relative_error(streamed, dense) < 3e-6


@pytest.mark.thorough
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case == "mixed" else pytest.mark.thorough) for case in CASES],
)
def test_equals_the_dense_divergence_in_second_derivatives_and_mapped(inputs, case):
    *functions, arguments = make_pair(inputs, case)
    directions = jax.tree.map(lambda a: jnp.cos(a + 1), arguments)

    def everything(function):
        def scalar(*a):
            losses = function(*a)
            return jnp.sum(
                losses * jnp.sin(1 + jnp.arange(float(losses.size))).reshape(losses.shape)
            )

        grad = jax.grad(scalar, (0, 1))

        def moved(scale):
            student, teacher = arguments
            scaled = lambda hidden: grad((hidden * scale, *student[1:]), teacher)  # noqa: E731
            return jax.jvp(scaled, student[:1], directions[0][:1])

        return jax.jit(jax.vmap(moved))(jnp.array([1.0, 2.0]))

    streamed, dense = map(everything, functions)
    assert relative_error(streamed, dense) < 1e-5


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_reverse_over_reverse(inputs, case):
    *functions, arguments = make_pair(inputs, case)
    directions = jax.tree.map(lambda a: jnp.cos(a + 1), arguments)

    def along(function):
        def slope(*a):
            gradients = jax.grad(lambda *a: jnp.sum(function(*a)), (0, 1))(*a)
            parts = jax.tree.map(lambda g, d: jnp.sum(g * d), gradients, directions)
            return sum(jax.tree.leaves(parts))

        return jax.jit(jax.grad(slope, (0, 1)))(*arguments)

    streamed, dense = map(along, functions)
    assert relative_error(streamed, dense) < 1e-5


@pytest.mark.thorough
@pytest.mark.parametrize("case", ["mixed", pytest.param("listed", marks=pytest.mark.thorough)])
def test_masked_rows_have_no_influence_whatever_they_hold(inputs, case):
    where = inputs["where"]

    def spoiled(array):
        return jnp.where(where.reshape(-1, *[1] * (array.ndim - 1)), array, jnp.nan)

    def results(student, teacher, labels, indices):
        streamed, _, _ = make_pair({**inputs, "labels": labels, "indices": indices}, case)
        scalar = lambda *a: jnp.sum(streamed(*a))  # noqa: E731
        return jax.value_and_grad(scalar, (0, 1))(student, teacher)

    _, _, (student, teacher) = make_pair(inputs, case)
    clean = results(student, teacher, inputs["labels"], inputs["indices"])
    bad = spoiled(teacher) if case == "listed" else (spoiled(teacher[0]), *teacher[1:])
    dirty = results(
        (spoiled(student[0]), *student[1:]),
        bad,
        jnp.where(where, inputs["labels"], -100),
        jnp.where(where[:, None], inputs["indices"], -7),
    )
    for c, d in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(c, d)
    np.testing.assert_array_equal(dirty[1][0][0][~where], 0.0)


@pytest.mark.thorough
def test_options_may_be_traced_and_differentiated(inputs):
    (hidden, kernel, _), (teacher, teacher_kernel, _) = inputs["student"], inputs["teacher"]

    def streamed(temperature, share, cap):
        return KL(
            *(hidden, kernel, teacher, teacher_kernel),
            temperature=temperature,
            times_squared_temperature=True,
            student_soft_cap=cap,
            labels=inputs["labels"],
            label_weight=share,
            chunk_size=4,
        )

    def dense(temperature, share, cap):
        x, t = capped(hidden @ kernel, cap), teacher @ teacher_kernel
        losses = jaxent.softmax_kl_divergence(x / temperature, t / temperature) * temperature**2
        return jnp.mean((1 - share) * losses + share * cross_entropy(x, inputs["labels"]))

    options = tuple(map(jnp.float32, (1.7, 0.3, 4.0)))
    streamed, dense = (jax.jit(jax.value_and_grad(f, (0, 1, 2))) for f in (streamed, dense))
    assert relative_error(streamed(*options), dense(*options)) < 1e-5
    for bad in ((0.0, 0.3, 4.0), (1.0, -0.1, 4.0), (1.0, 1.1, 4.0), (1.0, 0.3, -1.0)):
        assert jnp.isnan(streamed(*map(jnp.float32, bad))[0]), bad


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("function", "dtypes"),
    [
        (KL, ("bfloat16", "bfloat16")),
        pytest.param(KL, ("bfloat16", "float32"), marks=pytest.mark.thorough),
        pytest.param(JENSEN_SHANNON, ("bfloat16", "bfloat16"), marks=pytest.mark.thorough),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_sixteen_bits_err_no_more_than_the_dense_divergence(function, dtypes):
    """Three-way: against float64 truth, streamed may not err more than plain 16-bit logits."""
    rows, features, classes = 101, 32, 53
    keys = jax.random.split(jax.random.key(1), 4)
    own, other = map(jnp.dtype, dtypes)
    student = jax.random.normal(keys[0], (rows, features)).astype(own)
    kernel = (jax.random.normal(keys[1], (features, classes)) / 6).astype(own)
    teacher = jax.random.normal(keys[2], (rows, features)).astype(other)
    teacher_kernel = (jax.random.normal(keys[3], (features, classes)) / 6).astype(other)
    arrays = student, kernel, teacher, teacher_kernel
    dense_form = {KL: jaxent.softmax_kl_divergence, JENSEN_SHANNON: jaxent.softmax_jensen_shannon}

    def streamed(*arrays):
        return function(*arrays, chunk_size=16)

    def dense(student, kernel, teacher, teacher_kernel):
        logits = student @ kernel, teacher @ teacher_kernel
        return jnp.mean(dense_form[function](*logits))

    results = [
        jax.tree.leaves(jax.jit(jax.value_and_grad(f, (0, 1, 2, 3)))(*arrays))
        for f in (streamed, dense)
    ]
    with with_float64():
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in arrays]
        truth = jax.tree.leaves(jax.value_and_grad(dense, (0, 1, 2, 3))(*wide))
        truth = [np.asarray(t) for t in truth]
    for s, d, t in zip(*results, truth, strict=True):
        assert s.dtype == d.dtype
        s, d = np.asarray(s, np.float64), np.asarray(d, np.float64)
        assert np.linalg.norm(s - t) <= 1.1 * np.linalg.norm(d - t) + 1e-6 * np.linalg.norm(t)


# --- exact ----------------------------------------------------------------------------------------


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize(
    ("function", "reduction"), [(KL, "sum"), (JENSEN_SHANNON, "none")], ids=["kl", "jensen_shannon"]
)
def test_equal_heads_are_0_apart_with_no_gradient(inputs, function, reduction):
    hidden, kernel, _ = inputs["student"]

    def total(*arrays):
        return jnp.sum(function(*arrays, reduction=reduction, chunk_size=4, temperature=0.7))

    value, gradients = jax.value_and_grad(total, (0, 1, 2, 3))(hidden, kernel, hidden, kernel)
    assert value == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("function", [KL, JENSEN_SHANNON])
def test_no_divergence_is_negative(inputs, function):
    hidden, kernel, _ = inputs["student"]
    for noise in (1e-7, 1e-5, 1e-2):
        near = kernel * (1 + noise * jnp.sin(jnp.arange(kernel.size).reshape(kernel.shape)))
        losses = function(hidden * 30, kernel, hidden * 30, near, reduction="none", chunk_size=4)
        assert jnp.all(losses >= 0.0)
        assert jnp.any(losses > 0.0)


@pytest.mark.thorough
def test_jensen_shannon_tends_to_the_divergences_of_the_two(inputs):
    arrays = 0.3 * inputs["student"][0], inputs["student"][1], *inputs["teacher"][:2]
    small = 1e-6
    forward = JENSEN_SHANNON(*arrays, beta=small) / small
    np.testing.assert_allclose(forward, KL(*arrays), rtol=1e-3)
    reverse = JENSEN_SHANNON(*arrays, beta=1 - small) / (1 - (1 - small))
    np.testing.assert_allclose(reverse, KL(*arrays, direction="reverse"), rtol=1e-3)


@pytest.mark.thorough
def test_a_share_of_nothing_is_nothing(inputs):
    """An infinite part with a share of 0 does not count; a bad label does."""
    hidden, kernel, _ = inputs["student"]
    theirs = inputs["teacher"][:2]
    impossible = jnp.zeros(CLASSES).at[0].set(-jnp.inf)
    first = jnp.zeros(ROWS, jnp.int32)

    def loss(share, labels):
        return KL(
            *(hidden, kernel, *theirs),
            student_bias=impossible,
            direction="reverse",
            labels=labels,
            label_weight=share,
        )

    expected = KL(hidden, kernel, *theirs, student_bias=impossible, direction="reverse")
    assert jnp.isfinite(expected)
    assert loss(0.0, first) == expected
    assert loss(0.5, first) == jnp.inf
    assert jnp.isnan(loss(0.0, first - 1))
    forward = functools.partial(KL, hidden, kernel, *theirs, student_bias=impossible)
    assert forward() == jnp.inf
    at_labels = jnp.mean(cross_entropy(hidden @ kernel + impossible[None], first + 3))
    mixed = forward(labels=first + 3, label_weight=1.0)
    np.testing.assert_allclose(mixed, at_labels, rtol=1e-6)


# --- a teacher who lists its likeliest classes ----------------------------------------------------


def listed(log_probs, indices, logits, **options):
    """Losses of rows of logits that come through a head that is the identity."""
    logits = jnp.asarray(logits, jnp.float32)
    kernel = jnp.eye(logits.shape[-1])
    return TOP_K(logits, kernel, log_probs, indices, reduction="none", **options)


@pytest.mark.thorough
def test_listed_in_full_and_in_any_order_it_is_the_whole_divergence(inputs):
    hidden, kernel, _ = inputs["student"]
    teacher, teacher_kernel, _ = inputs["teacher"]
    log_probs = jax.nn.log_softmax(teacher @ teacher_kernel)
    order = jnp.argsort(jax.random.normal(jax.random.key(5), (ROWS, CLASSES)), axis=-1)
    shuffled = jnp.take_along_axis(log_probs, order, axis=-1)
    expected = KL(hidden, kernel, teacher, teacher_kernel)
    for rest in ("bucket", "renormalize"):
        actual = TOP_K(hidden, kernel, shuffled, order, rest=rest)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.thorough
def test_grouping_classes_never_adds_to_the_divergence(inputs):
    hidden, kernel, _ = inputs["student"]
    teacher, teacher_kernel, _ = inputs["teacher"]
    whole = KL(hidden, kernel, teacher, teacher_kernel, reduction="none")
    before = jnp.zeros(ROWS)
    for count in (2, 6):
        top = jax.lax.top_k(jax.nn.log_softmax(teacher @ teacher_kernel), count)
        losses = TOP_K(hidden, kernel, *top, reduction="none")
        assert jnp.all(losses >= before)
        before = losses
    assert jnp.all(before <= whole * (1 + 1e-5))


@pytest.mark.thorough
def test_padding_is_not_looked_at():
    logits = jnp.array([[1.0, 2.0, 0.5, -1.0]] * 4)
    probs = jnp.array([[0.5, 0.2, 0.0]] * 3 + [[0.0, 0.0, 0.0]])
    indices = jnp.array([[1, 2, 3], [1, 2, -1], [1, 2, 1], [0, 0, 9]])
    losses = listed(jnp.log(probs), indices, logits)
    np.testing.assert_array_equal(losses[:2], losses[1:3])
    expected = listed_divergence(logits[:1], jnp.log(probs[:1, :2]), indices[:1, :2], "bucket")
    np.testing.assert_allclose(losses[:1], expected, rtol=1e-5)
    assert losses[3] == 0.0  # all that is known: it is some class
    slopes = jax.grad(lambda x, t: jnp.sum(listed(t, indices, x)), (0, 1))(logits, jnp.log(probs))
    assert all(jnp.all(jnp.isfinite(slope)) for slope in slopes)


@pytest.mark.thorough
def test_bad_lists_are_loud():
    lists = [
        (np.log([0.5, 0.2]), [1, 2]),  # good
        (np.log([0.5, 0.2]), [1, 4]),
        (np.log([0.5, 0.2]), [1, -1]),
        (np.log([0.5, 0.2]), [2, 2]),
        (np.log([0.7, 0.4]), [1, 2]),
        ([0.3, -5.0], [1, 2]),
        ([np.nan, -1.0], [1, 2]),
        ([np.inf, -1.0], [1, 2]),
    ]
    log_probs, indices = (jnp.array(np.array(part)) for part in zip(*lists, strict=True))
    log_probs = log_probs.astype(jnp.float32)
    is_bad = np.arange(len(lists)) > 0
    logits = jnp.array([[1.0, 2.0, 0.5, -1.0]] * len(lists))
    loss = lambda x, **masks: listed(log_probs, indices, x, **masks)  # noqa: E731
    np.testing.assert_array_equal(jnp.isnan(loss(logits)), is_bad)
    slope = jax.grad(lambda x: jnp.sum(loss(x)))(logits)
    np.testing.assert_array_equal(jnp.isnan(slope), np.broadcast_to(is_bad[:, None], slope.shape))
    assert jnp.all(jnp.isfinite(loss(logits, where=jnp.asarray(~is_bad))))


@pytest.mark.thorough
def test_indices_of_any_integer_dtype():
    logits, log_probs = jnp.array([[1.0, 2.0, 0.5, -1.0]]), jnp.log(jnp.array([[0.5, 0.2]]))
    for dtype in (jnp.int8, jnp.uint32):
        indices = jnp.array([[1, 2]], dtype)
        np.testing.assert_array_equal(
            listed(log_probs, indices, logits), listed(log_probs, jnp.array([[1, 2]]), logits)
        )
    wide = np.array([[1, 2**32 + 2]])  # must not become 2
    assert jnp.all(jnp.isnan(listed(log_probs, wide, logits)))


@pytest.mark.thorough
def test_what_is_not_listed_keeps_its_relative_accuracy():
    """A sure teacher beside a sure student: nearly nothing is left on either side."""
    cases = ((1e-6, 12.0), (1e-9, 25.0), (1e-3, 40.0), (0.5, 1.0))
    log_probs = np.array([[-surprise] for surprise, _ in cases], np.float32)
    logits = np.array([[ahead, 0.0, 1.0] for _, ahead in cases], np.float32)
    first = np.zeros((len(cases), 1), np.int32)
    losses = listed(log_probs, first, logits)
    slopes = jax.grad(lambda x: jnp.sum(listed(log_probs, first, x)))(jnp.asarray(logits))
    for row, (log_prob, x) in enumerate(zip(log_probs, logits, strict=True)):
        with mpmath.workdps(60):
            t = mpmath.exp(mpmath.mpf(float(log_prob[0])))
            terms = [mpmath.exp(mpmath.mpf(float(each))) for each in x]
            p = [term / sum(terms) for term in terms]
            left, ours = 1 - t, p[1] + p[2]
            loss = float(t * mpmath.log(t / p[0]) + left * mpmath.log(left / ours))
            slope = [float(p[0] - t), *(float(each * (1 - left / ours)) for each in p[1:])]
        np.testing.assert_allclose(losses[row], loss, rtol=2e-6)
        np.testing.assert_allclose(slopes[row], slope, rtol=2e-6)


@pytest.mark.thorough
def test_a_list_that_holds_all_but_roundings_leaves_nothing():
    """The last bits of 1 are no expectation of a class that is impossible."""
    logits = [[1.0, 2.0, -np.inf, -np.inf], [1.0, 2.0, -1.0, 0.5]]
    for probs in ([0.3, 0.7], [0.1, 0.9], [0.0, 1.0]):
        log_probs = jnp.log(jnp.array([probs] * 2))
        losses = TOP_K(
            jnp.eye(2),
            jnp.zeros((2, 4)),
            log_probs,
            jnp.array([[0, 1]] * 2),
            bias=jnp.array(logits[0]),
            reduction="none",
        )
        expected = jaxent.softmax_kl_divergence(jnp.array([logits[0][:2]] * 2), log_probs)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
    impossible = listed(jnp.log(jnp.array([[0.3, 0.5]])), jnp.array([[0, 1]]), [[1.0, 2.0]])
    assert impossible[0] == jnp.inf  # the teacher expects a class, and there is none


def test_coarse_log_probabilities_are_taken_for_what_they_are(inputs):
    """Roundings to 16 bits may add up to more than 1: then they are scaled to a total of 1."""
    hidden, kernel, _ = inputs["student"]
    log_probs, indices = jax.lax.top_k(jax.nn.log_softmax(5 * (hidden @ kernel)), CLASSES - 1)
    coarse = log_probs.astype(jnp.bfloat16)
    log_t, logits = np.asarray(coarse, np.float64), np.asarray(hidden @ kernel, np.float64)
    total = np.exp(log_t).sum(-1)
    assert (total > 1.0001).any()
    assert (total < 0.9999).any()
    log_t -= np.log(np.maximum(total, 1.0))[:, None]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(log_p, np.asarray(indices), -1)
    exact = np.sum(np.exp(log_t) * (log_t - own), axis=-1)
    rest = np.maximum(1 - total, 1e-300)
    exact += rest * np.log(rest / (1 - np.exp(own).sum(-1)))
    losses = TOP_K(hidden, kernel, coarse, indices, reduction="none")
    np.testing.assert_allclose(losses, exact, rtol=1e-5)


# --- what the compiler makes of it ----------------------------------------------------------------

N, D, TEACHER_D, V = 4096, 256, 384, 32768


def lowered(function, arguments, dtype=jnp.float32, **options):
    def loss(student, kernel, teacher, teacher_kernel, labels, log_probs, indices):
        if function is TOP_K:
            return jnp.sum(TOP_K(student, kernel, log_probs, indices, **options))
        if options.get("label_weight"):
            return function(student, kernel, teacher, teacher_kernel, labels=labels, **options)
        return jnp.sum(function(student, kernel, teacher, teacher_kernel, **options))

    shapes = (
        *((shape, dtype) for shape in ((N, D), (D, V), (N, TEACHER_D), (TEACHER_D, V))),
        ((N,), jnp.int32),
        ((N, 64), jnp.float32),
        ((N, 64), jnp.int32),
    )
    shapes = [jax.ShapeDtypeStruct(*each) for each in shapes]
    return jax.jit(jax.value_and_grad(loss, arguments)).lower(*shapes)


STUDENT, TEACHER, BOTH = (0, 1), (2, 3), (0, 1, 2, 3)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize(
    ("function", "arguments", "options", "count"),
    [
        (KL, STUDENT, {"label_weight": 0.5, "temperature": 2.0}, 4),
        (KL, TEACHER, {"direction": "reverse"}, 4),
        (KL, BOTH, {}, 6),
        (KL, STUDENT, {"reduction": "none"}, 6),
        pytest.param(JENSEN_SHANNON, STUDENT, {"beta": 0.1}, 4, marks=pytest.mark.thorough),
        (TOP_K, STUDENT, {}, 3),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_products_and_memory(function, arguments, options, count):
    """All logits of one head would be 512 MiB; those of a chunk are 8 MiB."""
    program = lowered(function, arguments, **options).compile()
    assert products(program) == count
    assert not buffers(program, N, V)
    trained = {0: 0, 1: D, 2: 0, 3: TEACHER_D}
    accumulators = sum(trained[number] for number in arguments) * V * 4
    assert temporaries(program) <= accumulators + 256 * 2**20
    for number, features in ((1, D), (3, TEACHER_D)):
        if number not in arguments:
            assert not buffers(program, features, V)


def test_half_precision_products_have_operands_of_16_bits():
    text = lowered(KL, STUDENT, jnp.bfloat16).as_text()
    signatures = re.findall(r"dot_general.* : \((.*)\) -> ", text)
    assert len(signatures) == 4
    for signature in signatures:
        assert re.fullmatch(r"tensor<\d+x\d+xbf16>, tensor<\d+x\d+xbf16>", signature)


# --- refusals -------------------------------------------------------------------------------------

REFUSALS = {
    "`student_hidden` float32[13,4]": {"student_hidden": np.zeros((ROWS, 4), np.float32)},
    "`teacher_kernel` must be floating point, of 16 bits or more, got int32": {
        "teacher_kernel": np.zeros((3, CLASSES), np.int32)
    },
    "`teacher_hidden` float32[12,3] must": {"teacher_hidden": np.zeros((12, 3), np.float32)},
    "they must be the same ones": {"teacher_kernel": np.zeros((3, 10), np.float32)},
    "`teacher_bias`": {"teacher_bias": np.zeros(3, np.float32)},
    "`vocab_axis` must be one axis or a pair": {"vocab_axis": (0, 0, 0)},
    "`vocab_axis` must be one of": {"vocab_axis": (-1, 2)},
    "`teacher_soft_cap` must": {"teacher_soft_cap": 0.0},
    "`temperature` must": {"temperature": 0.0},
    "`times_squared_temperature` must": {"times_squared_temperature": "yes"},
    "`direction` must": {"direction": "backward"},
    "`label_weight` 0.5 needs `labels`": {"label_weight": 0.5},
    "`label_weight` must": {"label_weight": 1.5},
    "`labels`": {"labels": np.zeros(3, np.int32), "label_weight": 0.5},
    "`reduction`": {"reduction": "average"},
    "`chunk_size`": {"chunk_size": 0},
}


@pytest.mark.parametrize("words", REFUSALS)
def test_refusals_name_the_argument(inputs, words):
    names = ("student_hidden", "student_kernel", "teacher_hidden", "teacher_kernel")
    arrays = (*inputs["student"][:2], *inputs["teacher"][:2])
    given = dict(zip(names, arrays, strict=True)) | REFUSALS[words]
    data = [given.pop(name) for name in names]
    with pytest.raises(
        AssertionError, match=rf"jaxent\.linear_kl_divergence: .*{re.escape(words)}"
    ):
        KL(*data, **given)


@pytest.mark.parametrize("beta", [0, 1.0, -0.5, math.nan, jnp.array(0.5)])
def test_a_share_outside_0_and_1_is_refused(inputs, beta):
    with pytest.raises(AssertionError, match="linear_jensen_shannon: `beta` must be a number"):
        JENSEN_SHANNON(*inputs["student"][:2], *inputs["teacher"][:2], beta=beta)


def test_a_token_may_have_no_leading_axes(inputs):
    hidden, kernel, _ = inputs["student"]
    log_probs, indices = inputs["log_probs"], inputs["indices"]
    found = jax.eval_shape(TOP_K, hidden[0], kernel, log_probs[0], indices[0])
    assert found.shape == ()


def test_lists_must_fit(inputs):
    hidden, kernel, _ = inputs["student"]
    log_probs, indices = inputs["log_probs"], inputs["indices"]
    for given in (
        (log_probs[:, :2], indices),
        (log_probs[:5], indices[:5]),
        (log_probs[:, 0], indices[:, 0]),
        (log_probs[:, :0], indices[:, :0]),
        (indices, indices),
        (log_probs, log_probs),
    ):
        with pytest.raises(AssertionError, match=r"linear_top_k_kl_divergence: .*`teacher_"):
            TOP_K(hidden, kernel, *given)
    with pytest.raises(AssertionError, match="`rest` must be one of"):
        TOP_K(hidden, kernel, log_probs, indices, rest="drop")
