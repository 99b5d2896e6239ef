"""`linear_softmax`: what a softmax head says about each row, a block of the vocabulary at a time.

Every softmax loss with an integer label is a function of a few numbers per row: the label's logit,
sums over the classes, the largest logit. A sweep over blocks of the vocabulary keeps those numbers
(sums relative to the largest logit so far) and never more than a tile of logits, some rows by some
classes. Losses are ordinary JAX on the results, with any weighting and any cotangent.

The derivative is a `jax.custom_jvp` whose tangents are sweeps of their own. Their transpose is
written by hand (`_linear_map`): a sweep that recomputes each tile, forms the slope of all results
that something flows back from, and adds its products to the gradients. Four products in all, one
to look and three to go back, and beside the gradients nothing larger than a tile.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from jaxent import _parallel
from jaxent._compat import updates_in_loops_are_slow
from jaxent._float.sums import safe_reciprocal
from jaxent._heads.checks import Head
from jaxent._heads.linear_map import linear_map
from jaxent._heads.logits import contract, transform_logits
from jaxent._heads.tiling import Tiling, from_line, from_tiles, make_tiling, to_line, to_tiles
from jaxent._kernels.cross_entropy import drop_label_bound
from jaxent._kernels.softmax import coarse_shift, log_sum_over_top
from jaxent._masks import nan_where_invalid
from jaxent._parallel import device_count, with_auto_axes


class SoftmaxStats(NamedTuple):
    """The statistics of each row's softmax; the fields are those of `jaxent.LinearSoftmax`."""

    cross_entropy: jax.Array  # [...], log sum_j exp(x_j) - x_label
    log_normalizer: jax.Array  # [...], log sum_j exp(x_j)
    uniform_cross_entropy: jax.Array  # [...], log sum_j exp(x_j) - mean_j x_j
    entropy: jax.Array  # [...], sum_j p_j (log sum_k exp(x_k) - x_j)
    top_class: jax.Array  # [...], the first argmax_j x_j
    top_logit: jax.Array  # [...], max_j x_j


def linear_softmax_stats(
    head: Head,
    labels: jax.Array,
    class_where: jax.Array | None,
    soft_cap: jax.Array | None,
    temperature: jax.Array | None,
    block_size: int | None,
    axis_name: _parallel.AxisName,
) -> SoftmaxStats:
    """The statistics that `jaxent.linear_softmax` returns, from checked arguments."""
    head = dataclasses.replace(head, weights=None)
    sweep = functools.partial(_compiled, block_size=block_size, axis_name=axis_name)
    given = head, labels, class_where, soft_cap, temperature
    return with_auto_axes(sweep, *given, like=head.hidden, axes=len(head.leading_shape))


class _Sweep(NamedTuple):
    """What is fixed while tracing: how rows and classes are cut, and the dtypes.

    `dtype` is that of logits and sums; `operand` that of what matrix products are fed.
    """

    vocab_axis: int
    classes: int
    tiling: Tiling
    parts: int
    width: int
    blocks: int
    dtype: Any
    operand: Any
    axis_name: _parallel.AxisName = None  # of the devices that have the other classes

    @property
    def length(self) -> int:
        """The number of classes in each part of the vocabulary."""
        return self.classes // self.parts

    @property
    def block(self) -> int:
        """The number of classes in a block: so many next to each other in every part."""
        return self.parts * self.width

    @property
    def is_ragged(self) -> bool:
        """Whether the last block reaches back over classes already seen."""
        return self.blocks * self.width != self.length


class _Parameters(NamedTuple):
    """What the results are differentiated by.

    Rows are [*tile, tiles, D], and [parts, length] stands for the axis of the vocabulary.
    """

    hidden: Any
    kernel: Any
    bias: Any
    soft_cap: Any
    temperature: Any


class _Targets(NamedTuple):
    """What they are not: labels [*tile, tiles] and the classes' mask [parts, length]."""

    labels: Any
    class_mask: Any


class _Rows(NamedTuple):
    """What the slopes need to know of each row.

    `top` is the largest logit (0 if it is -inf) and counts as a constant: `scale` is
    1 / sum(exp(x - shift)), `beside` is one minus the probability of the label, 0 if it cannot be,
    and `mean_gap` the expectation of top - x.
    """

    top: Any
    scale: Any
    beside: Any
    mean_gap: Any
    top_class: Any


@functools.partial(jax.jit, static_argnames=("block_size", "axis_name"), inline=True)
def _compiled(
    head: Head,
    labels: jax.Array,
    class_where: jax.Array | None,
    soft_cap: jax.Array | None,
    temperature: jax.Array | None,
    block_size: int | None,
    axis_name: _parallel.AxisName,
) -> SoftmaxStats:
    dtype = head.dtype
    if math.prod(head.leading_shape) == 0:
        nothing = jnp.zeros(head.leading_shape, dtype)
        index = jnp.zeros(head.leading_shape, jnp.int32)
        return SoftmaxStats(nothing, nothing, nothing, nothing, index, nothing)
    sweep = _plan(head, dtype, block_size)._replace(axis_name=axis_name)

    hidden, where = head.hidden, head.where
    in_range = (labels >= 0) & (labels < _parallel.class_count(head.vocabulary_size, axis_name))
    labels = _own(sweep, jnp.where(in_range, labels, 0).astype(jnp.int32))
    if class_where is not None:
        class_mask = class_where[labels]
        in_range &= (
            class_mask
            if axis_name is None
            else _parallel.any_over(class_mask & (labels >= 0), axis_name)
        )
    if where is not None:
        # What a masked row holds must reach no product; its label, NaN times 0, neither.
        in_range |= ~where
        hidden = jnp.where(where[..., None], hidden, jnp.zeros((), hidden.dtype))
    parameters = _Parameters(
        _cut(sweep, hidden),
        _in_parts(sweep, head.kernel, sweep.vocab_axis),
        None if head.bias is None else _in_parts(sweep, head.bias, 0),
        None if soft_cap is None else soft_cap.astype(dtype),
        None if temperature is None else temperature.astype(dtype),
    )
    class_mask = None if class_where is None else _in_parts(sweep, class_where, 0)
    targets = _Targets(_cut(sweep, labels), class_mask)
    results, _ = _statistics(sweep, *_parallel.match_varying((parameters, targets)))
    shape = head.leading_shape
    results = SoftmaxStats(*(_join(sweep, result).reshape(shape) for result in results))
    results = results._replace(cross_entropy=nan_where_invalid(results.cross_entropy, in_range))
    if where is not None:
        results = jax.tree.map(lambda r: jnp.where(where, r, jnp.zeros((), r.dtype)), results)
    return results


def _own(sweep: _Sweep, classes: jax.Array) -> jax.Array:
    """Indices of classes among those of this device, -1 for the others."""
    if sweep.axis_name is None:
        return classes
    own = _parallel.local_labels(classes, sweep.classes, sweep.axis_name)
    return jnp.where((own >= 0) & (own < sweep.classes), own, -1)


def _plan(head: Head, dtype: Any, block_size: int | None) -> _Sweep:
    """How to cut: tiles of 2**20 logits per device on a CPU, to stay in its cache; else 2**24.

    From 2**19 to 2**22 logits and 512 to 2048 classes there is no difference on a CPU beyond the
    noise; elsewhere it has not been measured. Rows and classes are evened out, so that the last
    tile is nearly full. Rows are missing at the end of the last tile; the last block of classes
    reaches back over classes already seen.

    A block takes an equal share of each of up to 64 equal parts of the vocabulary, and of at least
    as many as there are devices. If the parts lie on several devices, each device has its share of
    every block, and no block has to be gathered. Where classes are next to each other in memory, a
    block takes 128 classes of each part: cutting out fewer takes 10% of the time of 1024 rows on a
    CPU, which is less than a gather takes.
    """
    on_cpu = jax.default_backend() == "cpu"
    if block_size is None:
        block_size = 1024 if on_cpu else 8192
    most = min(64, block_size, max(8, block_size // 128) if head.vocab_axis else block_size)
    parts = math.gcd(head.vocabulary_size, device_count(head.hidden, head.kernel))
    while 2 * parts <= most and head.vocabulary_size % (2 * parts) == 0:
        parts *= 2
    if parts > block_size:
        parts = math.gcd(parts, 2 ** (block_size.bit_length() - 1))
    length = head.vocabulary_size // parts
    blocks = -(-length // (block_size // parts))
    width = -(-length // blocks)
    logits = device_count(head.hidden, head.kernel) * (2**20 if on_cpu else 2**24)
    rows = max(128, logits // (parts * width))
    return _Sweep(
        head.vocab_axis,
        head.vocabulary_size,
        make_tiling(head.leading_shape or (1,), rows, device_count(head.hidden, head.kernel)),
        parts,
        width,
        blocks,
        dtype,
        head.operand_dtype,
    )


def _cut(sweep: _Sweep, rows: jax.Array) -> jax.Array:
    """Rows of the leading shape of `hidden` to [*tile, tiles, ...], filled up with zeros."""
    # A single row without any leading axis is one of one.
    rows = rows if sweep.tiling.shape == rows.shape[: len(sweep.tiling.shape)] else rows[None]
    return to_tiles(sweep.tiling, to_line(sweep.tiling, rows), pad_with_rows=False)


def _join(sweep: _Sweep, tiles: jax.Array) -> jax.Array:
    """The inverse of `_cut`, but for what was filled up."""
    return from_line(sweep.tiling, from_tiles(sweep.tiling, tiles))


def _in_parts(sweep: _Sweep, array: jax.Array, axis: int) -> jax.Array:
    """The axis of the vocabulary as two, [parts, length]."""
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    return array.reshape(*before, sweep.parts, -1, *after)


def _loop(step, start: Any, length: int) -> Any:
    """The carry after so many steps, which are numbered."""
    return jax.lax.scan(step, start, jnp.arange(length, dtype=jnp.int32))[0]


class _Block(NamedTuple):
    """A block of the vocabulary: what the head has of it, and which classes count, None for all.

    It begins at the same place in every part.
    """

    kernel: Any
    bias: Any
    start: Any
    fresh: Any  # the first place that no earlier block has seen
    counts: Any


def _block(sweep: _Sweep, kernel, bias, class_mask, index) -> _Block:
    fresh = index * sweep.width
    start = jnp.minimum(fresh, sweep.length - sweep.width)
    counts = None
    if sweep.is_ragged:
        places = start + jnp.arange(sweep.block, dtype=jnp.int32) % sweep.width
        # What belongs to a class is not to be computed again for each row.
        counts = jax.lax.optimization_barrier(places >= fresh)
    if class_mask is not None:
        known = _columns(sweep, class_mask, start, 0)
        counts = known if counts is None else counts & known
    if kernel is not None:
        # The barrier keeps the compiler from converting all of the kernel before it is cut.
        kernel, start = jax.lax.optimization_barrier((kernel, start))
        kernel = _columns(sweep, kernel, start, sweep.vocab_axis)
    if bias is not None:
        bias = _columns(sweep, bias, start, 0).astype(sweep.dtype)
    return _Block(kernel, bias, start, fresh, counts)


def _columns(sweep: _Sweep, array: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    # The barrier keeps the compiler from finding out about each entry where its part begins.
    columns = jax.lax.optimization_barrier(_places(sweep, array, start, axis))
    return columns.reshape(*array.shape[:axis], sweep.block, *array.shape[axis + 2 :])


def _places(sweep: _Sweep, array: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, start, sweep.width, axis + 1)


def _tile_of(sweep: _Sweep, tree: Any, index: jax.Array) -> Any:
    """The rows of one tile."""
    axis = len(sweep.tiling.tile_shape)
    take = lambda a: jax.lax.dynamic_index_in_dim(a, index, axis, keepdims=False)  # noqa: E731
    return jax.tree.map(take, tree)


def _put(sweep: _Sweep, tree: Any, values: Any, index: jax.Array) -> Any:
    """The rows of one tile put back."""
    axis = len(sweep.tiling.tile_shape)
    put = lambda a, v: jax.lax.dynamic_update_index_in_dim(a, v, index, axis)  # noqa: E731
    return jax.tree.map(put, tree, values)


def _product(sweep: _Sweep, left, left_axes, right, right_axes) -> jax.Array:
    """A product in the dtype of the operands, accumulated in the dtype of the sums."""
    return contract(left, left_axes, right, right_axes, sweep.operand, sweep.dtype)


def _project(sweep: _Sweep, hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    return _product(sweep, hidden, (hidden.ndim - 1,), kernel, (1 - sweep.vocab_axis,))


def _logits(products: jax.Array, bias, soft_cap, temperature) -> jax.Array:
    """Logits of a tile from the products of hidden and kernel."""
    biased = products if bias is None else products + _of_classes(products, bias)
    return transform_logits(biased, soft_cap, temperature)


def _of_classes(x: jax.Array, values: jax.Array) -> jax.Array:
    """What there is one of for each class, of the rank of logits."""
    return values.reshape(*[1] * (x.ndim - 1), -1)


def _tile_logits(sweep: _Sweep, parameters: _Parameters, block: _Block, hidden) -> jax.Array:
    """Logits of a tile, -inf at classes that do not count."""
    products = _project(sweep, hidden, block.kernel)
    x = _logits(products, block.bias, parameters.soft_cap, parameters.temperature)
    return _counted(block, x)


def _counted(block: _Block, x: jax.Array) -> jax.Array:
    return x if block.counts is None else jnp.where(_of_classes(x, block.counts), x, -jnp.inf)


def _number(sweep: _Sweep, block: _Block) -> jax.Array | float:
    """How many classes of the block count."""
    if block.counts is None:
        return float(sweep.block)
    return jnp.sum(block.counts, dtype=sweep.dtype)


def _place(sweep: _Sweep, block: _Block, classes: jax.Array) -> jax.Array:
    """Where in the block the class of each row is; -1 if an earlier block has seen it."""
    part, place = classes // sweep.length, classes % sweep.length
    inside = (classes >= 0) & (place >= block.fresh) & (place < block.start + sweep.width)
    return jnp.where(inside, part * sweep.width + place - block.start, -1)


def _class_at(sweep: _Sweep, block: _Block, place: jax.Array) -> jax.Array:
    """The class at a place in the block."""
    return place // sweep.width * sweep.length + block.start + place % sweep.width


def _is_class(sweep: _Sweep, block: _Block, classes: jax.Array) -> jax.Array:
    """Where in the block the class of each row is; what an earlier block has seen is nowhere."""
    place = jax.lax.optimization_barrier(_place(sweep, block, classes))
    place = place[..., None]
    return _of_classes(place, jnp.arange(sweep.block, dtype=jnp.int32)) == place


class _Sums(NamedTuple):
    """What the forward sweep keeps of each row; sums are relative to the largest logit so far."""

    top: Any  # the largest logit
    label: Any  # the label's logit
    others: Any  # sum of exp(x - shift) over all classes but the label
    beneath: Any  # the same over all classes but one largest
    spread: Any  # sum of exp(x - shift) (top - x)
    half_depth: Any  # half the mean of top - x: the difference of two finite logits may overflow
    top_class: Any


def _statistics(sweep: _Sweep, parameters: _Parameters, targets: _Targets):
    """The results of each row [*tile, tiles], and what their slopes are made of."""

    @jax.custom_jvp
    def statistics(parameters: _Parameters, targets: _Targets):
        sums, share = _look(sweep, parameters, targets)
        return _results(sweep, sums if sweep.axis_name is None else _merged(sweep, sums, share))

    @functools.partial(statistics.defjvp, symbolic_zeros=True)
    def statistics_jvp(primals, tangents):
        (parameters, targets), (dots, _) = primals, tangents
        results, rows = statistics(parameters, targets)
        dots = jax.tree.map(lambda d: None if _is_zero(d) else d, dots, is_leaf=_is_zero)
        wanted = _Parameters(*(dot is not None for dot in dots))
        parts = linear_map(
            functools.partial(_tangents, sweep),
            functools.partial(_cotangents, sweep, wanted),
            (parameters, targets, rows),
            dots,
        )
        cross_entropy, log_normalizer, uniform, entropy, top_logit = (
            _parallel.psum(part, sweep.axis_name) for part in parts
        )
        index = zero_from_primal(results.top_class)
        return (results, rows), (
            SoftmaxStats(cross_entropy, log_normalizer, uniform, entropy, index, top_logit),
            _Rows(
                top=jnp.zeros_like(rows.top),
                scale=-rows.scale * log_normalizer,
                beside=jnp.exp(-results.cross_entropy) * cross_entropy,
                mean_gap=entropy - log_normalizer,
                top_class=zero_from_primal(rows.top_class),
            ),
        )

    return statistics(parameters, targets)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _size(sweep: _Sweep, class_mask: jax.Array | None) -> jax.Array | float:
    """The number of classes."""
    if class_mask is None:
        return float(_parallel.class_count(sweep.classes, sweep.axis_name))
    number = _parallel.psum(jnp.sum(class_mask, dtype=sweep.dtype), sweep.axis_name)
    return jnp.maximum(number, 1.0)


def _possible(top: jax.Array) -> jax.Array:
    """The largest logit, 0 where it is -inf to keep NaN away."""
    return jnp.where(top == -jnp.inf, 0.0, top)


def _shift(sweep: _Sweep, top: jax.Array) -> jax.Array:
    """What exponents are relative to: near the largest logit, and so coarse that it is exact."""
    return coarse_shift(_possible(top), _parallel.class_count(sweep.classes, sweep.axis_name))


def _look(sweep: _Sweep, parameters: _Parameters, targets: _Targets) -> tuple[_Sums, jax.Array]:
    """The forward sweep, one product per tile; also the share of all classes that it has seen."""
    shape = *sweep.tiling.tile_shape, sweep.tiling.tiles
    zeros, low = jnp.zeros(shape, sweep.dtype), jnp.full(shape, -jnp.inf, sweep.dtype)
    start = _Sums(low, zeros, zeros, zeros, zeros, zeros, jnp.zeros(shape, jnp.int32))
    share = 1.0 / _size(sweep, targets.class_mask)

    def step(carry, index):
        block = _block(sweep, parameters.kernel, parameters.bias, targets.class_mask, index)

        def tile_step(carry, number):
            sums, seen = carry
            hidden, labels, known = _tile_of(
                sweep, (parameters.hidden, targets.labels, sums), number
            )
            x = _tile_logits(sweep, parameters, block, hidden)
            total = _add(sweep, known, seen, share, x, labels, block)
            return (_put(sweep, sums, total, number), seen), None

        sums, seen = _loop(tile_step, carry, sweep.tiling.tiles)
        return (sums, seen + share * _number(sweep, block)), None

    start = start, jnp.zeros((), sweep.dtype)
    return _loop(step, _parallel.match_varying(start, parameters, targets), sweep.blocks)


def _add(sweep: _Sweep, known: _Sums, seen, share, x, labels, block: _Block) -> _Sums:
    """The sums with a tile of logits added, after a part `seen` of the classes; `share` is one."""
    here = jnp.max(x, axis=-1)
    top = jnp.maximum(known.top, here)
    before, shift = _raised(sweep, known, seen, top), _shift(sweep, top)
    terms = jnp.exp(x - shift[..., None])
    is_top = x == top[..., None]
    local = _place(sweep, block, labels)
    label = jnp.take_along_axis(x, local[..., None], axis=-1, mode="clip")[..., 0]
    others = jnp.sum(
        jnp.exp(jnp.minimum(x - shift[..., None], drop_label_bound(x, local))), axis=-1
    )
    # One largest logit stays out: the one of before, if no other exceeds it, or one of this tile.
    ties = jnp.sum(is_top, axis=-1, dtype=sweep.dtype)
    tied = jnp.where(known.top == top, ties, ties - 1.0) * jnp.exp(top - shift)
    # The least of several numbers: of sharded classes, `argmax` would be gathered.
    places = _of_classes(x, jnp.arange(sweep.block, dtype=jnp.int32))
    first = _class_at(sweep, block, jnp.min(jnp.where(is_top, places, sweep.block - 1), axis=-1))

    rest = _possible(top)[..., None]
    half_depth = (0.5 * rest - 0.5 * x) * share
    if block.counts is not None:
        half_depth = jnp.where(_of_classes(x, block.counts), half_depth, 0.0)
    return _Sums(
        top=top,
        label=jnp.where(local >= 0, label, known.label),
        others=before.others + others,
        beneath=before.beneath + tied + jnp.sum(jnp.where(is_top, 0.0, terms), axis=-1),
        spread=before.spread + jnp.sum(terms * _at_most_finite(rest - x), axis=-1),
        half_depth=before.half_depth + jnp.sum(half_depth, axis=-1),
        top_class=jnp.where(
            here > known.top,
            first,
            jnp.where(here == known.top, jnp.minimum(known.top_class, first), known.top_class),
        ),
    )


def _raised(sweep: _Sweep, known: _Sums, seen, top: jax.Array) -> _Sums:
    """Sums of a part `seen` of the classes, relative to a largest logit of more of them.

    What was left out of them for being the largest comes in where it no longer is.
    """
    shift, shift_before = _shift(sweep, top), _shift(sweep, known.top)
    # Of no class there is nothing to be shifted, and the shift may go down.
    is_first = known.top == -jnp.inf
    factor = jnp.where(is_first, 0.0, jnp.exp(shift_before - shift))
    top_before = jnp.exp(known.top - shift_before)
    fallen = jnp.where(known.top == top, 0.0, top_before)
    rise = jnp.where(is_first, 0.0, _at_most_finite(top - known.top))
    half_rise = jnp.where(is_first, 0.0, 0.5 * top - 0.5 * known.top)
    return known._replace(
        top=top,
        others=known.others * factor,
        beneath=(known.beneath + fallen) * factor,
        spread=known.spread * factor + rise * factor * (known.beneath + top_before),
        half_depth=known.half_depth + seen * half_rise,
    )


def _at_most_finite(distance: jax.Array) -> jax.Array:
    """Distances, the largest number instead of an infinity: 0 times that would be NaN."""
    return jnp.minimum(distance, jnp.finfo(distance.dtype).max)


def _merged(sweep: _Sweep, sums: _Sums, seen: jax.Array) -> _Sums:
    """The sums over the classes of all devices, from those of each, a part `seen` of them."""
    total = functools.partial(_parallel.psum, axis_name=sweep.axis_name)
    top = _parallel.pmax(sums.top, sweep.axis_name)
    raised, has_top = _raised(sweep, sums, seen, top), sums.top == top
    # Each device that has a largest logit has left one out.
    ties = total(has_top.astype(sweep.dtype)) - 1.0
    offset = jax.lax.axis_index(sweep.axis_name) * sweep.classes
    last = jnp.iinfo(jnp.int32).max
    top_class = jnp.where(has_top, sums.top_class + offset, last)
    return _Sums(
        top=top,
        label=total(sums.label),
        others=total(raised.others),
        beneath=total(raised.beneath) + ties * jnp.exp(top - _shift(sweep, top)),
        spread=total(raised.spread),
        half_depth=total(raised.half_depth),
        top_class=last - _parallel.pmax(last - top_class, sweep.axis_name),
    )


def _results(sweep: _Sweep, sums: _Sums) -> tuple[SoftmaxStats, _Rows]:
    """What the sums say of each row."""
    top, shift = _possible(sums.top), _shift(sweep, sums.top)
    top_term, label_term = jnp.exp(top - shift), jnp.exp(sums.label - shift)
    # Without the label if that is on top, or else the distance to it outweighs the rest.
    above_top = log_sum_over_top(sums.others, label_term, top_term, sums.label == sums.top)
    largest = jnp.exp(sums.top - shift)
    excess = log_sum_over_top(sums.beneath, largest, top_term, True)
    mean_gap = sums.spread / (sums.beneath + largest)
    results = SoftmaxStats(
        cross_entropy=(top - sums.label) + above_top,
        log_normalizer=sums.top + excess,
        uniform_cross_entropy=2.0 * sums.half_depth + above_top,
        entropy=excess + mean_gap,
        top_class=sums.top_class,
        top_logit=sums.top,
    )
    scale = safe_reciprocal(sums.others + label_term)
    beside = jnp.where(sums.label == -jnp.inf, 0.0, sums.others * scale)
    has_top = sums.top > -jnp.inf
    return results, _Rows(
        top, scale, beside, mean_gap, _own(sweep, jnp.where(has_top, sums.top_class, -1))
    )


def _tangents(sweep: _Sweep, residuals, dots: _Parameters) -> tuple[jax.Array, ...]:
    """Of all results but `top_class`, along the tangents of those parameters that have one."""
    parameters, targets, rows = residuals
    moving = [name for name, dot in dots._asdict().items() if dot is not None]
    zeros = jnp.zeros((*sweep.tiling.tile_shape, sweep.tiling.tiles), sweep.dtype)
    zeros = _parallel.match_varying(zeros, residuals, dots)

    def step(totals, index):
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def tile(parameters, targets, rows, dots, number):
            hidden, labels, row = _tile_of(sweep, (parameters.hidden, targets.labels, rows), number)

            def logits(*values):
                given = parameters._replace(hidden=hidden)._replace(
                    **dict(zip(moving, values, strict=True))
                )
                block = _block(sweep, given.kernel, given.bias, targets.class_mask, index)
                return _tile_logits(sweep, given, block, given.hidden)

            points = parameters._replace(hidden=hidden)
            along = (
                dots
                if dots.hidden is None
                else dots._replace(hidden=_tile_of(sweep, dots.hidden, number))
            )
            x, dot = jax.jvp(
                logits, [getattr(points, n) for n in moving], [getattr(along, n) for n in moving]
            )
            block = _block(sweep, None, None, targets.class_mask, index)
            slopes = _slopes(sweep, x, labels, row, block, _size(sweep, targets.class_mask))
            return tuple(jnp.sum(slope * dot, axis=-1) for slope in slopes)

        def tile_step(totals, number):
            known = _tile_of(sweep, totals, number)
            added = tile(parameters, targets, rows, dots, number)
            return _put(sweep, totals, jax.tree.map(jnp.add, known, added), number), None

        return _loop(tile_step, totals, sweep.tiling.tiles), None

    return _loop(step, (zeros,) * 5, sweep.blocks)


def _slopes(sweep: _Sweep, x, labels, row: _Rows, block: _Block, size) -> tuple[jax.Array, ...]:
    """The derivative of each result by the logits of a tile, in the order of the results."""
    ones = jnp.ones_like(row.scale)
    units = [tuple(ones if k == i else None for k in range(5)) for i in range(5)]
    return tuple(_slope(sweep, x, labels, row, block, size, unit) for unit in units)


def _slope(sweep: _Sweep, x, labels, row: _Rows, block: _Block, size, cotangents) -> jax.Array:
    """The cotangent of the logits of a tile, for one of each row's results, None for none."""
    label, normalizer, uniform, entropy, top_logit = cotangents
    shift, scale = _shift(sweep, row.top), row.scale
    factors = [c * scale for c in (normalizer, uniform) if c is not None]
    own, scaled = None, None
    if label is not None:
        own, scaled = -row.beside * label, label * scale
    # What belongs to a row is not to be computed again for each class.
    shift, scale, factor, own, scaled, labels = jax.lax.optimization_barrier(
        (shift, scale, sum(factors[1:], factors[0]) if factors else None, own, scaled, labels)
    )
    e = jnp.exp(x - shift[..., None])
    slope = 0.0
    if factor is not None:
        slope = e * factor[..., None]
    if entropy is not None:
        p = e * scale[..., None]
        gap = jnp.where(p > 0.0, row.top[..., None] - x, 0.0)  # 0 times infinity would be NaN
        slope += p * (gap - row.mean_gap[..., None]) * entropy[..., None]
    if label is not None:
        slope += jnp.where(_is_class(sweep, block, labels), own[..., None], e * scaled[..., None])
    if uniform is not None:
        slope -= jnp.where(x == -jnp.inf, 0.0, uniform[..., None] / size)
    if top_logit is not None:
        slope += jnp.where(_is_class(sweep, block, row.top_class), top_logit[..., None], 0.0)
    return jnp.broadcast_to(slope, x.shape)


def _only(wanted: _Parameters, parameters: _Parameters) -> _Parameters:
    pairs = zip(wanted, parameters, strict=True)
    return _Parameters(*(value if want else None for want, value in pairs))


def _cotangents(sweep: _Sweep, wanted: _Parameters, residuals, cotangents) -> tuple:
    """The transpose of `_tangents`: gradients of what is wanted, from cotangents or None."""
    back = functools.partial(_sweep_back, sweep, wanted)
    if not (wanted.kernel and updates_in_loops_are_slow(residuals[0].kernel.dtype)):
        return back(residuals, cotangents)

    def transpose(residuals, dots):
        values = iter(dots)
        along = _Parameters(*(next(values) if want else None for want in wanted))
        results = zip(_tangents(sweep, residuals, along), cotangents, strict=True)
        return [result for result, cotangent in results if cotangent is not None]

    as_integers = functools.partial(back, storage=jnp.uint16)
    return linear_map(back, transpose, residuals, cotangents, compiled=as_integers)


def _sweep_back(
    sweep: _Sweep, wanted: _Parameters, residuals, cotangents, storage: Any = None
) -> tuple:
    """The backward sweep: three products per tile.

    Args:
        sweep: how to cut.
        wanted: which parameters to give gradients of.
        residuals: as in `_tangents`.
        cotangents: of the results but `top_class`, None for none.
        storage: the dtype that holds the bits of the kernel's gradient meanwhile; None is its own.

    Returns:
        The gradients of what is wanted.
    """
    parameters, targets, rows = residuals
    unit, cotangents = _in_units(sweep, cotangents)
    size = _size(sweep, targets.class_mask)

    def zero(shape, dtype=sweep.dtype):
        return _parallel.match_varying(jnp.zeros(shape, dtype), residuals, cotangents)

    everything = _Parameters(
        hidden=zero(parameters.hidden.shape),
        kernel=zero(parameters.kernel.shape, storage or parameters.kernel.dtype),
        bias=zero((sweep.parts, sweep.length)),
        soft_cap=zero(()),
        temperature=zero(()),
    )

    def step(sums: _Parameters, index):
        block = _block(sweep, parameters.kernel, parameters.bias, targets.class_mask, index)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def tile(parameters, targets, rows, cotangents, block, number):
            per_row = parameters.hidden, targets.labels, rows, cotangents
            hidden, labels, row, flowing = _tile_of(sweep, per_row, number)
            products = _project(sweep, hidden, block.kernel)
            options = block.bias, parameters.soft_cap, parameters.temperature
            x, pull_back = jax.vjp(_logits, products, *options)
            slope = _slope(sweep, _counted(block, x), labels, row, block, size, flowing)
            slope, bias, soft_cap, temperature = pull_back(slope)
            slope = slope.astype(sweep.operand)
            pair = (hidden, slope) if sweep.vocab_axis else (slope, hidden)
            axes = tuple(range(slope.ndim - 1))
            gradients = _Parameters(
                hidden=_product(sweep, slope, (len(axes),), block.kernel, (sweep.vocab_axis,)),
                kernel=_product(sweep, pair[0], axes, pair[1], axes),
                bias=bias,
                soft_cap=soft_cap,
                temperature=temperature,
            )
            return _only(wanted, gradients)

        def tile_step(sums: _Parameters, number):
            added = tile(parameters, targets, rows, cotangents, block, number)
            if sums.hidden is None:
                return jax.tree.map(jnp.add, sums, added), None
            known = sums._replace(hidden=_tile_of(sweep, sums.hidden, number))
            total = jax.tree.map(jnp.add, known, added)
            return total._replace(hidden=_put(sweep, sums.hidden, total.hidden, number)), None

        # Of the kernel and the bias only this block is at hand.
        local = sums._replace(
            kernel=zero(block.kernel.shape) if wanted.kernel else None,
            bias=zero(sweep.block) if wanted.bias else None,
        )
        local = _loop(tile_step, local, sweep.tiling.tiles)
        if wanted.kernel:
            columns = (local.kernel * unit).astype(parameters.kernel.dtype)
            columns = _add_columns(sweep, sums.kernel, columns, block, sweep.vocab_axis)
            local = local._replace(kernel=columns)
        if wanted.bias:
            local = local._replace(bias=_add_columns(sweep, sums.bias, local.bias, block, 0))
        return local, None

    sums = _loop(step, _only(wanted, everything), sweep.blocks)
    kernel = _with_bits_as(parameters.kernel.dtype, sums.kernel) if wanted.kernel else None
    sums = jax.tree.map(lambda total: total * unit, sums._replace(kernel=None))
    pairs = zip(wanted, sums._replace(kernel=kernel), parameters, strict=True)
    return tuple(total.astype(given.dtype) for want, total, given in pairs if want)


def _in_units(sweep: _Sweep, cotangents) -> tuple[jax.Array | float, Any]:
    """A power of two near the largest cotangent, and the cotangents divided by it.

    Slopes go into products in the dtype of the operands. In float16 those of a mean, a probability
    over the number of rows, would be lost: nothing beneath 6e-8 is left.
    """
    if jnp.finfo(sweep.operand).minexp <= jnp.finfo(jnp.float32).minexp:
        return 1.0, cotangents
    sizes = [
        jnp.max(jnp.where(jnp.isfinite(c), jnp.abs(c), 0.0)) for c in jax.tree.leaves(cotangents)
    ]
    largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, sizes))
    exponent = jnp.clip(jnp.frexp(largest)[1], -60, 60)
    unit = jnp.ldexp(jnp.ones((), sweep.dtype), exponent)
    return unit, jax.tree.map(lambda c: c / unit, cotangents)


def _add_columns(sweep: _Sweep, array, columns, block: _Block, axis: int) -> jax.Array:
    """An array over the vocabulary with a block added; where blocks overlap, it brings zeros."""
    columns = _in_parts(sweep, columns, axis)
    if sweep.is_ragged:
        columns += _with_bits_as(columns.dtype, _places(sweep, array, block.start, axis))
    columns = _with_bits_as(array.dtype, columns)
    return jax.lax.dynamic_update_slice_in_dim(array, columns, block.start, axis + 1)


def _with_bits_as(dtype: Any, array: jax.Array) -> jax.Array:
    return array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)
