"""Inside `jax.shard_map`, with the classes split over devices: everything as on one of them.

`axis_name` is held to the whole contract: each row of the table whose loss has it is asked again,
with the loss replaced by one that cuts its arguments in blocks, one per device.
"""

import functools
import inspect
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxent
from conformance import programs, test_conformance
from conformance.case import CLASS, with_float64
from conformance.inputs import integer_labels, together
from conformance.obligations import functions, loudness, masks, numbers, transformations
from conformance.table import CASES, NOT_LOSSES
from public import FUNCTIONS

DEVICES = 8


def each(values, often=1, ids=str):
    """Parameters of a test, all but the first of them for thorough runs alone."""
    names = ids if isinstance(ids, list) else [ids(value) for value in values]
    return [
        pytest.param(value, id=name, marks=() if index < often else pytest.mark.thorough)
        for index, (value, name) in enumerate(zip(values, names, strict=True))
    ]


TRACKED = pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])


def mesh_of(**sizes):
    """A mesh of as many devices as these axes need."""
    shape = tuple(sizes.values())
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return jax.sharding.Mesh(devices, tuple(sizes))


def largest_divisor(number, *, at_most):
    return max(n for n in range(1, at_most + 1) if number % n == 0)


def takes_axis_name(function):
    return "axis_name" in inspect.signature(function).parameters


def test_there_are_eight_devices():
    assert jax.device_count() == DEVICES


CASES_INSIDE = tuple(row for row in CASES if takes_axis_name(row.function))


# --- the contract ---------------------------------------------------------------------------------


def split(row, tracked):
    """The row with its loss taken in blocks of classes, on as many devices as divide them."""

    @functools.wraps(row.function)
    def loss(*arguments, axis=-1, where=None, **options):
        logits, *others = (jnp.asarray(each) for each in arguments)
        axes = [a % logits.ndim for a in (axis if isinstance(axis, tuple) else (axis,))]
        # The first class axis is split; all programs over as many classes have the same devices.
        size, classes = logits.shape[axes[0]], np.prod([logits.shape[a] for a in axes])
        devices = largest_divisor(classes, at_most=DEVICES)
        blocks = largest_divisor(size, at_most=devices)
        blocks = blocks if devices % blocks == 0 else 1

        def spec(array):
            has_classes = array.ndim == logits.ndim and array.shape[axes[0]] == size
            return P(*[None] * axes[0], "vocab") if has_classes else P()

        arrays = {name: jnp.asarray(v) for name, v in options.items() if isinstance(v, jax.Array)}
        fixed = {name: v for name, v in options.items() if name not in arrays}
        if where is not None:
            arrays["where"] = jnp.asarray(where)
        positional = [spec(logits)]
        positional += [
            P() if a is CLASS else spec(o) for a, o in zip(row.arguments[1:], others, strict=True)
        ]

        def block(given, arrays):
            return row.function(*given, axis=axis, axis_name="vocab", **fixed, **arrays)

        return jax.shard_map(
            block,
            mesh=mesh_of(vocab=blocks, spare=devices // blocks),
            in_specs=(positional, {name: spec(array) for name, array in arrays.items()}),
            out_specs=P(),
            check_vma=tracked,
        )([logits, *others], arrays)

    # Sums over devices round in another order, and once more.
    bars = {"value_ulps": row.value_ulps + 1, "gradient_ulps": row.gradient_ulps + 1}
    return row._replace(function=loss, **bars)


# What has to do with numbers, masks and labels; the rest is the same program as without a mesh.
ASKED = (
    functions.gives_one_float32_per_example,
    functions.takes_a_single_class,
    transformations.has_one_value_under_every_transformation,
    transformations.has_one_gradient_under_every_transformation,
    transformations.has_one_hessian_in_every_mode,
    functions.needs_no_implicit_promotion,
    numbers.makes_no_nan_on_the_way,
    functions.keeps_float32_and_float64_apart,
    transformations.takes_any_axis,
    masks.masks_examples_whatever_they_hold,
    masks.takes_masks_of_every_kind,
    masks.treats_a_masked_class_as_if_it_were_not_there,
    numbers.gives_impossible_classes_no_gradient,
    loudness.lets_no_nan_hide,
    loudness.calls_an_infinite_logit_nan,
    loudness.has_no_gradient_where_nothing_is_possible,
    loudness.calls_a_label_out_of_range_nan,
    functions.takes_labels_of_every_integer_dtype,
    functions.broadcasts_equal_ranks,
    functions.takes_one_label_per_example,
    numbers.is_never_negative,
    numbers.computes_half_precision_in_float32,
    numbers.is_exact_over_few_classes,
    numbers.is_exact_over_many_classes,
    numbers.is_exact_in_float64,
    numbers.is_exact_in_half_precision,
    numbers.has_exact_hessians,
)
# In every run these are asked of the first row, and of the others the last of them alone.
OFTEN = (
    numbers.makes_no_nan_on_the_way,
    masks.masks_examples_whatever_they_hold,
    masks.takes_masks_of_every_kind,
    masks.treats_a_masked_class_as_if_it_were_not_there,
    numbers.gives_impossible_classes_no_gradient,
    loudness.calls_a_label_out_of_range_nan,
    numbers.is_exact_over_few_classes,
    numbers.is_exact_in_half_precision,
    numbers.has_exact_hessians,
    numbers.is_exact_over_many_classes,
)


def asked_inside():
    for row in CASES_INSIDE:
        for each in test_conformance.asked(row):
            if each.check not in ASKED:
                continue
            for tracked in (True, False):
                often = tracked and each.check in OFTEN[0 if row == CASES_INSIDE[0] else -1 :]
                yield pytest.param(
                    row,
                    each.check,
                    tracked,
                    id=f"{row}-{each.check.__name__}-{'tracked' if tracked else 'untracked'}",
                    marks=() if often else pytest.mark.thorough,
                )


@pytest.mark.parametrize(("row", "check", "tracked"), list(asked_inside()))
def test_contract_inside(row, check, tracked):
    with programs.compiling("everything"):  # the interpreter has one device
        check(split(row, tracked))


def test_every_function_with_an_axis_name_is_asked():
    names = {name for name in FUNCTIONS if takes_axis_name(getattr(jaxent, name))}
    heads = {name.split(",")[0] for name in HEADS}
    assert names == {row.name for row in CASES_INSIDE} | heads & names
    assert heads <= set(NOT_LOSSES)


# --- derivatives taken inside ---------------------------------------------------------------------


@TRACKED
@pytest.mark.parametrize("row", each(CASES_INSIDE))
def test_gradients_inside_are_of_the_sum_of_what_the_devices_return(row, tracked):
    """One number where JAX keeps track of what is the same on all of them, else one of each."""
    arguments = row.inputs((4,), classes=8)
    specs = tuple(P("data", *["vocab"] * (a.ndim == 2)) for a in arguments)

    def slope(*arguments, **keywords):
        return jax.grad(lambda x: jnp.sum(row.loss(x, *arguments[1:], **keywords)))(arguments[0])

    inside = jax.shard_map(
        functools.partial(slope, axis_name="vocab"),
        mesh=mesh_of(data=2, vocab=4),
        in_specs=specs,
        out_specs=specs[0],
        check_vma=tracked,
    )
    copies = 1 if tracked else 4
    close(jax.jit(inside)(*arguments), copies * slope(*map(jnp.asarray, arguments)), 2e-6)


def close(actual, expected, tolerance):
    """Equal up to a part of the largest entry."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.max(np.abs(e), initial=1e-30))


# --- heads ----------------------------------------------------------------------------------------


def every_result(hidden, kernel, bias, soft_cap, labels, **options):
    """All that `linear_softmax` says, in one number per row."""
    row = jaxent.linear_softmax(
        hidden, kernel, labels, bias=bias, soft_cap=soft_cap, block_size=4, **options
    )
    spread = row.uniform_cross_entropy + 0.3 * row.entropy + 0.1 * row.top_logit
    return row.cross_entropy + 0.2 * row.log_normalizer**2 + spread


def cross_entropy(hidden, kernel, bias, soft_cap, labels, *, sweep, reduction, **options):
    losses = jaxent.linear_softmax_cross_entropy(
        hidden,
        kernel,
        labels,
        bias=bias,
        soft_cap=soft_cap,
        label_smoothing=0.1,
        z_loss=0.01,
        sweep=sweep,
        reduction=reduction,
        where=labels != 3,
        **{"chunk_size" if sweep == "rows" else "block_size": 3},
        **options,
    )
    # One sum for the rows of a device; what a device returns has an axis of rows in any case.
    return losses if losses.ndim else losses[None]


def log_prob(hidden, kernel, bias, soft_cap, labels, **options):
    return sum(
        jaxent.linear_log_prob(
            hidden, kernel, labels, bias=bias, soft_cap=soft_cap, block_size=5, **options
        )
    )


def any_loss(hidden, kernel, bias, soft_cap, labels, axis_name=None):
    def loss_fn(logits, labels, weights):
        logits = jaxent.soft_cap(logits, 5.0)
        losses = jaxent.softmax_focal_loss(logits, labels, axis_name=axis_name)
        return weights.astype(losses.dtype) * losses

    weights = jnp.sum(hidden**2, axis=-1)
    options = {"bias": bias * soft_cap, "weights": 1.0 + weights, "reduction": "sum"}
    total = jaxent.linear_loss(loss_fn, hidden, kernel, labels, weights, chunk_size=3, **options)
    return total[None]


def distilled(hidden, kernel, bias, soft_cap, labels, *, divergence, **options):
    """The teacher is another function of the same parameters: both heads are differentiated."""
    teacher = {"teacher_bias": -bias, "teacher_soft_cap": 0.5 * soft_cap, "vocab_axis": (-1, 0)}
    total = getattr(jaxent, divergence)(
        hidden,
        kernel,
        jnp.sin(hidden),
        0.7 * jnp.cos(kernel).T,
        student_bias=bias,
        temperature=0.2 * soft_cap,
        times_squared_temperature=True,
        labels=labels,
        label_weight=0.25,
        where=labels != 3,
        reduction="sum",
        chunk_size=2,
        **teacher,
        **options,
    )
    return total[None]


def listed(hidden, kernel, bias, soft_cap, labels, *, rest, **options):
    classes = jnp.stack([labels, (labels + 7) % V, (labels + 13) % V, jnp.full_like(labels, -9)], 1)
    weights = jnp.stack([hidden[:, 0], hidden[:, 1], jnp.zeros_like(hidden[:, 0])], 1)
    log_probs = jax.nn.log_softmax(weights) - 0.3
    padding = jnp.full_like(log_probs[:, :1], -jnp.inf)
    return jaxent.linear_top_k_kl_divergence(
        hidden,
        kernel,
        jnp.concatenate([log_probs, padding], 1),
        classes,
        bias=bias,
        soft_cap=soft_cap,
        rest=rest,
        labels=labels,
        label_weight=0.5,
        reduction="none",
        **options,
    )


HEADS = {
    "linear_softmax": every_result,
    "linear_loss": any_loss,
    "linear_log_prob": log_prob,
    **{
        f"linear_softmax_cross_entropy, {sweep}, {reduction}": functools.partial(
            cross_entropy, sweep=sweep, reduction=reduction
        )
        for sweep in ("rows", "columns")
        for reduction in ("sum", "none")
    },
    **{
        f"{divergence}, {name}": functools.partial(distilled, divergence=divergence, **options)
        for divergence, name, options in (
            ("linear_kl_divergence", "forward", {}),
            ("linear_kl_divergence", "reverse", {"direction": "reverse"}),
            ("linear_jensen_shannon", "", {"beta": 0.3}),
        )
    },
    **{
        f"linear_top_k_kl_divergence, {rest}": functools.partial(listed, rest=rest)
        for rest in ("bucket", "renormalize")
    },
}
N, D, V = 6, 5, 24
SPECS = P("data"), P(None, "vocab"), P("vocab"), P(), P("data")


def head_inputs(dtype: Any = np.float64):
    generator = np.random.default_rng(0)
    shapes = (N, D), (D, V), (V,)
    parameters = tuple(generator.normal(size=shape).astype(dtype) for shape in shapes)
    return (*parameters, np.asarray(9.0, dtype)), generator.integers(V, size=N).astype(np.int32)


def inside(head, tracked, mesh=None, specs: Any = SPECS, axis_name: Any = "vocab"):
    return jax.shard_map(
        functools.partial(head, axis_name=axis_name),
        mesh=mesh_of(data=2, vocab=4) if mesh is None else mesh,
        in_specs=specs,
        out_specs=specs[0],
        check_vma=tracked,
    )


def every_derivative(head, parameters, labels, reverse):
    """The sum of all losses, its gradient, and derivatives of both along a direction."""
    generator = np.random.default_rng(1)
    direction = tuple(jnp.asarray(generator.normal(size=p.shape), p.dtype) for p in parameters)

    def total(parameters):
        return jnp.sum(head(*parameters, labels))

    def along(parameters):
        pairs = zip(jax.grad(total)(parameters), direction, strict=True)
        return sum(jnp.sum(slope * dot) for slope, dot in pairs)

    if reverse:
        return jax.grad(along)(parameters)
    return {
        "value": total(parameters),
        "gradient": jax.grad(total)(parameters),
        "tangent": jax.jvp(total, (parameters,), (direction,))[1],
        "forward over reverse": jax.jvp(jax.grad(total), (parameters,), (direction,))[1],
    }


def heads(first, often):
    """Every head, tracked or not; those after `often` for thorough runs."""
    cases = [(name, t) for t in (first, not first) for name in HEADS]
    return pytest.mark.parametrize(
        ("head", "tracked"),
        [
            pytest.param(
                HEADS[name],
                tracked,
                id=f"{name}-{'tracked' if tracked else 'untracked'}",
                marks=() if index < often else pytest.mark.thorough,
            )
            for index, (name, tracked) in enumerate(cases)
        ],
    )


@heads(True, 1)
def test_heads_have_every_derivative_of_one_device(head, tracked):
    assert_same_derivatives(head, tracked)


@heads(False, 0)
def test_heads_have_the_curvature_of_one_device_in_reverse_over_reverse(head, tracked):
    assert_same_derivatives(head, tracked, reverse=True)


def assert_same_derivatives(head, tracked, *, reverse=False):
    with with_float64():
        parameters, labels = head_inputs()
        parameters = tuple(map(jnp.asarray, parameters))
        derivatives = jax.jit(every_derivative, static_argnums=(0, 3))
        actual = derivatives(inside(head, tracked), parameters, labels, reverse)
        expected = derivatives(head, parameters, labels, reverse)
        for part, exact in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            close(part, exact, 1e-12)


@heads(False, 2)
def test_gradients_of_heads_inside(head, tracked):
    with with_float64():
        parameters, labels = head_inputs()

        def slopes(*arguments, **keywords):
            *parameters, labels = arguments
            return jax.grad(lambda p: jnp.sum(head(*p, labels, **keywords)))(tuple(parameters))

        def completed(*arguments):
            hidden, kernel, bias, soft_cap = slopes(*arguments, axis_name="vocab")
            if tracked:
                return hidden, kernel, bias, soft_cap
            # Nobody has summed what belongs to several devices, and each has a copy of the loss.
            sums = (
                jax.lax.psum(hidden, "vocab"),
                jax.lax.psum(kernel, "data"),
                jax.lax.psum(bias, "data"),
                jax.lax.psum(soft_cap, ("data", "vocab")),
            )
            return tuple(each / 4 for each in sums)

        there = jax.shard_map(
            completed,
            mesh=mesh_of(data=2, vocab=4),
            in_specs=SPECS,
            out_specs=SPECS[:4],
            check_vma=tracked,
        )
        close(jax.jit(there)(*parameters, labels), slopes(*parameters, labels), 1e-12)


@TRACKED
def test_the_sweep_is_as_exact_as_on_one_device(tracked):
    """Logits as hard as the contract's, through the identity; the shape of the kernel is [V, D]."""
    finite = [
        family
        for family in integer_labels(np.float32, 16)
        if np.isfinite(family.arrays[0]).all() and np.abs(family.arrays[0]).max() < 1e30
    ]
    _, (logits, labels) = together(finite)

    def head(logits, kernel, labels, axis_name=None):
        row = jaxent.linear_softmax(
            logits, kernel, labels, vocab_axis=0, block_size=2, axis_name=axis_name
        )
        return row._replace(top_class=row.top_class.astype(jnp.float32))

    def all_results(head):
        def results(logits):
            return head(logits, jnp.eye(16), labels)

        slopes = jax.vmap(jax.grad(lambda x, y: head(x[None], jnp.eye(16), y[None])[0][0]))
        return jax.jit(lambda x: (results(x), slopes(x, labels)))(logits)

    specs = P(), P("vocab"), P()
    there = inside(head, tracked, mesh_of(vocab=8), specs)
    for actual, expected in zip(
        jax.tree.leaves(all_results(there)), jax.tree.leaves(all_results(head)), strict=True
    ):
        size = np.spacing(np.maximum(np.abs(expected), np.finfo(np.float32).tiny))
        assert np.max(np.abs(np.asarray(actual, np.float64) - expected) / size) <= 4


def test_heads_in_sixteen_bits():
    parameters, labels = head_inputs(np.float32)
    parameters = tuple(jnp.asarray(p, jnp.bfloat16) for p in parameters)
    slopes = jax.jit(jax.grad(lambda p, head: jnp.sum(head(*p, labels)), 0), static_argnums=1)
    actual, expected = (slopes(parameters, each) for each in (inside(log_prob, True), log_prob))
    assert all(slope.dtype == jnp.bfloat16 for slope in actual)
    close(actual[:2], expected[:2], 2**-7)


# --- what is and is not exchanged -----------------------------------------------------------------


def exchanged(program):
    """The kinds and numbers of entries of everything that the devices exchange."""
    found = set()
    collective = r"= (.*?) (all-[a-z-]+|reduce-scatter|collective-[a-z-]+)\("
    for result, kind in re.findall(collective, program.as_text()):
        for sizes in re.findall(r"\w+\[([\d,]*)\]", result):
            found.add((kind, math.prod(map(int, filter(None, sizes.split(","))))))
    return found


MESHES = pytest.mark.parametrize("sizes", [{"vocab": 8}, {"data": 2, "vocab": 4}], ids=str)


@MESHES
@pytest.mark.parametrize("row", each(CASES_INSIDE))
def test_losses_exchange_numbers_of_rows(row, sizes):
    rows, classes = 14, 8 * 11
    arguments = row.inputs((rows,), classes=classes)
    of_rows = "data" if "data" in sizes else None
    specs = tuple(P(of_rows, *["vocab"] * (a.ndim == 2)) for a in arguments)
    loss = jax.shard_map(
        functools.partial(row.loss, axis_name="vocab"),
        mesh=mesh_of(**sizes),
        in_specs=specs,
        out_specs=P(of_rows),
    )
    value_and_grad = jax.value_and_grad(lambda x, *rest: jnp.sum(loss(x, *rest)))
    found = exchanged(jax.jit(value_and_grad).lower(*arguments).compile())
    local = rows // sizes.get("data", 1)
    assert ("all-reduce", local) in found
    assert found <= {("all-reduce", local), ("all-reduce", 1)}


@MESHES
@pytest.mark.parametrize("sweep", ["rows", "columns"])
def test_heads_exchange_numbers_of_rows_and_gradients(sweep, sizes):
    rows, features, classes = 4 * 7, 13, 8 * 11
    arguments = (
        jax.ShapeDtypeStruct((rows, features), np.float32),
        jax.ShapeDtypeStruct((features, classes), np.float32),
        jax.ShapeDtypeStruct((rows,), np.int32),
    )
    of_rows = "data" if "data" in sizes else None
    there = jax.shard_map(
        lambda *a: jaxent.linear_softmax_cross_entropy(
            *a, sweep=sweep, reduction="sum", axis_name="vocab"
        )[None],
        mesh=mesh_of(**sizes),
        in_specs=(P(of_rows), P(None, "vocab"), P(of_rows)),
        out_specs=P(of_rows),
    )
    total = jax.value_and_grad(lambda *a: jnp.sum(there(*a)), (0, 1))
    found = exchanged(jax.jit(total).lower(*arguments).compile())
    local, block = rows // sizes.get("data", 1), classes // sizes["vocab"]
    print(sweep, sizes, sorted(found))
    gradients = {local * features} | ({features * block} if of_rows else set())
    # Rows come in chunks of any number.
    numbers = {size for _, size in found if size <= local}
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert {size for _, size in found} == numbers | gradients


# --- names ----------------------------------------------------------------------------------------


def test_several_axes_are_taken_in_their_order():
    row, head = CASES_INSIDE[0], every_result
    mesh, axes = mesh_of(a=2, b=4), ("b", "a")
    logits, labels = row.inputs((5,), classes=24)
    loss = jax.shard_map(
        functools.partial(row.loss, axis_name=axes),
        mesh=mesh,
        in_specs=(P(None, axes), P()),
        out_specs=P(),
    )
    close(loss(logits, labels), row.loss(logits, labels), 1e-6)
    parameters, labels = head_inputs(np.float32)
    specs = P(), P(None, axes), P(axes), P(), P()
    there: Any = inside(head, True, mesh, specs, axes)
    given: Any = (*parameters, labels)
    close(jax.jit(there)(*given), head(*given), 1e-6)


@pytest.mark.parametrize("row", each(CASES_INSIDE))
def test_an_axis_of_vmap_will_do(row):
    arguments = row.inputs((3,), classes=8)
    blocks = [np.stack(np.split(a, 4, -1)) if a.ndim == 2 else a for a in arguments]
    axes = tuple(0 if a.ndim == 3 else None for a in blocks)
    loss = jax.vmap(
        functools.partial(row.loss, axis_name="blocks"), in_axes=axes, axis_name="blocks"
    )
    expected = np.asarray(row.loss(*arguments))
    close(loss(*blocks), np.stack([expected] * 4), 1e-6)
    # Of the results any one will do.
    slope = jax.grad(lambda x: jnp.sum(loss(x, *blocks[1:])[1]))(jnp.asarray(blocks[0]))
    of_whole = jax.grad(lambda x: jnp.sum(row.loss(x, *arguments[1:])))(jnp.asarray(arguments[0]))
    close(np.concatenate(slope, -1), of_whole, 2e-6)


@pytest.mark.parametrize(
    "name", ["vocab", ("vocab", "other"), 7, ["vocab"], ("vocab",) * 2], ids=str
)
def test_a_name_without_an_axis_is_refused(name):
    parameters, labels = head_inputs(np.float32)
    hidden, kernel = parameters[:2]
    calls = [
        (row.name, functools.partial(row.loss, *row.inputs(), axis_name=name))
        for row in CASES_INSIDE
    ]
    calls += [
        (head, functools.partial(getattr(jaxent, head), hidden, kernel, labels, axis_name=name))
        for head in ("linear_softmax", "linear_log_prob", "linear_softmax_cross_entropy")
    ]
    remedy = "tuple of them" if isinstance(name, list) else "shard_map"
    remedy = "once" if name == ("vocab", "vocab") else remedy
    for function, call in calls:
        with pytest.raises(AssertionError, match=rf"{function}: `axis_name` .*{remedy}"):
            call()


def test_a_loss_may_close_over_what_is_known_to_vary():
    parameters, labels = head_inputs(np.float32)
    hidden, kernel = parameters[:2]

    def total(scale, hidden, kernel, labels, axis_name=None, vary=lambda value: value):
        scale = vary(scale)

        def loss_fn(logits, labels):
            return scale * jaxent.softmax_cross_entropy_with_integer_labels(
                logits, labels, axis_name=axis_name
            )

        return jaxent.linear_loss(loss_fn, hidden, kernel, labels, reduction="sum")[None]

    def slope(**options):
        there = jax.shard_map(
            functools.partial(total, axis_name="vocab", **options),
            mesh=mesh_of(data=2, vocab=4),
            in_specs=(P(), P("data"), P(None, "vocab"), P("data")),
            out_specs=P("data"),
        )
        return jax.grad(lambda s: jnp.sum(there(s, hidden, kernel, labels)))(jnp.float32(2.0))

    with pytest.raises(AssertionError, match=r"linear_loss: `loss_fn` closes over .*pcast"):
        slope()
    lax: Any = jax.lax
    if hasattr(lax, "pcast"):
        vary = functools.partial(lax.pcast, axis_name="data", to="varying")
    else:  # before JAX 0.8
        vary = functools.partial(lax.pvary, axis_name="data")
    expected = total(jnp.float32(1.0), hidden, kernel, labels)[0]
    close(slope(vary=vary), expected, 1e-6)


@TRACKED
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_devices_that_communicate_skip_the_same_chunks(reduction, tracked):
    """Their masks differ, and the loss communicates: without care it would wait for ever."""
    (hidden, kernel, *_), labels = head_inputs(np.float32)
    where = np.arange(labels.size).reshape(labels.shape) >= labels.size // 2

    def loss_fn(logits, labels):
        losses = jaxent.softmax_cross_entropy_with_integer_labels(logits, labels, axis_name="vocab")
        return losses + jax.lax.pmax(jnp.zeros_like(jax.lax.stop_gradient(losses)), "data")

    def total(hidden, kernel, labels, where):
        losses = jaxent.linear_loss(
            *(loss_fn, hidden, kernel, labels), where=where, reduction=reduction, chunk_size=1
        )
        return jax.lax.psum(jnp.sum(losses), "data")

    there = jax.shard_map(
        total,
        mesh=mesh_of(data=2, vocab=4),
        in_specs=(P("data"), P(None, "vocab"), P("data"), P("data")),
        out_specs=P(),
        check_vma=tracked,
    )
    actual = jax.jit(jax.value_and_grad(there, (0, 1)))(hidden, kernel, labels, where)

    def plain(hidden, kernel):
        losses = jaxent.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)
        return jnp.sum(jnp.where(where, losses, 0.0))

    expected = jax.value_and_grad(plain, (0, 1))(hidden, kernel)
    jax.tree.map(functools.partial(close, tolerance=1e-5), actual, expected)


@pytest.mark.parametrize("sweep", ["rows", "columns"])
def test_one_axis_by_hand_and_the_other_by_the_partitioner(sweep):
    parameters, labels = head_inputs(np.float32)
    hidden, kernel = parameters[:2]

    def local(hidden, kernel, labels):
        return jax.lax.pmean(
            jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, sweep=sweep), "data"
        )

    def on_devices(hidden, kernel):
        return jax.shard_map(
            local,
            mesh=mesh_of(data=2, vocab=4),
            in_specs=(P("data"), P(), P("data")),
            out_specs=P(),
            axis_names={"data"},
        )(hidden, kernel, labels)

    def on_one(hidden, kernel):
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels)

    found = jax.jit(jax.value_and_grad(on_devices, (0, 1)))(hidden, kernel)
    jax.tree.map(
        lambda a, b: close(a, b, 1e-5), found, jax.value_and_grad(on_one, (0, 1))(hidden, kernel)
    )
