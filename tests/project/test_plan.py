"""The command that says what a head needs on many devices, and its reading of compiled programs."""

import itertools
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from jaxent import chips, plan

SMALL = ["--tokens=4096", "--dim=64", "--vocab=8192", "--dtype=float32"]

# One of each kind, with groups in each of the ways in which they are written.
PROGRAM = """\
HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%p), body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %b = (f32[], bf16[2,4]{1,0}) all-reduce(%x, %y), replica_groups=[4,2]<=[8], to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%p), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %g = f32[16]{0} all-gather(%x), replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}
  %s = f32[4]{0} reduce-scatter(%x), replica_groups=mesh['a'=4,'b'=2], device_ids=([2]) {'b'}
  %p = pred[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}
"""

# As compilers for TPUs and GPUs write it: begun and ended, in fusions, in loops without a count.
ASYNCHRONOUS = """\
%scatter (p: f32[16]) -> f32[4] {
  %s = f32[4]{0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

%condition (p: (s32[])) -> pred[] {
  %bound = s32[] constant(3)
}

%body (p: (s32[])) -> (s32[]) {
  %f = f32[4]{0} fusion(%x), kind=kCustom, calls=%scatter
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[]) while(%p), condition=%condition, body=%body
  %g = (f32[4]{0}, f32[16]{0}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %d = f32[16]{0} all-gather-done(%g)
  %p = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%x)
  %r = f32[8]{0} all-reduce-start(%x), replica_groups=[1,4]<=[4], to_apply=%add
}
"""


def test_reads_the_collectives_of_a_program():
    found = list(plan.collectives(PROGRAM))
    assert [(each.kind, each.size, each.devices, each.times) for each in found] == [
        ("all-reduce", 32, 4, 15),
        ("all-reduce", 4 + 16, 2, 5),
        ("all-gather", 64, 4, 1),
        ("reduce-scatter", 16, 2, 1),
        ("collective-permute", 8, 2, 1),
    ]
    assert [each.sent for each in found] == [15 * 2 * 32 * 3 / 4, 5 * 20, 48, 16, 8]


def test_reads_what_is_begun_and_ended_and_what_is_fused():
    found = list(plan.collectives(ASYNCHRONOUS))
    assert [(each.kind, each.size, each.devices, each.times) for each in found] == [
        ("reduce-scatter", 16, 4, 3),
        ("all-gather", 64, 4, 1),
        ("collective-permute", 8, 2, 1),
        ("all-reduce", 32, 4, 1),
    ]


def planned(*options, fails=False):
    """The words of each line after the title."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    process = subprocess.run(
        [sys.executable, "-m", "jaxent.plan", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == (2 if fails else 0), process.stderr
    return process.stderr if fails else process.stdout


def rows(*options):
    """Gibibytes by mesh: arguments, results, temporaries, memory, sent."""
    lines = planned(*SMALL, *options).splitlines()[3:]
    return {line.split()[0]: [float(cell) for cell in line.split()[2:7]] for line in lines}


def test_memory_falls_with_the_number_of_devices():
    larger = ["--tokens=65536", "--dim=512", "--vocab=65536"]
    found = rows(*larger, "--mesh=1", "--mesh=8x1", "--mesh=8x8", "--mesh=128x8")
    for one, other in itertools.pairwise(found):
        assert found[other][3] < found[one][3], found
    arguments = 4 * (65536 * 512 + 512 * 65536 + 65536) / 2**30
    assert found["1x1"][0] == pytest.approx(arguments, abs=6e-4)
    assert found["1x1"][4] == 0.0


def test_by_hand_the_gradient_of_the_kernel_is_added_up_once():
    """4096 tokens, a kernel of 2 MiB: the partitioner may add it up for every chunk."""
    kernel = 4 * 64 * 8192 / 2**30
    (by_hand,) = rows("--mesh=8x1", "--shard-map").values()
    assert by_hand[4] == pytest.approx(2 * kernel * 7 / 8, abs=6e-4)


def test_says_what_fits():
    said = planned(*SMALL, "--mesh=1", "--mesh=8x8", "--memory=0.004")
    assert re.search(r"1x1 .*does not fit\n.*8x8 .* fits", said), said


def test_lists_what_is_sent():
    said = planned(*SMALL, "--mesh=2x2", "--fsdp", "--shard-map", "--collectives")
    assert re.search(r" 1 x all-gather of f32\[64,4096\]\S* by 2\n", said), said


@pytest.mark.skipif(not find_spec("libtpu"), reason="compiles for TPUs, for which it needs libtpu")
def test_plans_for_a_chip_with_the_options_of_the_loss():
    """The gradient of the kernel, in float32, is summed over devices once, as a CPU's is not."""
    kernel = 4 * 64 * 8192 / 2**30
    options = ["--z-loss=1e-4", "--soft-cap=30", "--label-smoothing=0.1", "--where"]
    (found,) = rows("--mesh=4x1", "--chip=v5e", *options).values()
    assert found[4] == pytest.approx(2 * kernel * 3 / 4, abs=6e-4)


def test_refuses_a_chip_without_its_compiler(monkeypatch):
    monkeypatch.setattr(chips, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed: pip install libtpu"):
        chips.find_chips("v5e", 4)


@pytest.mark.parametrize("mesh", ["1x16", "1x6"])
def test_columns_gather_no_part_of_the_kernel(mesh):
    sizes = ["--vocab=12288", "--sweep=columns", "--collectives"]
    said = planned(*SMALL, *sizes, f"--mesh={mesh}")
    assert "all-reduce" in said
    assert "all-gather" not in said, said


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--vocab=50257", "--mesh=1x8"], "50264, with a bias of -inf there"),
        (["--tokens=4095", "--mesh=8"], "4096, masked with `where`"),
        (["--dim=65", "--mesh=8", "--fsdp"], "pad to 72"),
        (["--mesh=8x"], "'8x' is not of the form 4x2"),
        (["--chunk-size=0"], "0 is not a positive integer"),
        (["--sweep=columns", "--chunk-size=9", "--mesh=1"], "`chunk_size`"),
        (["--mesh=512x8"], "at most 2048"),
    ],
)
def test_refuses_with_the_remedy(options, remedy):
    assert remedy in planned(*SMALL, *options, fails=True)
