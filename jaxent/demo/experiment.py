"""The whole experiment: prepare, train, score, compare."""

import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxent.demo import baselines, comparison, corpus, examples, loop, scoring, training
from jaxent.demo import mesh as meshes
from jaxent.demo.curve import Curve
from jaxent.demo.report import Findings
from jaxent.demo.text import Split


def run(
    split: Split,
    *,
    vocabulary_size: int,
    steps: int,
    head: str,
    seed: int,
    mesh: Mesh,
    batch: int,
    interrupted: Callable[[], bool],
) -> tuple[Findings, Curve]:
    """Do it all and show progress on stderr; after an interruption skip what is not needed."""
    _say("counting words")
    texts = corpus.prepare(split, vocabulary_size)
    length = training.window_length(texts.training)
    _say("compiling the training step")
    start = training.start(mesh, seed, texts.log_frequencies, steps)
    program = training.compile_step(head, start, batch, length)
    batches = training.batches(texts.training, seed, batch)
    learned = loop.train(program, start, texts, batches, interrupted)
    if interrupted():
        _say("interrupted: scoring what was learned; Ctrl-C again leaves at once")
    windows = tqdm(scoring.windows(texts.held_out), "scoring", dynamic_ncols=True, leave=False)
    nats = np.concatenate(list(scoring.score(learned.parameters, texts.held_out, windows)))
    costs = None
    if not interrupted():
        _say("comparing the streamed head with plain logits")
        programs = {
            name: program if name == head else training.compile_step(name, start, batch, length)
            for name in training.HEADS
        }
        tokens = meshes.put_windows(mesh, *next(batches))
        costs = comparison.compare(programs, start.parameters, start.state, *tokens)
    words = texts.vocabulary, texts.held_out, nats
    words += (baselines.unigram_nats(texts.log_frequencies, texts.held_out),)
    findings = Findings(
        training_files=len(split.training),
        training_bytes=sum(len(file.content) for file in split.training),
        held_out_files=len(split.held_out),
        held_out_bytes=len(texts.held_out_content),
        vocabulary=len(texts.vocabulary.entries),
        parameters=sum(leaf.size for leaf in learned.parameters.values()),
        head=head,
        mesh=(mesh.devices.shape[0], mesh.devices.shape[1]),
        processes=jax.process_count(),
        steps=learned.steps,
        planned_steps=steps,
        tokens_per_step=batch * length,
        training_seconds=learned.seconds,
        model_nats=nats,
        baseline_bits=baselines.code_lengths(
            texts.log_frequencies, texts.held_out, texts.held_out_content
        ),
        step_costs=costs,
        least_expected=examples.least_expected(*words),
        foreseen=examples.foreseen(*words),
    )
    seen = learned.steps * findings.tokens_per_step
    learned.curve.held_out.append((seen, findings.model_bits_per_byte))
    return findings, learned.curve


def _say(message: str) -> None:
    print(f"{message} ...", file=sys.stderr, flush=True)
