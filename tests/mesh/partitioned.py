"""Run by mesh/test_partitioned.py, on eight devices: sharded inputs, and nothing said about it."""

import contextlib
import functools
import itertools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxent
from conformance import table
from conformance.case import with_float64
from heads.compiled import collectives, temporaries
from jaxent.plan import collectives as exchanges

# JAX 0.7 refuses `where` over explicit axes unless mask and values are typed alike.
TYPED = jax.__version_info__ >= (0, 9)
KINDS = [
    AxisType.Auto,
    pytest.param(
        AxisType.Explicit,
        marks=pytest.mark.skipif(not TYPED, reason="explicit axes were too strict before JAX 0.9"),
    ),
]


class Layout(NamedTuple):
    """A mesh, and over which of its axes arrays are divided."""

    sizes: tuple[int, ...]
    names: tuple[str, ...]
    rows: tuple[Any, ...] = (None,)  # of the leading axes
    features: Any = None  # of the kernel
    classes: Any = None
    vocab_axis: int = 1

    @property
    def kernel(self):
        pair = self.features, self.classes
        return pair if self.vocab_axis else pair[::-1]

    def mesh(self, kind=AxisType.Auto):
        devices = np.array(jax.devices()[: np.prod(self.sizes)]).reshape(self.sizes)
        return Mesh(devices, self.names, axis_types=(kind,) * len(self.names))


def in_mesh(mesh):
    """A context with that mesh; its place in JAX has moved."""
    module: Any = jax if hasattr(jax, "set_mesh") else jax.sharding
    return getattr(module, "set_mesh" if module is jax else "use_mesh")(mesh)


LAYOUTS = {
    "data": Layout((8, 1), ("data", "vocab"), ("data",)),
    "vocabulary": Layout((1, 8), ("data", "vocab"), classes="vocab"),
    "vocabulary first": Layout((1, 8), ("data", "vocab"), classes="vocab", vocab_axis=0),
    "both": Layout((4, 2), ("data", "vocab"), ("data",), classes="vocab"),
    "both, vocabulary first": Layout(
        (4, 2), ("data", "vocab"), ("data",), classes="vocab", vocab_axis=0
    ),
    "data and sequence": Layout((4, 2), ("data", "time"), ("data", "time")),
    "sequence": Layout((8,), ("time",), (None, "time")),
    "sequence and vocabulary": Layout(
        (2, 2, 2), ("data", "time", "vocab"), ("data", "time"), classes="vocab"
    ),
    "all": Layout((2, 2, 2), ("data", "vocab", "fsdp"), (("data", "fsdp"),), "fsdp", "vocab"),
}
IN_ROWS, IN_COLUMNS = "linear_softmax_cross_entropy, rows", "linear_softmax_cross_entropy, columns"


def heads(layout, sizes=(None, None)):
    """Losses of (hidden, kernel, labels) by name; `sizes` are of chunks and blocks."""
    axis, (chunk, block) = {"vocab_axis": layout.vocab_axis}, sizes
    loss, by_rows = jaxent.linear_softmax_cross_entropy, {"chunk_size": chunk}
    of_all = lambda rows: sum(jnp.mean(r) for r in rows if r.dtype != jnp.int32)  # noqa: E731
    return {
        IN_ROWS: lambda h, k, y: loss(h, k, y, sweep="rows", **by_rows, **axis),
        IN_COLUMNS: lambda h, k, y: loss(h, k, y, sweep="columns", block_size=block, **axis),
        "one loss per row": lambda h, k, y: jnp.sum(
            jnp.square(loss(h, k, y, sweep="rows", reduction="none", **by_rows, **axis))
        ),
        "linear_loss": lambda h, k, y: jaxent.linear_loss(
            jaxent.softmax_focal_loss, h, k, y, **by_rows, **axis
        ),
        "linear_softmax": lambda h, k, y: of_all(
            jaxent.linear_softmax(h, k, y, block_size=block, **axis)
        ),
        "linear_log_prob": lambda h, k, y: of_all(
            jaxent.linear_log_prob(h, k, y, block_size=block, **axis)
        ),
        "linear_kl_divergence": lambda h, k, y: jaxent.linear_kl_divergence(
            h, k, 0.5 * h, 0.5 * k, **by_rows, **axis
        ),
        "linear_jensen_shannon": lambda h, k, y: jaxent.linear_jensen_shannon(
            h, k, 0.5 * h, 0.5 * k, **by_rows, **axis
        ),
    }


HEADS = list(heads(LAYOUTS["data"]))


# What the compiler makes of it.

# Rows of which no device has a whole number of chunks or tiles.
BATCH, TIME, D, V = 8, 264, 24, 8192


@functools.cache
def compiled(name, layout) -> Any:
    leading = (BATCH * TIME,) if len(layout.rows) == 1 else (BATCH, TIME)
    return compile_sharded(heads(layout, (512, 1024))[name], layout, leading)


def compile_sharded(function, layout, leading) -> Any:
    """Value and gradients of a head's loss of rows of that shape."""
    mesh = layout.mesh()
    described = lambda shape, dtype, *spec: jax.ShapeDtypeStruct(  # noqa: E731
        shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec))
    )
    arguments = (
        described((*leading, D), "float32", *layout.rows),
        described((D, V) if layout.vocab_axis else (V, D), "float32", *layout.kernel),
        described(leading, "int32", *layout.rows),
    )
    return jax.jit(jax.value_and_grad(function, (0, 1))).lower(*arguments).compile()


FEATURES = {
    "features": Layout((8,), ("data",), ("data",), "data"),
    "features, vocabulary first": Layout((8,), ("data",), ("data",), "data", vocab_axis=0),
    "features and vocabulary": Layout((4, 2), ("data", "vocab"), ("data",), "data", "vocab"),
    "data": Layout((8,), ("data",), ("data",)),
}


@pytest.mark.parametrize("layout", FEATURES)
def test_each_block_of_columns_is_gathered_once_a_sweep_and_its_gradient_summed_once(layout):
    """Not in each of the tiles of rows, of which there are four."""
    layout, blocks, block = FEATURES[layout], 8, V // 8
    function = heads(layout, (None, block))[IN_COLUMNS]
    found = list(exchanges(compile_sharded(function, layout, (4 * 8 * 1024,)).as_text()))
    block //= 2 if layout.classes else 1
    of_kernel = [each for each in found if re.search(rf"\b{block}\b", each.shape)]
    gathered = [each for each in of_kernel if each.kind == "all-gather"]
    summed = [each for each in of_kernel if each.kind in ("all-reduce", "reduce-scatter")]
    assert sum(each.times for each in gathered) == (0 if layout.features is None else 2 * blocks)
    assert sum(each.times for each in summed) == blocks
    assert len(gathered) + len(summed) == len(of_kernel)
    assert all(each.size <= 4 * D * block for each in of_kernel), found


@pytest.mark.parametrize("by", ["a mesh in context", "a constraint on the kernel"])
def test_of_arrays_that_no_type_places_the_mesh_is_learned_from_one_line(by):
    """As where a step with `in_shardings` is compiled ahead, or called with NumPy's arrays."""
    layout, loss = FEATURES["features"], heads(FEATURES["features"], (None, V // 8))[IN_COLUMNS]
    mesh = layout.mesh()
    rows, kernel = (NamedSharding(mesh, PartitionSpec(*s)) for s in (layout.rows, layout.kernel))
    constrain = functools.partial(jax.lax.with_sharding_constraint, shardings=kernel)
    if by == "a mesh in context":
        constrain = lambda kernel: kernel  # noqa: E731

    def constrained(hidden, kernel, labels):
        return loss(hidden, constrain(kernel), labels)

    step = jax.jit(jax.value_and_grad(constrained, (0, 1)), in_shardings=(rows, kernel, rows))
    shapes = ((2**15, D), "float32"), ((D, V), "float32"), ((2**15,), "int32")
    with in_mesh(mesh) if by == "a mesh in context" else contextlib.nullcontext():
        program = step.lower(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).compile()
    assert (
        sum(each.size * each.times for each in exchanges(str(program.as_text()))) < 3.1 * 4 * D * V
    )


def test_on_16_tpus_each_block_is_gathered_once_a_sweep(monkeypatch):
    """A TPU's compiler would make a product of a kernel in parts of many small products."""
    pytest.importorskip("libtpu", reason="needs libtpu, which compiles for TPUs")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = np.array(topologies.get_topology_desc("v5e:4x4", "tpu").devices)
    mesh, features, classes = Mesh(devices, ("data",), axis_types=(AxisType.Auto,)), 512, 16384
    arguments = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec("data")))
        for shape, dtype in (
            ((2**15, features), "bfloat16"),
            ((features, classes), "bfloat16"),
            ((2**15,), "int32"),
        )
    )
    function = heads(FEATURES["features"])[IN_COLUMNS]
    lowered = jax.jit(jax.value_and_grad(function, (0, 1))).trace(*arguments)
    program = str(lowered.lower(lowering_platforms=("tpu",)).compile().as_text())
    of_kernel = [each for each in exchanges(program) if each.size > 4 * 2**15]
    kernels = sum(each.size * each.times for each in of_kernel) / (2 * features * classes)
    blocks = 2  # of 8192 classes, so large on each of 16 devices
    assert kernels <= 3
    assert sum(each.times for each in of_kernel) <= 3 * blocks, of_kernel


FEW = {"data", "both", "sequence and vocabulary", "all"}
CASES = [
    pytest.param(
        name,
        layout,
        marks=()
        if layout == "both" or (name in HEADS[:2] and layout in FEW)
        else pytest.mark.thorough,
    )
    for name in HEADS
    for layout in LAYOUTS
]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_neither_logits_nor_the_kernel_nor_its_gradient_are_gathered(name, layout):
    layout = LAYOUTS[layout]
    found = collectives(compiled(name, layout))
    assert found
    gathered = [shape for kind, shape in found if kind not in ("all-reduce", "reduce-scatter")]
    if layout.features is None:
        assert not gathered, found
    else:  # the kernel is, a part of it at a time
        assert all(D in shape and np.prod(shape) <= D * V / 2 for shape in gathered), found
    # A number of each row, or something of the size of hidden states or of the kernel: no logits.
    assert all(D in shape or np.prod(shape) <= BATCH * TIME for _, shape in found), found


@pytest.mark.parametrize("layout", ["data", "both", "data and sequence", "all"])
def test_masked_rows_are_put_last_without_leaving_their_device(layout):
    layout = LAYOUTS[layout]
    mesh = layout.mesh()
    leading = (BATCH * TIME,) if len(layout.rows) == 1 else (BATCH, TIME)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for shape, dtype, spec in (
            ((*leading, D), "float32", layout.rows),
            ((D, V), "float32", layout.kernel),
            (leading, "int32", layout.rows),
        )
    ]

    def exchanged(is_masked):
        def loss(hidden, kernel, labels):
            where = labels % 4 == 0 if is_masked else None
            return jaxent.linear_softmax_cross_entropy(
                hidden, kernel, labels, where=where, sweep="rows", chunk_size=512
            )

        program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()
        return {pair for pair in collectives(program) if pair[1] not in ((), (D,))}

    assert exchanged(is_masked=True) == exchanged(is_masked=False)


CONTRASTIVE = {
    "info_nce": lambda a, b: jaxent.info_nce(a, b, 0.1),
    "clip_loss": lambda a, b: jaxent.clip_loss(a, b, -1.0),
    "sigmoid_contrastive_loss": lambda a, b: jaxent.sigmoid_contrastive_loss(a, b, -1.0, -10.0),
}


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_of_contrastive_losses_embeddings_are_exchanged_and_no_similarities(name):
    """Both kinds are sharded along the same devices, so one has to go to the other."""
    sharding = NamedSharding(LAYOUTS["data"].mesh(), PartitionSpec("data"))
    embeddings = jax.ShapeDtypeStruct((1024, D), "float32", sharding=sharding)
    function = jax.jit(jax.value_and_grad(CONTRASTIVE[name], (0, 1)))
    found = collectives(function.lower(embeddings, embeddings).compile())
    assert found
    assert all(D in shape or np.prod(shape) <= 1024 for _, shape in found), found


@pytest.mark.parametrize("name", ["softmax_cross_entropy_with_integer_labels", "softmax_entropy"])
def test_of_sharded_logits_only_numbers_per_row_are_exchanged(name):
    mesh, rows = LAYOUTS["both"].mesh(), 64
    logits, labels = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for shape, dtype, spec in (
            ((rows, 512), "float32", ("data", "vocab")),
            ((rows,), "int32", ("data",)),
        )
    )
    loss = getattr(jaxent, name)
    data = (logits,) if name == "softmax_entropy" else (logits, labels)
    function = jax.jit(jax.value_and_grad(lambda *data: jnp.mean(loss(*data))))
    found = collectives(function.lower(*data).compile())
    assert found
    assert all(np.prod(shape) <= rows for _, shape in found), found


SIZES = [1, 2, 4, 8]
TABLE = {
    "data": lambda n: LAYOUTS["data"]._replace(sizes=(n, 1)),
    "vocabulary": lambda n: LAYOUTS["vocabulary"]._replace(sizes=(1, n)),
    "both": lambda n: LAYOUTS["both"]._replace(sizes=(n // 2 or 1, min(n, 2))),
}


@pytest.mark.parametrize("name", [IN_ROWS, IN_COLUMNS])
def test_temporaries_of_each_device_fall_with_their_number(name):
    print(f"\n{name}: temporaries of each device in KiB, of {SIZES} devices")
    for label, layout in TABLE.items():
        sizes = [temporaries(compiled(name, layout(n))) for n in SIZES]
        print(f"  {label:12}", *(f"{size / 1024:10.0f}" for size in sizes))
        # Of all rows by all classes there was a chunk or a tile; of it, each device has its share.
        # But each may hold twice a block of the kernel's gradient, a part for each of all devices.
        extra = 2 * 4 * D * 1024 if name == IN_COLUMNS else 0
        assert all(b <= a + extra for a, b in itertools.pairwise(sizes)), label
        assert sizes[-1] <= 0.5 * sizes[0] + extra, label


# Values.


@pytest.mark.parametrize("layout", ["data", "sequence and vocabulary"])
def test_masked_heads_are_those_of_one_device(layout):
    """Some devices have rows that count, one has none."""
    layout, leading = LAYOUTS[layout], (32,) if layout == "data" else (4, 8)
    with with_float64():
        arrays = small_head(layout, leading)
        where = np.arange(32).reshape(leading) % 5 == 0
        where.reshape(-1)[-4:] = False

        def loss(hidden, kernel, labels):
            return jaxent.linear_softmax_cross_entropy(
                hidden, kernel, labels, where=where, sweep="rows", chunk_size=8
            )

        function = jax.jit(functools.partial(every_derivative, loss))
        expected = function(*arrays)
        actual = function(*put(arrays, layout, AxisType.Auto))
        assert difference(actual, expected) < 1e-12


def put(tree, layout, kind):
    """Arrays of heads, (hidden, kernel, labels), on the mesh."""
    mesh, specs = layout.mesh(kind), (layout.rows, layout.kernel, layout.rows)
    place = lambda array, spec: jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))  # noqa: E731
    return tuple(map(place, tree, specs))


def every_derivative(function, hidden, kernel, labels):
    of = lambda *arrays: function(*arrays, labels)  # noqa: E731
    arrays, along = (hidden, kernel), (jnp.cos(hidden), jnp.sin(kernel))
    value_and_gradient = jax.value_and_grad(of, (0, 1))
    return jax.jvp(value_and_gradient, arrays, along)


def difference(actual, expected):
    """The largest of any leaf, relative to the leaf's largest entry."""

    def of(a, e):
        a, e = np.asarray(a), np.asarray(e)
        assert a.shape == e.shape
        return np.max(np.abs(a - e)) / np.max(np.abs(e))

    return max(jax.tree.leaves(jax.tree.map(of, actual, expected)))


def small_head(layout, leading=(16,)):
    rows, features, classes = int(np.prod(leading)), 4, 24
    generator = np.random.default_rng(rows)
    kernel = generator.normal(size=(features, classes))
    return (
        generator.normal(size=(*leading, features)),
        kernel if layout.vocab_axis else kernel.T,
        generator.integers(classes, size=leading).astype(np.int32),
    )


VALUES = [
    pytest.param(
        name,
        layout,
        marks=()
        if name in HEADS[:2] and layout == "sequence and vocabulary"
        else pytest.mark.thorough,
    )
    for name in HEADS
    for layout in LAYOUTS
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "layout"), VALUES)
def test_values_and_derivatives_of_heads_are_those_of_one_device(name, layout, kind):
    layout = LAYOUTS[layout]
    with with_float64():
        # Chunks of 6 of 16 rows and blocks of 10 of 24 classes: neither comes out even.
        function = jax.jit(functools.partial(every_derivative, heads(layout, (6, 10))[name]))
        arrays = small_head(layout, (16,) if len(layout.rows) == 1 else (4, 8))
        expected = function(*arrays)
        with in_mesh(layout.mesh(kind)):
            actual = function(*put(arrays, layout, kind))
        assert difference(actual, expected) < 1e-12


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_in_16_bits_are_rounded_by_each_device_but_not_lost(dtype):
    """Those of a device are rounded before they are sent, as those of plain logits are."""
    layout = FEATURES["features"]
    hidden, kernel, labels = small_head(layout, (4096,))
    arrays = jnp.asarray(hidden[:, :4], dtype), jnp.asarray(kernel, dtype), labels
    wide = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == dtype else a, arrays)
    gradient = jax.jit(jax.grad(heads(layout)[IN_COLUMNS], 1))
    expected, alone = gradient(*wide), gradient(*arrays)
    padded = jnp.pad(arrays[0], ((0, 0), (0, 4))), jnp.pad(arrays[1], ((0, 4), (0, 0))), labels
    actual = gradient(*put(padded, layout, AxisType.Auto))[:4]
    assert difference(jnp.float32(alone), expected) < 2 * jnp.finfo(dtype).eps
    assert difference(jnp.float32(actual), expected) < 2 * jnp.finfo(dtype).eps


def sharded(array, mesh, classes):
    """Rows on the first axis of the mesh; in a class axis, if there is one, on the second."""
    spec = ("data", *[None] * (array.ndim - 1))
    if classes and array.ndim > 1:
        spec = (*spec[:-1], "vocab")
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))


ROWS = [
    pytest.param(row, marks=() if number % 16 == 0 else pytest.mark.thorough, id=str(row))
    for number, row in enumerate(table.CASES)
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS)
def test_dense_losses_are_those_of_one_device(row, kind):
    """Of divided rows, and of divided rows and classes."""
    mesh = Layout((4, 2), ("data", "vocab")).mesh(kind)
    arguments = row.inputs((8,), 6)
    numbers = tuple(i for i, array in enumerate(arguments) if array.dtype.kind == "f")

    def losses_and_gradients(*arguments):
        losses, back = jax.vjp(row.loss, *arguments)
        gradients = back(jnp.cos(losses))
        return losses, [gradients[number] for number in numbers]

    function = jax.jit(losses_and_gradients)
    expected = function(*arguments)
    with in_mesh(mesh):
        for classes in (False, True) if row.has_class_axis else (False,):
            placed = [sharded(array, mesh, classes) for array in arguments]
            program = function.lower(*placed).compile()
            # A row is the business of its device alone, but for which branch all of them take.
            assert classes or all(shape == () for _, shape in collectives(program))
            actual = program(*placed)
            jax.tree.map(
                lambda a, e: np.testing.assert_allclose(
                    a, e, rtol=1e-5, atol=1e-5 * np.max(np.abs(e), initial=0)
                ),
                actual,
                expected,
            )


# Sizes that the mesh does not divide.


def padded(array, axis, size):
    """With NaN, so that nothing of it may count."""
    widths = [(0, size - array.shape[axis] if i == axis else 0) for i in range(array.ndim)]
    fill = np.nan if array.dtype.kind == "f" else -100
    return np.pad(array, widths, constant_values=fill)


@pytest.mark.parametrize("sweep", ["rows", "columns"])
def test_rows_and_classes_that_the_mesh_does_not_divide_are_padded_and_masked(sweep):
    """JAX itself refuses arrays that do not divide; masks make padding nothing at all."""
    layout = LAYOUTS["both"]
    rows, classes, all_rows, all_classes = 13, 21, 16, 24
    with with_float64():
        generator = np.random.default_rng(0)
        hidden, kernel = generator.normal(size=(rows, 4)), generator.normal(size=(4, classes))
        labels = generator.integers(classes, size=rows).astype(np.int32)
        with pytest.raises(ValueError, match=r"divi[ds]"):
            put((hidden, kernel, labels), layout, AxisType.Auto)

        # The kernel is padded with zeros: a masked class is -inf in the bias.
        padding = (
            padded(hidden, 0, all_rows),
            np.pad(kernel, ((0, 0), (0, 3))),
            padded(labels, 0, all_rows),
        )
        no_class = np.where(np.arange(all_classes) < classes, 0.0, -np.inf)

        def loss(hidden, kernel, labels, bias=None):
            return jaxent.linear_softmax_cross_entropy(
                hidden, kernel, labels, bias=bias, where=labels >= 0, sweep=sweep
            )

        def by_mask(hidden, kernel, labels):
            exists = jnp.arange(all_classes) < classes
            row = jaxent.linear_softmax(
                hidden, kernel, labels, where=labels >= 0, class_where=exists
            )
            return jaxent.mean(row.cross_entropy, where=labels >= 0)

        expected = jax.jit(functools.partial(every_derivative, loss))(hidden, kernel, labels)
        remedies: list[Any] = [functools.partial(loss, bias=no_class)]
        if sweep == "columns":
            remedies.append(by_mask)
        for remedy in remedies:
            function = jax.jit(functools.partial(every_derivative, remedy))
            padding_is_left_out = lambda tree: jax.tree.map(  # noqa: E731
                lambda a: (
                    a[tuple(map(slice, (rows, 4) if a.shape[0] == all_rows else (4, classes)))]
                    if a.ndim
                    else a
                ),
                tree,
            )
            actual = function(*put(padding, layout, AxisType.Auto))
            assert difference(padding_is_left_out(actual), expected) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_means_of_segments_and_next_tokens(kind):
    losses = np.arange(64, dtype=np.float32).reshape(8, 8)
    ids = np.random.default_rng(0).integers(-1, 3, (8, 8)).astype(np.int32)

    def means(losses, ids):
        labels, where = jaxent.next_tokens(ids, ids >= 0)
        options = {"axis": -1, "segment_ids": labels, "num_segments": 4}
        return jaxent.mean(losses, where, **options)

    mesh = Layout((4, 2), ("data", "time")).mesh(kind)
    given = [
        jax.device_put(a, NamedSharding(mesh, PartitionSpec("data", "time"))) for a in (losses, ids)
    ]
    with in_mesh(mesh):
        np.testing.assert_allclose(jax.jit(means)(*given), means(losses, ids), rtol=1e-6)
