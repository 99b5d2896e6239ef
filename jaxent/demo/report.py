"""The results, in words and aligned figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxent.demo.comparison import StepCost
from jaxent.demo.examples import Example

_HEADS = {"plain": "plain logits", "streamed": "streamed head"}
_LONGEST_BAR = 40


@dataclass(frozen=True)
class Findings:
    """All that the report says. `model_nats` is the cost of each token of the held-out text."""

    training_files: int
    training_bytes: int
    held_out_files: int
    held_out_bytes: int
    vocabulary: int
    parameters: int
    head: str
    mesh: tuple[int, int]
    processes: int
    steps: int
    planned_steps: int
    tokens_per_step: int
    training_seconds: float
    model_nats: np.ndarray
    baseline_bits: Mapping[str, float]
    step_costs: Mapping[str, StepCost] | None
    least_expected: Sequence[Example]
    foreseen: Sequence[Example]

    @property
    def model_bits(self) -> float:
        """The length in bits of the model's code for the held-out text."""
        return float(self.model_nats.sum(dtype=np.float64)) / math.log(2)

    @property
    def devices(self) -> int:
        """How many devices took part."""
        return math.prod(self.mesh)

    @property
    def model_bits_per_byte(self) -> float:
        """What the model needs for a byte of the held-out text."""
        return self.model_bits / self.held_out_bytes

    @property
    def baseline_bits_per_byte(self) -> dict[str, float]:
        """What each baseline needs for a byte of the held-out text."""
        return {name: bits / self.held_out_bytes for name, bits in self.baseline_bits.items()}


def report(findings: Findings) -> str:
    """The whole report, in ASCII, the widest line of 80 characters."""
    sections = [
        _what_was_done(findings),
        _cross_entropy(findings),
        _code_lengths(findings),
        _step_costs(findings),
        _examples("Best foreseen words", findings.foreseen),
        _examples("Least expected words", findings.least_expected),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _what_was_done(findings: Findings) -> list[str]:
    planned = "" if findings.steps == findings.planned_steps else f" of {findings.planned_steps:,}"
    rate = findings.steps * findings.tokens_per_step / findings.training_seconds
    return [
        *_title("A language model, trained"),
        f"  learned from   {_files(findings.training_files, findings.training_bytes)}",
        f"  held out       {_files(findings.held_out_files, findings.held_out_bytes)}",
        f"  vocabulary     {findings.vocabulary:,} entries",
        f"  model          {findings.parameters:,} parameters, {_HEADS[findings.head]}",
        *_devices(findings),
        f"  training       {findings.steps:,}{planned} steps of {findings.tokens_per_step:,} tokens"
        f" in {findings.training_seconds:.0f} s, {rate:,.0f} tokens/s",
    ]


def _devices(findings: Findings) -> list[str]:
    if findings.devices == 1:
        return []
    data, vocabulary = findings.mesh
    several = f", in {findings.processes} processes" if findings.processes > 1 else ""
    return [
        f"  devices        {findings.devices}: {data} parts of the data by {vocabulary} of the "
        f"vocabulary{several}"
    ]


def _cross_entropy(findings: Findings) -> list[str]:
    nats = findings.model_bits * math.log(2) / len(findings.model_nats)
    perplexity = math.exp(min(nats, 700.0))
    return [
        *_title(f"On the held-out text, {len(findings.model_nats):,} tokens"),
        f"  cross-entropy {nats:12.4f}  nats per token",
        f"                {nats / math.log(2):12.4f}  bits per token",
        f"  perplexity    {perplexity:12,.1f}  equally likely tokens would be as hard to guess",
    ]


def _code_lengths(findings: Findings) -> list[str]:
    rows = {**findings.baseline_bits_per_byte, "this model": findings.model_bits_per_byte}
    most = max(rows.values())
    bars = [
        f"  {name:<14}{bits:12.3f}  {'#' * max(1, round(_LONGEST_BAR * bits / most))}"
        for name, bits in rows.items()
    ]
    return [
        *_title("The same as a code length, in bits per byte of that text"),
        *bars,
        "",
        f"  Coded by the model, its {_bytes(findings.held_out_bytes)} would take "
        f"{math.ceil(findings.model_bits / 8):,}. Model and",
        "  unigram code know the training text; gzip and lzma start from nothing.",
    ]


def _step_costs(findings: Findings) -> list[str]:
    if findings.step_costs is None:
        return []
    plain, streamed = (_cost(findings.step_costs[name]) for name in ("plain", "streamed"))
    rows = [
        ("", "memory", "time", "sent"),
        (_HEADS["plain"], _memory(plain[0]), f"{plain[1]:,.0f} ms", _memory(plain[2])),
        (_HEADS["streamed"], _memory(streamed[0]), f"{streamed[1]:,.0f} ms", _memory(streamed[2])),
        ("ratio", *(_ratio(*pair) for pair in zip(streamed, plain, strict=True))),
    ]
    size = f"{findings.tokens_per_step:,} tokens x {findings.vocabulary:,} entries"
    if findings.devices == 1:
        title, columns, kinds = f"What a training step costs, {size}", 2, []
    else:
        title, columns = f"What a training step costs each device, {size}", 3
        kinds = _kinds(findings.head, findings.step_costs[findings.head])
    table = [
        f"  {name:<14}" + "".join(f"{cell:>12}" for cell in cells[:columns])
        for name, *cells in rows
    ]
    return [*_title(title), *table, *kinds]


def _cost(cost: StepCost) -> tuple[float | None, float, float]:
    """Bytes of memory, milliseconds, bytes sent."""
    return cost.temporary_bytes, cost.seconds * 1e3, sum(cost.sent_bytes.values())


def _ratio(streamed: float | None, plain: float | None) -> str:
    return f"{streamed / plain:.2f} x" if plain and streamed is not None else "-"


def _kinds(head: str, cost: StepCost) -> list[str]:
    """The bytes that are sent, by the kind of collective."""
    sent = [f"{kind} {_memory(size)}" for kind, size in cost.sent_bytes.items()]
    return ["", f"  The {_HEADS[head]} sends:", *(f"    {kind}" for kind in sent)]


def _examples(title: str, examples: Sequence[Example]) -> list[str]:
    if not examples:
        return []
    lines = [
        f"  {example.before:>36} [{example.word}]".ljust(58)
        + f"{example.unigram_bits:8.1f}  -> {example.model_bits:6.1f}"
        for example in examples
    ]
    return [*_title(f"{title}, in bits: by frequency -> by the model"), *lines]


def _title(text: str) -> list[str]:
    return [text, "-" * len(text)]


def _files(count: int, size: int) -> str:
    return f"{_bytes(size)} in {count:,} file{'' if count == 1 else 's'}"


def _bytes(size: int) -> str:
    return f"{size:,} byte{'' if size == 1 else 's'}"


def _memory(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:,.1f} MiB"
