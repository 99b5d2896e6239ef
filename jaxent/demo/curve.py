"""The learning curve as a picture, with the baselines drawn in."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

_TRAINING, _HELD_OUT, _BASELINE = "#4c8cbf", "#c8470f", "0.45"


class Curve(NamedTuple):
    """Points (training tokens seen, bits per byte): of the batches, and of held-out text."""

    training: list[tuple[int, float]]
    held_out: list[tuple[int, float]]


def draw(path: Path, curve: Curve, baselines: Mapping[str, float]) -> None:
    """Write a PNG of the curve, and of each baseline's bits per byte as a line across."""
    # A figure of its own, not pyplot's: it needs no display and leaves no global state.
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.add_subplot()
    seen, bits = np.array(curve.training).T
    window = np.ones(max(1, len(bits) // 8))
    window /= window.sum()
    axes.scatter(seen, bits, s=10, color=_TRAINING, alpha=0.4, linewidths=0)
    axes.plot(
        np.convolve(seen, window, "valid"),
        np.convolve(bits, window, "valid"),
        color=_TRAINING,
        label="training batches and their moving average",
    )
    axes.plot(
        *np.array(curve.held_out).T,
        color=_HELD_OUT,
        marker="o",
        markersize=5,
        label="held-out text: sampled on the way, all of it at the end",
    )
    for level in baselines.values():
        axes.axhline(level, color=_BASELINE, linewidth=0.9, linestyle=(0, (5, 3)), zorder=0)
    _label_levels(axes, {**baselines, "this model": curve.held_out[-1][1]})
    axes.set_title(
        "Bits to write one byte of text, fewer is better", loc="left", fontweight="bold", pad=28
    )
    axes.set_xlabel("training tokens seen")
    axes.set_ylabel("bits per byte")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2)
    figure.savefig(path, dpi=150)


def _label_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Name each level at the right, moved up where two names would overlap."""
    bottom, top = axes.get_ylim()
    closest, place = (top - bottom) / 22, -np.inf
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        place = max(level, place + closest)
        color = _HELD_OUT if name == "this model" else _BASELINE
        axes.text(
            *(1.015, place, f"{name}  {level:.2f}"),
            transform=axes.get_yaxis_transform(),
            color=color,
            va="center",
        )
