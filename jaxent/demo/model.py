"""A small causal model that learns 32,768 words within a minute or two.

Three things make it learn fast. Its bias starts at the words' frequencies, so that training begins
where counting ends. Input and output share one table of words. And its attention looks up *what
followed* contexts like this one, by pairing the key of each context with the word after it: with a
shared table, a word that is found in this way is a prediction, even before any training.
"""

import jax
import jax.numpy as jnp

WIDTH = 128
_RECENT = 3
_LOOKUPS = 2
_INNER = 4 * WIDTH

Parameters = dict[str, jax.Array]


def initialise(key: jax.Array, log_frequencies: jax.Array) -> Parameters:
    """Random parameters, except for the bias: the logarithm of each word's frequency."""
    keys = iter(jax.random.split(key, 7))

    def normal(scale: float, *shape: int) -> jax.Array:
        return scale * jax.random.normal(next(keys), shape)

    matching = normal((2 * WIDTH) ** -0.5, _LOOKUPS, 2 * WIDTH, WIDTH)
    return {
        "words": normal(0.5 * WIDTH**-0.5, log_frequencies.shape[0], WIDTH),
        "bias": log_frequencies,
        "recent": normal((_RECENT * WIDTH) ** -0.5, _RECENT, WIDTH, 2 * WIDTH),
        "recent_out": normal(0.5 * WIDTH**-0.5, WIDTH, WIDTH),
        # Queries and keys start out equal, so that a context finds contexts that are like it.
        "query": matching,
        "key": matching,
        "sharpness": jnp.full((1, _LOOKUPS, 1, 1), 2.0),
        "forgetting": jnp.ones((1, _LOOKUPS, 1, 1)),
        "found_nothing": jnp.zeros((1, _LOOKUPS, 1, 1)),
        "found_out": jnp.eye(WIDTH) + normal(0.02, WIDTH, WIDTH),
        "mix": normal((3 * WIDTH) ** -0.5, 3 * WIDTH, _INNER),
        "mix_out": normal(0.5 * _INNER**-0.5, _INNER, WIDTH),
    }


def hidden_states(parameters: Parameters, tokens: jax.Array) -> jax.Array:
    """The hidden state [B, T, WIDTH] of each token [B, T], from it and the tokens before it.

    The logits of the token that follows are `hidden @ parameters["words"].T + parameters["bias"]`,
    which this function leaves to the head.
    """
    words = _normalise(parameters["words"][tokens])
    recent = _recent(parameters, words)
    context = jnp.concatenate([words, _normalise(recent)], axis=-1)
    found = _what_followed(parameters, words, context) @ parameters["found_out"]
    everything = jnp.concatenate([context, found], axis=-1)
    mixed = jax.nn.gelu(everything @ parameters["mix"]) @ parameters["mix_out"]
    return mixed + found + recent @ parameters["recent_out"]


def _recent(parameters: Parameters, words: jax.Array) -> jax.Array:
    """A gated causal convolution over the last few words."""
    taps = (_delay(words, steps) @ parameters["recent"][steps] for steps in range(_RECENT))
    gate, value = jnp.split(sum(taps, start=jnp.float32(0)), 2, axis=-1)
    return jax.nn.sigmoid(gate) * value


def _what_followed(parameters: Parameters, words: jax.Array, context: jax.Array) -> jax.Array:
    """The words that followed contexts like the present one, weighted by likeness and recency."""
    query = _normalise(jnp.einsum("btd,hde->bhte", context, parameters["query"]))
    key = _normalise(jnp.einsum("btd,hde->bhte", _delay(context, 1), parameters["key"]))
    age = jnp.arange(words.shape[1])[:, None] - jnp.arange(words.shape[1])[None, :]
    age = age[None, None]
    likeness = jnp.einsum("bhte,bhse->bhts", query, key) * WIDTH**-0.5
    forgetting = parameters["forgetting"] * jnp.log1p(jnp.maximum(age, 0).astype(jnp.float32) / 16)
    scores = jnp.where(age >= 0, parameters["sharpness"] * likeness - forgetting, -jnp.inf)
    nothing = jnp.broadcast_to(parameters["found_nothing"], (*scores.shape[:-1], 1))
    attention = jax.nn.softmax(jnp.concatenate([scores, nothing], axis=-1), axis=-1)
    return jnp.einsum("bhts,bsd->btd", attention[..., :-1], words)


def _delay(values: jax.Array, steps: int) -> jax.Array:
    """Each position gets what stood that many steps before it; zeros at the beginning."""
    return jnp.pad(values, ((0, 0), (steps, 0), (0, 0)))[:, : values.shape[1]]


def _normalise(values: jax.Array) -> jax.Array:
    """Scale each vector to a mean square of one."""
    return values * jax.lax.rsqrt(jnp.mean(values**2, axis=-1, keepdims=True) + 1e-6)
