"""Fair timing on a noisy machine: contestants take turns in random order; medians are compared."""

import importlib.metadata
import os
import random
import statistics
import time

import jax


def medians(contestants, arguments, repeats, seed=0):
    """Median seconds of each contestant, a dict of jitted functions, all called in turn."""
    order = random.Random(seed)
    for function in contestants.values():
        jax.block_until_ready(function(*arguments))
    seconds = {name: [] for name in contestants}
    for _ in range(repeats):
        for name in order.sample(list(contestants), len(contestants)):
            start = time.perf_counter()
            jax.block_until_ready(contestants[name](*arguments))
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def temporary_mebibytes(program):
    """The memory that a compiled program needs beside its inputs and outputs."""
    analysis = program.memory_analysis()
    return float("nan") if analysis is None else analysis.temp_size_in_bytes / 2**20


def environment():
    """The versions and the machine that the numbers depend on, in a line."""
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("jax", "optax"))
    device = jax.devices()[0]
    return f"{versions}; {device.platform} ({device.device_kind}), {os.cpu_count()} cores"
