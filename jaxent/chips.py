"""Chips that are not here, for which XLA compiles where their compilers are installed."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies


class Chip(NamedTuple):
    """A chip that XLA compiles for on any machine where its compiler is installed."""

    platform: str
    modules: tuple[str, ...]  # the compiler, by the names of its versions
    install: str
    # Topologies for some numbers of chips; a number between them is a part of the next one.
    topologies: tuple[tuple[int, str], ...] = ()


_LIBTPU = "tpu", ("libtpu",), "pip install libtpu"
_SQUARES = (
    *((4, "2x2"), (8, "2x4"), (16, "4x4"), (32, "4x8"), (64, "8x8")),
    *((128, "8x16"), (256, "16x16")),
)
_CUBES = (
    *((4, "2x2x1"), (8, "2x2x2"), (16, "2x2x4"), (32, "2x4x4"), (64, "4x4x4"), (128, "4x4x8")),
    *((256, "4x8x8"), (512, "8x8x8"), (1024, "8x8x16")),
)
CHIPS = {
    "v5e": Chip(*_LIBTPU, _SQUARES),
    "v5p": Chip(*_LIBTPU, _CUBES),
    "v6e": Chip(*_LIBTPU, _SQUARES),
    "h100": Chip(
        "cuda",
        ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"),
        "pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt, of the version of jax",
    ),
}
# What XLA has to know of an H100 with 80 GB, by NVIDIA's data sheet.
_H100 = """
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 7 } runtime_version { major: 13 minor: 0 patch: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 } core_count: 132 fpus_per_core: 128
  clock_rate_ghz: 1.98 memory_bandwidth: 3352320000000 device_memory_size: 84929347584
  l2_cache_size: 52428800 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 threads_per_block_limit: 1024 threads_per_warp: 32
  threads_per_core_limit: 2048 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""


# Without these libtpu looks for a machine with TPUs, and lets one process in at a time.
_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}


def find_chips(name: str, count: int) -> Sequence[Any]:
    """At least `count` chips to compile for, which need not exist.

    Raises:
        ValueError: If their compiler is not installed, or if there is no topology of so many.
    """
    chip = CHIPS[name]
    if not any(map(_is_installed, chip.modules)):
        raise ValueError(f"--chip {name}: its compiler is not installed: {chip.install}")
    # What is compiled for a chip that is not here cannot be read from a cache.
    jax.config.update("jax_enable_compilation_cache", False)
    for variable, value in _SETTINGS.items():
        os.environ.setdefault(variable, value)
    if chip.platform == "cuda":
        sizes = f"1x1x{count}"
        return topologies.get_topology_desc(
            platform="cuda", topology_name=sizes, topology=sizes, target_config=_H100
        ).devices
    fitting = (topology for size, topology in chip.topologies if size >= count)
    if (topology := next(fitting, None)) is None:
        raise ValueError(f"--chip {name}: at most {chip.topologies[-1][0]}, got {count}.")
    described = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{topology}")
    return described.devices


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False
