"""The named losses through a linear head against the same losses of plain logits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from conformance.case import with_float64
from heads.compiled import products, temporaries

ROWS, FEATURES, CLASSES = 19, 7, 11


def make_inputs(leading=(ROWS,), dtype="float32"):
    """What a head takes, and which rows count; `options` are those that may be differentiated."""
    generator = np.random.default_rng(leading)
    arrays = {
        "hidden": generator.normal(size=(*leading, FEATURES)),
        "kernel": generator.normal(size=(FEATURES, CLASSES)),
        "bias": generator.normal(size=CLASSES),
        "weights": generator.uniform(0.5, 1.5, size=leading),
    }
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "soft_cap": 3.0, "temperature": 0.8}
    inputs = {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
    return inputs | {
        "options": {name: jnp.asarray(value, dtype) for name, value in options.items()},
        "labels": jnp.asarray(generator.integers(CLASSES, size=leading), jnp.int32),
        "where": jnp.asarray(generator.random(leading) < 0.7),
    }


@pytest.fixture(scope="module")
def inputs():
    inputs = make_inputs()
    return inputs["hidden"], inputs["kernel"], inputs["bias"], inputs["labels"]


def dense_logits(hidden, kernel, bias=None, soft_cap=None, temperature=1.0):
    """All logits at once."""
    logits = hidden @ kernel
    if bias is not None:
        logits += bias.reshape(*[1] * (logits.ndim - 1), -1)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    return logits / temperature


def log_prob_of(logits, labels):
    log_p = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


def dense(
    hidden, kernel, labels, *, bias=None, where=None, weights=None, reduction="mean",
    label_smoothing=0.0, z_loss=0.0, **transform,
):  # fmt: skip
    """The definition, without any care for accuracy."""
    logits = dense_logits(hidden, kernel, bias, **transform)
    log_p, log_normalizer = jax.nn.log_softmax(logits), jax.nn.logsumexp(logits, axis=-1)
    losses = -(1.0 - label_smoothing) * log_prob_of(logits, labels)
    losses += z_loss * log_normalizer**2 - label_smoothing * jnp.mean(log_p, axis=-1)
    counts = jnp.ones_like(losses) if weights is None else weights
    counts = counts if where is None else jnp.where(where, counts, 0.0)
    losses *= counts
    if reduction == "none":
        return losses
    return jnp.sum(losses) / (jnp.sum(counts) if reduction == "mean" else 1.0)


def relative_error(actual, expected):
    """The largest error of any leaf, relative to the leaf's largest entry."""

    def error(a, e):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape
        return np.max(np.abs(a - e)) / max(np.max(np.abs(e)), 1e-30)

    return max(jax.tree.leaves(jax.tree.map(error, actual, expected)))


CASES = [  # sweep, reduction, vocab_axis, leading shape, whether all that is optional is given
    (None, "mean", 0, (ROWS,), True),
    ("rows", "mean", 0, (ROWS,), True),
    (None, "sum", 1, (2, 3), False),
    pytest.param(("columns", "none", -1, (2, 3), True), marks=pytest.mark.thorough),
    pytest.param(("rows", "none", -1, (2, 3), True), marks=pytest.mark.thorough),
]


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_equals_the_dense_loss_in_every_derivative(case):
    sweep, reduction, layout, leading, is_full = case
    with with_float64():  # so that nothing but a mistake is seen
        inputs = make_inputs(leading, "float64")
        cotangent = jnp.cos(jnp.arange(np.prod(leading), dtype=float)).reshape(leading)
        cotangent = cotangent if reduction == "none" else 1.0
        names = ("hidden", "kernel", *(("bias", "weights", "options") if is_full else ()))
        arguments = {name: inputs[name] for name in names}
        directions = jax.tree.map(lambda a: jnp.cos(a + 1), arguments)

        def loss(function, size, arguments):
            arguments = dict(arguments)
            head = arguments.pop("hidden"), arguments.pop("kernel")
            if size and layout == 0:
                head = head[0], head[1].T
            options = arguments | arguments.pop("options", {}) | size
            if is_full:
                options["where"] = inputs["where"]
            return function(*head, inputs["labels"], reduction=reduction, **options)

        @jax.jit
        def everything(arguments):  # one program: compiling takes all the time
            def curvature(function, trained):
                """Value, gradient and both along a direction; what is not trained is frozen."""

                def scalar(moving):
                    return jnp.sum(function(arguments | moving) * cotangent)

                given, dots = ({name: a[name] for name in trained} for a in (arguments, directions))
                return jax.jvp(jax.value_and_grad(scalar), (given,), (dots,))

            def derivatives(function):
                derivatives = {"rows": function(arguments), "all": curvature(function, names)}
                if not is_full:
                    derivatives["frozen"] = curvature(function, [n for n in names if n != "kernel"])
                return derivatives

            size = {"sweep": sweep, "vocab_axis": layout}
            # Where there is a size there is no choice of a sweep.
            size |= {"rows": {"chunk_size": 4}, "columns": {"block_size": 4}}.get(sweep, {})
            return [
                derivatives(functools.partial(loss, jaxent.linear_softmax_cross_entropy, size)),
                derivatives(functools.partial(loss, dense, {})),
            ]

        streamed, unfused = everything(arguments)
        errors = {name: relative_error(streamed[name], unfused[name]) for name in unfused}
        assert max(errors.values()) < 1e-12, errors


def test_each_option_alone_equals_its_definition(inputs):
    """As Python numbers, those that change nothing among them."""
    hidden, kernel, bias, labels = inputs
    alone = [
        {"label_smoothing": 0.1},
        {"label_smoothing": 1},
        {"z_loss": 0.01},
        {"soft_cap": 2.0},
        {"temperature": 0.7},
        {"label_smoothing": 0, "z_loss": 0, "soft_cap": None, "temperature": 1},
    ]

    @jax.jit
    def losses():
        def of(function, **how):
            return [function(hidden, kernel, labels, bias=bias, **how, **some) for some in alone]

        return [
            of(dense),
            of(jaxent.linear_softmax_cross_entropy, sweep="rows"),
            of(jaxent.linear_softmax_cross_entropy, sweep="columns"),
        ]

    expected, *streamed = losses()
    for values in streamed:
        np.testing.assert_allclose(values, expected, rtol=3e-6)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("sweep", ["rows", "columns"])
@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_at_the_edges_of_smoothing_all_derivatives_are_there(inputs, sweep, edge):
    hidden, kernel, _, labels = inputs
    point = hidden, jnp.float32(edge), jnp.linspace(0.5, 1.5, ROWS)

    def through(loss, **options):
        return lambda hidden, smoothing, weights: loss(
            hidden,
            kernel,
            labels,
            weights=weights,
            label_smoothing=smoothing,
            reduction="sum",
            **options,
        )

    def second(loss):
        towards = (jnp.ones_like(hidden), jnp.float32(1.0), jnp.ones(ROWS))
        return jax.jvp(jax.grad(loss, (0, 1, 2)), point, towards)

    streamed = through(jaxent.linear_softmax_cross_entropy, sweep=sweep)
    actual, expected = jax.jit(lambda: [second(loss) for loss in (streamed, through(dense))])()
    assert relative_error(actual, expected) < 1e-4


@pytest.mark.parametrize("sweep", ["rows", "columns"])
def test_improper_options_leave_masked_rows_alone(inputs, sweep):
    hidden, kernel, _, labels = inputs
    where = jnp.arange(ROWS) < 2

    @jax.jit
    def losses(options):
        return jaxent.linear_softmax_cross_entropy(
            hidden, kernel, labels, where=where, reduction="none", sweep=sweep, **options
        )

    for option, value in {"label_smoothing": 1.5, "z_loss": -1.0}.items():
        actual = losses({option: jnp.float32(value)})
        np.testing.assert_array_equal(jnp.isnan(actual), where)
        np.testing.assert_array_equal(actual[2:], 0.0)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("sweep", [None, "rows", "columns"])
def test_weights_do_not_decide_the_dtype(sweep):
    with with_float64():
        inputs = make_inputs()
        weights = inputs["weights"].astype("float64")

        def loss(hidden):
            return jaxent.linear_softmax_cross_entropy(
                hidden, inputs["kernel"], inputs["labels"], weights=weights, sweep=sweep
            )

        value, gradient = jax.value_and_grad(loss)(inputs["hidden"])
        assert value.dtype == gradient.dtype == loss(inputs["hidden"]).dtype == jnp.float32


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("sweep", ["rows", "columns"])
def test_the_gradient_of_a_mean_survives_float16(sweep):
    """The slope of one logit, a probability over the number of rows, is beneath its range."""
    count, classes = 8192, 512
    generator = np.random.default_rng(16)
    hidden, kernel = (
        jnp.asarray(generator.normal(size=s), "float16") for s in [(count, 2), (2, classes)]
    )
    labels = jnp.asarray(generator.integers(classes // 2, size=count), jnp.int32)
    options = {"sweep": sweep, **({"block_size": 200} if sweep == "columns" else {})}

    @jax.jit
    def gradients(hidden, kernel):
        loss = jaxent.linear_softmax_cross_entropy
        return jax.grad(loss, 1)(hidden, kernel, labels, **options)[:, classes // 2 :]

    expected = gradients(hidden.astype("float32"), kernel.astype("float32"))
    assert relative_error(gradients(hidden, kernel), expected) < 2e-3
    second = jax.jvp(functools.partial(gradients, hidden), (kernel,), (kernel,))[1]
    assert bool(jnp.all(jnp.isfinite(second)))


# Which sweep.


N, D, V = 8192, 16, 4096  # so that either sweep cuts


def compiled(trained, **options):
    """Value and gradients by these arguments, 0 for `hidden` and 1 for `kernel`."""

    def loss(hidden, kernel, labels):
        return jnp.sum(jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, **options))

    shapes = (
        jax.ShapeDtypeStruct((N, D), jnp.float32),
        jax.ShapeDtypeStruct((D, V), jnp.float32),
        jax.ShapeDtypeStruct((N,), jnp.int32),
    )
    return jax.jit(jax.value_and_grad(loss, trained) if trained else loss).lower(*shapes).compile()


OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-4, "soft_cap": 30.0, "temperature": 0.7}
BY_ROWS, BY_COLUMNS = {"sweep": "rows"}, {"sweep": "columns"}


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize(
    ("sweep", "count", "trained", "options"),
    [
        ("columns", 4, (0, 1), {}),
        ("columns", 3, (0,), {}),
        ("rows", 2, (0,), BY_ROWS),
        ("columns", 1, (), {}),
        ("columns", 4, (0, 1), {"reduction": "none"}),
        ("columns", 3, (0,), {"reduction": "none"}),
        ("rows", 3, (0, 1), {"chunk_size": 4096}),
        ("rows", 3, (0, 1), BY_ROWS),
        ("columns", 3, (0,), BY_COLUMNS),
        ("columns", 3, (0,), {"block_size": 256}),
    ],
)
def test_the_sweep_is_known_by_its_products_and_memory(sweep, count, trained, options):
    """By rows there are 64 MiB of logits at a time, by columns a few tiles of 4 MiB."""
    program = compiled(trained, **options)
    assert products(program) == count
    assert (temporaries(program) < 32 * 2**20) == (sweep == "columns")


@pytest.mark.parametrize("names", [["z_loss"], ["soft_cap"], list(OPTIONS)], ids=str)
def test_options_by_rows_take_no_memory(names):
    """Nothing of the size of the logits is kept for them: 64 MiB here, half of what there is."""
    plain, given = (
        temporaries(compiled((0, 1), sweep="rows", **{name: OPTIONS[name] for name in some}))
        for some in ([], names)
    )
    assert given <= 1.15 * plain


# The shift.


def shifted(inputs, shift, hidden, kernel, weights, **options):
    return jaxent.linear_softmax_cross_entropy(
        hidden,
        kernel,
        inputs["labels"],
        where=inputs["where"],
        weights=weights,
        shift=shift,
        **options,
    )


def value_and_gradients(function, *arguments):
    def total(*arguments):
        values = function(*arguments)
        return jnp.sum(
            values * jnp.cos(jnp.arange(float(values.size)).reshape(values.shape))
        ), values

    (_, values), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*arguments)
    return values, gradients


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize(
    ("reduction", "shift", "options"),
    [
        ("mean", 3, {"chunk_size": 4}),
        ("none", 1, {"block_size": 4}),
    ],
)
def test_a_shift_is_the_dense_loss_of_what_comes_later(reduction, shift, options):
    """And neither what the last rows hold nor the first labels, masks and weights matter."""
    inputs = make_inputs((3, 7))
    unused = np.arange(7) < shift
    inputs["labels"] = jnp.where(unused, -100, inputs["labels"])
    hidden = jnp.where(unused[::-1, None], jnp.nan, inputs["hidden"])
    weights = jnp.where(unused, jnp.nan, inputs["weights"])
    assert np.any(inputs["where"][:, :shift])

    def later(hidden, kernel, weights):
        losses = dense(
            hidden[:, :-shift],
            kernel,
            inputs["labels"][:, shift:],
            where=inputs["where"][:, shift:],
            weights=weights[:, shift:],
            reduction=reduction,
        )
        return jnp.pad(losses, ((0, 0), (0, shift))) if reduction == "none" else losses

    @jax.jit
    def both(*arguments):
        function = functools.partial(shifted, inputs, shift, reduction=reduction, **options)
        return [value_and_gradients(f, *arguments) for f in (function, later)]

    actual, expected = both(hidden, inputs["kernel"], weights)
    assert relative_error(actual, expected) < 3e-6
    _, (of_hidden, _, of_weights) = actual
    np.testing.assert_array_equal(of_hidden[:, -shift:], 0.0)
    np.testing.assert_array_equal(of_weights[:, :shift], 0.0)


@pytest.mark.parametrize("options", [BY_ROWS, BY_COLUMNS], ids=str)
def test_a_shift_past_the_end_counts_nothing(options):
    inputs = make_inputs((3, 7))
    hidden = jnp.full_like(inputs["hidden"], jnp.nan)

    @jax.jit
    def of_all(*arguments):
        return [
            value_and_gradients(functools.partial(shifted, inputs, shift, **options), *arguments)
            for shift in (7, 100)
        ]

    for leaf in jax.tree.leaves(of_all(hidden, inputs["kernel"], inputs["weights"])):
        np.testing.assert_array_equal(leaf, 0.0)


def operations_as_large_as(size, program):
    """The lines of a lowered program that mention an array of so many elements, names left out."""

    def is_large(line):
        shapes = re.findall(r"tensor<((?:\d+x)+)", line)
        return any(np.prod([int(n) for n in s.split("x")[:-1]]) >= size for s in shapes)

    lines = filter(is_large, program.as_text().splitlines())
    return sorted(re.sub(r"%[\w#]+(:\d+)?|(?<=@)\w+", "", line).strip() for line in lines)


@pytest.mark.parametrize("options", [BY_ROWS, BY_COLUMNS], ids=str)
def test_a_shift_copies_no_hidden_states(options):
    inputs = make_inputs((3, 7))
    arguments = inputs["hidden"], inputs["kernel"], inputs["weights"]

    def lowered(shift):
        function = functools.partial(shifted, inputs, shift, **options)
        return jax.jit(functools.partial(value_and_gradients, function)).lower(*arguments)

    operations = [operations_as_large_as(inputs["hidden"].size, lowered(n)) for n in (0, 1)]
    assert operations[0] == operations[1]
    assert any("dot_general" in line for line in operations[0])


# Log-probabilities.


@pytest.mark.thorough
def test_log_probabilities_and_entropies_equal_the_dense_ones():
    with with_float64():
        inputs = make_inputs((3, 7), "float64")
        exists = np.arange(CLASSES) != 4
        labels = jnp.where(inputs["labels"] == 4, 5, inputs["labels"])
        transform = {name: inputs["options"][name] for name in ("soft_cap", "temperature")}
        arguments = inputs["hidden"], inputs["kernel"], {"bias": inputs["bias"]} | transform

        def streamed(hidden, kernel, options):
            return tuple(
                jaxent.linear_log_prob(
                    hidden,
                    kernel.T,
                    labels,
                    vocab_axis=0,
                    where=inputs["where"],
                    class_where=exists,
                    shift=1,
                    block_size=4,
                    **options,
                )
            )

        def unfused(hidden, kernel, options):
            logits = dense_logits(hidden[:, :-1], kernel, **options)
            logits = jnp.where(exists, logits, -jnp.inf)
            p = jax.nn.softmax(logits)
            log_p = jnp.where(exists, jax.nn.log_softmax(logits), 0.0)
            pair = log_prob_of(logits, labels[:, 1:]), -jnp.sum(p * log_p, axis=-1)
            where = jnp.pad(inputs["where"][:, 1:], ((0, 0), (0, 1)))
            return tuple(jnp.where(where, jnp.pad(r, ((0, 0), (0, 1))), 0.0) for r in pair)

        cotangents = tuple(np.random.default_rng(0).normal(size=(2, 3, 7)))

        @jax.jit
        def both():
            def derivatives(function):
                values, pull_back = jax.vjp(function, *arguments)
                return values, pull_back(tuple(map(jnp.asarray, cotangents)))

            return [derivatives(function) for function in (streamed, unfused)]

        actual, expected = both()
        assert relative_error(actual, expected) < 1e-12
        log_prob = np.asarray(actual[0][0])
        assert not np.any(np.signbit(log_prob[log_prob == 0.0]))


def test_log_probabilities_feed_a_policy_gradient():
    """A step of PPO with a bonus for the entropy: the policy stays off the tokens' logits."""
    inputs = make_inputs((3, 7))
    labels, where = inputs["labels"], inputs["where"]
    old = -4.0 * inputs["weights"]
    advantages = jnp.array([[1.0], [-0.5], [2.0]])

    def loss(hidden, kernel, is_streamed):
        if is_streamed:
            policy = jaxent.linear_log_prob(hidden, kernel, labels, where=where, block_size=4)
            log_prob, entropy = policy.log_prob, policy.entropy
        else:
            logits = dense_logits(hidden, kernel)
            log_prob, entropy = log_prob_of(logits, labels), jaxent.softmax_entropy(logits)
        losses = jaxent.policy_gradient_loss(log_prob, old, advantages, where)
        return jaxent.mean(losses - 0.01 * entropy, where)

    @jax.jit
    def both(*arguments):
        step = jax.value_and_grad(loss, (0, 1))
        return [step(*arguments, is_streamed) for is_streamed in (True, False)]

    actual, expected = both(inputs["hidden"], inputs["kernel"])
    assert relative_error(actual, expected) < 3e-6


def test_an_entropy_that_is_not_used_costs_nothing():
    inputs = make_inputs((3, 7))
    head = inputs["hidden"], inputs["kernel"]

    def operations(results):
        def total(hidden, kernel):
            return sum(map(jnp.sum, results(hidden, kernel, inputs["labels"], block_size=4)))

        program = jax.jit(jax.value_and_grad(total, (0, 1))).lower(*head).compile()
        text = str(program.as_text())
        return products(program), text.count(" exponential("), text.count(" multiply(")

    alone = operations(lambda *a, **o: [jaxent.linear_log_prob(*a, **o).log_prob])
    both = operations(jaxent.linear_log_prob)
    assert alone[0] == both[0] == 4
    assert all(few < more for few, more in zip(alone[1:], both[1:], strict=True))


# Refusals and edges.


@pytest.mark.parametrize(
    "improper", [{"temperature": 0.0}, {"soft_cap": -1.0}, {"label_smoothing": 1.5}]
)
def test_improper_options_are_refused_or_loud(inputs, improper):
    hidden, kernel, _, labels = inputs
    with pytest.raises(AssertionError, match=f"`{next(iter(improper))}` must"):
        jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, **improper)
    traced = jax.tree.map(jnp.float32, improper)
    assert jnp.isnan(jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, **traced))


def test_bad_labels_are_nan_unless_masked(inputs):
    hidden, kernel, _, labels = inputs
    rows = jnp.array([2, 5, 7])
    spoiled = labels.at[rows].set(jnp.array([-1, -100, CLASSES]))
    keep = jnp.ones(ROWS, bool).at[rows].set(False)
    assert jnp.isnan(jaxent.linear_softmax_cross_entropy(hidden, kernel, spoiled))
    losses = jaxent.linear_softmax_cross_entropy(hidden, kernel, spoiled, reduction="none")
    np.testing.assert_array_equal(jnp.isnan(losses), ~keep)

    @jax.jit
    def value_and_gradient(hidden, labels):
        step = jax.value_and_grad(jaxent.linear_softmax_cross_entropy)
        return step(hidden, kernel, labels, where=keep)

    value, gradient = value_and_gradient(hidden.at[rows].set(jnp.nan), spoiled)
    expected, clean = value_and_gradient(hidden, labels)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(gradient, clean)
    np.testing.assert_array_equal(gradient[rows], 0.0)


def test_tiny_losses_survive_the_head():
    """A sure and right model: 4.122307e-09, where a float32 log-softmax says 0."""
    kernel = jnp.diag(jnp.full(3, 20.0))
    for reduction in ("mean", "none"):
        loss = jaxent.linear_softmax_cross_entropy(
            jnp.eye(3), kernel, jnp.arange(3), reduction=reduction
        )
        np.testing.assert_allclose(loss, 4.122307e-09, rtol=1e-6)


@pytest.mark.thorough
def test_a_tied_embedding_of_any_float_dtype(inputs):
    hidden, kernel, bias, labels = inputs
    expected = jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, bias=bias)
    tied = jaxent.linear_softmax_cross_entropy(hidden, kernel.T, labels, bias=bias, vocab_axis=0)
    np.testing.assert_allclose(tied, expected, rtol=1e-6)
    narrow = hidden.astype(jnp.bfloat16)
    step = jax.value_and_grad(jaxent.linear_softmax_cross_entropy, (0, 1))
    mixed, gradients = step(narrow, kernel, labels, bias=bias)
    expected, exact = step(narrow.astype(jnp.float32), kernel, labels, bias=bias)
    assert mixed.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)
    np.testing.assert_array_equal(gradients[0], exact[0].astype(jnp.bfloat16))
    np.testing.assert_allclose(gradients[1], exact[1], rtol=1e-5, atol=1e-7)


def test_vocabularies_of_any_size_count_no_padding():
    """Equal logits: exactly log V, whatever V is."""
    for classes in (1, 2, 129, 32003):
        loss = jaxent.linear_softmax_cross_entropy(
            jnp.ones((3, 2)), jnp.zeros((2, classes)), jnp.zeros(3, jnp.int32)
        )
        np.testing.assert_allclose(loss, np.log(classes), rtol=1e-6)


REFUSALS = {
    "`labels`": {"labels": np.zeros(ROWS, np.float32)},
    "`labels` int32[18]": {"labels": np.zeros(ROWS - 1, np.int32)},
    "`kernel`": {"kernel": np.zeros((CLASSES, FEATURES), np.float32)},
    "`z_loss`": {"z_loss": -1.0},
    "`reduction`": {"reduction": "avg"},
    "`chunk_size` must": {"chunk_size": 1.5},
    "`block_size` must": {"block_size": 0},
    "`sweep`": {"sweep": "diagonals"},
    'got `chunk_size` 4 for `sweep` "columns"': {"sweep": "columns", "chunk_size": 4},
    'got `block_size` 4 for `sweep` "rows"': {"sweep": "rows", "block_size": 4},
    "got `chunk_size` 4 and `block_size` 5 for": {"chunk_size": 4, "block_size": 5},
    "`shift` must be an integer that is not negative, got -1": {"shift": -1},
    "`shift` must be an integer that is not negative, got 1.5": {"shift": 1.5},
    "`shift` must be an integer that is not negative, got True": {"shift": True},
    "`shift` needs an axis": {
        "hidden": np.zeros(FEATURES, np.float32),
        "labels": np.zeros((), np.int32),
        "shift": 1,
    },
}
OF_LOG_PROB = (
    "`labels`",
    "`kernel`",
    "`block_size` must",
    *[w for w in REFUSALS if "`shift`" in w],
)


@pytest.mark.parametrize(
    ("function", "words"),
    [("linear_softmax_cross_entropy", words) for words in REFUSALS]
    + [("linear_log_prob", words) for words in OF_LOG_PROB],
)
def test_refusals_name_the_argument(inputs, function, words):
    hidden, kernel, _, labels = inputs
    given = {"hidden": hidden, "kernel": kernel, "labels": labels} | REFUSALS[words]
    data = [given.pop(name) for name in ("hidden", "kernel", "labels")]
    with pytest.raises(AssertionError, match=re.escape(words)) as error:
        getattr(jaxent, function)(*data, **given)
    assert f"jaxent.{function}: " in str(error.value)


def test_a_capped_head_is_the_dense_loss_of_capped_logits():
    """A class that is impossible stays so under the cap."""
    hidden, kernel, labels = jnp.eye(2, 3), jnp.ones((3, 4)), jnp.array([0, 1])
    bias = jnp.array([0.0, 0.0, 0.0, -jnp.inf])
    capped = jaxent.soft_cap(hidden @ kernel + bias[None], 2.0)
    dense = jaxent.mean(jaxent.softmax_cross_entropy_with_integer_labels(capped, labels))
    streamed = jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, bias=bias, soft_cap=2.0)
    np.testing.assert_allclose(streamed, dense, rtol=1e-6)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("option", ["soft_cap", "temperature", "z_loss"])
def test_options_that_are_infinite_are_refused_or_nan(option):
    hidden, kernel, labels = jnp.eye(2, 3), jnp.ones((3, 4)), jnp.array([0, 1])

    def loss(value):
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, **{option: value})

    with pytest.raises(AssertionError, match=option):
        loss(float("inf"))
    assert jnp.isnan(loss(jnp.array(jnp.inf)))
    assert jnp.isnan(loss(jnp.array(-1.0)))
