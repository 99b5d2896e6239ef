"""The main job, `python -m jaxent`: its parts, and small runs of the whole of it."""

import collections
import functools
import itertools
import math
import os
import runpy
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from jaxent.demo import baselines, corpus, loop, mesh, scoring, text, training, vocabulary
from jaxent.demo.command import main
from jaxent.demo.model import hidden_states
from jaxent.demo.text import Split, TextFile
from mesh import on_devices

ROOT = Path(__file__).parents[2]
STEPS = 4
SOURCE = Path(sysconfig.get_paths()["stdlib"], "textwrap.py").read_bytes()


@pytest.fixture(scope="module")
def small() -> corpus.Corpus:
    """A corpus of two short texts, with a vocabulary that does not hold all of their words."""
    half = len(SOURCE) // 2
    split = Split([TextFile("a", SOURCE[:half])], [TextFile("b", SOURCE[half : half + 4000])])
    return corpus.prepare(split, 400)


@pytest.fixture(scope="module")
def start(small) -> training.Start:
    return training.start(mesh.make((1, 1)), 0, small.log_frequencies, STEPS)


def losses_of_a_run(
    program: jax.stages.Compiled, start: training.Start, stream: np.ndarray, windows: int = 2
) -> list[float]:
    parameters, state, steps = start
    put = functools.partial(mesh.put_windows, mesh.of(parameters))
    losses = []
    size = 32 * windows
    for first in range(0, size * steps, size):
        part = stream[first : first + size + 1]
        inputs, labels = part[:-1].reshape(windows, 32), part[1:].reshape(windows, 32)
        parameters, state, loss = program(parameters, state, *put(inputs, labels))
        losses.append(float(loss))
    return losses


# The text and its tokens.

TEXTS = {
    "empty": b"",
    "every byte": bytes(range(256)),
    "random bytes": np.random.default_rng(0).bytes(5000),
    "source": SOURCE,
    "spaces": b" \t  \n\n \r\n\t x  y \n   ",
    "names": b"__init__ _private snake_case CamelCase HTTPServer x2 0x1f 1_000 a_ _",
    "a long word": b"=" * 999 + b"x" * 999,
    "not ASCII": "naïve 数学 ∂u/∂t".encode(),
}


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("size", [vocabulary.SMALLEST, 600])
def test_any_text_is_spelled_exactly(content, size):
    words = vocabulary.build([SOURCE], size)
    tokens = vocabulary.encode(words, content)
    assert vocabulary.decode(words, tokens) == content
    assert vocabulary.BOUNDARY not in tokens
    assert b"".join(vocabulary.split_words(content)) == content


def test_a_stream_spells_its_texts_and_where_they_end():
    words = vocabulary.build([SOURCE], 600)
    texts = [b"import os\n", b"\xff", SOURCE]
    stream = vocabulary.stream(words, texts)
    ends = np.flatnonzero(stream == vocabulary.BOUNDARY)
    assert (ends[0], ends[-1], len(ends)) == (0, len(stream) - 1, len(texts) + 1)
    pieces = [stream[a + 1 : b] for a, b in itertools.pairwise(ends)]
    assert [vocabulary.decode(words, piece) for piece in pieces] == texts


def test_the_vocabulary_holds_the_most_frequent_words_and_no_more_than_asked():
    words = vocabulary.build([b"one two two three three three", b" three"], vocabulary.SMALLEST + 2)
    assert words.entries[vocabulary.SMALLEST :] == [b" three", b" two"]
    assert len(vocabulary.build([b"one two"], 32_768).entries) == vocabulary.SMALLEST + 2
    equal = [vocabulary.build([b"b1 a2", order], 900).entries for order in (b"xx yy", b"yy xx")]
    assert equal[0][:-2] == equal[1][:-2]


def test_which_files_are_held_out_depends_on_their_names_alone():
    names = [f"package/module_{number}.py" for number in range(64)]
    files = [TextFile(name, b"x" * 9) for name in names]
    split = text.split_files(files)
    held_out = {file.name for file in split.held_out}
    assert held_out == {f"package/module_{number}.py" for number in (2, 7, 23, 43)}
    assert sorted([*held_out, *(file.name for file in split.training)]) == sorted(names)
    again = text.split_files([TextFile(name, b"other") for name in reversed(names)])
    assert {file.name for file in again.held_out} == held_out


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_files_leave_some_on_either_side(count):
    split = text.split_files([TextFile(str(number), b"x") for number in range(count)])
    assert split.held_out
    assert split.training


def test_the_standard_library_is_split_into_files_that_training_sees_and_files_it_does_not():
    split = text.standard_library()
    seen, unseen = ({file.name for file in files} for files in split)
    assert seen.isdisjoint(unseen)
    assert len(seen) > 200
    assert 50_000 < sum(len(file.content) for file in split.held_out) <= 200_000
    assert not any("site-packages" in name or name.startswith("test/") for name in seen | unseen)


def test_of_a_single_file_the_last_tenth_is_held_out(tmp_path):
    path = tmp_path / "text"
    content = b"".join(b"line %d\n" % number for number in range(1000))
    path.write_bytes(content)
    [training_file], [held_out] = text.given_files([path, path])
    assert training_file.content + held_out.content == content
    assert training_file.content.endswith(b"\n")
    assert len(content) / 10 <= len(held_out.content) <= len(content) / 10 + 9


# The code lengths.


def test_unigram_code_length_is_that_of_the_formula(small):
    counts = collections.Counter(small.training[1:].tolist())
    total, size = len(small.training) - 1, len(small.vocabulary.entries)
    bits = -sum(
        math.log2((counts[token] + 0.5) / (total + 0.5 * size)) for token in small.held_out[1:]
    )
    lengths = baselines.code_lengths(small.log_frequencies, small.held_out, b"text")
    assert lengths["unigram"] == pytest.approx(bits, rel=1e-6)
    assert lengths["uniform"] == pytest.approx((len(small.held_out) - 1) * math.log2(size))
    assert np.exp(small.log_frequencies.astype(float)).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, scoring.SCORED, scoring.SCORED + 1, 1100])
def test_every_token_after_the_first_is_scored_once(count, small, start):
    stream = small.training[: count + 1]
    costs = list(scoring.score(start.parameters, stream, scoring.windows(stream)))
    assert sum(map(len, costs)) == count
    tokens = [stream[1:][scoring.scored_tokens(window)] for window in scoring.windows(stream)]
    assert np.concatenate(tokens).tolist() == stream[1:].tolist()
    assert min(cost.min() for cost in costs) > 0


def test_a_score_is_minus_the_logarithm_of_a_probability(small, start):
    position, size = 37, len(small.vocabulary.entries)
    [costs] = scoring.score(start.parameters, small.training[:100], [0])
    missing = 2 * scoring.SCORED - position - 1
    past = np.pad(small.training[: position + 1], (missing, 0), constant_values=vocabulary.BOUNDARY)
    hidden = jax.jit(hidden_states)(start.parameters, past[None])[0, -1]
    everything = jaxent.linear_softmax_cross_entropy(
        jnp.broadcast_to(hidden, (size, len(hidden))),
        start.parameters["words"],
        jnp.arange(size),
        bias=start.parameters["bias"],
        vocab_axis=0,
        reduction="none",
    )
    assert float(jnp.exp(-everything).sum()) == pytest.approx(1, abs=1e-5)
    assert costs[position] == pytest.approx(
        float(everything[small.training[position + 1]]), rel=1e-4
    )


def test_no_score_depends_on_what_comes_later(small, start):
    stream = small.training[:900]
    changed = np.concatenate([stream[:700], stream[700:][::-1]])
    before, after = (
        np.concatenate(list(scoring.score(start.parameters, tokens, scoring.windows(tokens))))
        for tokens in (stream, changed)
    )
    np.testing.assert_allclose(before[:699], after[:699], rtol=1e-5)
    assert not np.allclose(before[699:], after[699:])


# The training.


def test_the_heads_agree_and_a_run_repeats_itself(small, start):
    with jax.numpy_dtype_promotion("standard"):  # Schedules of optax mix integers and floats.
        programs = {head: training.compile_step(head, start, 2, 32) for head in training.HEADS}
    streamed = losses_of_a_run(programs["streamed"], start, small.training)
    plain = losses_of_a_run(programs["plain"], start, small.training)
    np.testing.assert_allclose(plain, streamed, rtol=2e-4)
    assert losses_of_a_run(programs["streamed"], start, small.training) == streamed
    assert streamed[-1] < streamed[0]


def test_a_batch_pairs_each_token_with_the_next(small):
    inputs, labels = next(training.batches(small.training, 0, 3))
    assert inputs.shape == labels.shape == (3, training.WINDOW)
    assert inputs[:, 1:].tolist() == labels[:, :-1].tolist()
    again, _ = next(training.batches(small.training, 0, 3))
    other, _ = next(training.batches(small.training, 1, 3))
    assert inputs.tolist() == again.tolist() != other.tolist()


def test_interrupted_before_the_first_step_nothing_is_learned(small, start):
    program = jax.jit(lambda: 0).lower().compile()  # Never run.
    batches = training.batches(small.training, 0, 2)
    with pytest.raises(loop.NothingLearnedError):
        loop.train(program, start, small, batches, interrupted=lambda: True)


@pytest.mark.thorough
def test_on_a_mesh_it_is_the_same():
    on_devices.run("demo.py")


# The command.


def command(*arguments: str, directory: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "jaxent", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def figures(report: str) -> dict[str, float]:
    """The first number of each line that has a label and a number, by the label."""
    found = {}
    for line in report.splitlines():
        label, _, rest = line.strip().partition("  ")
        number = rest.split()[0].replace(",", "") if rest.split() else ""
        if number.replace(".", "").isdigit():
            found.setdefault(label, float(number))
    return found


def test_the_whole_job_on_a_small_text(tmp_path):
    (tmp_path / "text").write_bytes(SOURCE)
    options = ["--steps", "10", "--vocabulary", "2000", "--out", "new/directory"]
    with command("--text", "text", *options, directory=tmp_path) as process:
        report, progress = process.communicate(timeout=120)
    assert process.returncode == 0, progress
    assert "Traceback" not in progress
    assert "tokens/s" in progress
    assert "nats" in progress
    assert report.isascii()
    assert max(map(len, report.splitlines())) <= 80
    shown = figures(report)
    for name in ("uniform", "unigram", "gzip", "lzma", "this model"):
        assert 0 < shown[name] < 9, name
    assert shown["this model"] < shown["unigram"] < shown["uniform"]
    nats = shown["cross-entropy"]
    assert shown["perplexity"] == pytest.approx(math.exp(nats), rel=1e-2)
    bits = [line.split()[0] for line in report.splitlines() if "bits per token" in line]
    assert [float(number) for number in bits] == pytest.approx([nats / math.log(2)], abs=2e-4)
    assert shown["plain logits"] > 0
    assert shown["streamed head"] > 0
    assert 0 < shown["ratio"] < 10
    picture = (tmp_path / "new" / "directory" / "learning-curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


@pytest.mark.thorough
def test_the_whole_job_on_a_mesh(tmp_path):
    (tmp_path / "text").write_bytes(SOURCE[:3000])
    options = ["--text", "text", "--steps", "3", "--vocabulary", "301", "--out", "."]
    with command(*options, "--mesh", "4x2", directory=tmp_path) as process:
        report, progress = process.communicate(timeout=120)
    assert process.returncode == 0, progress
    assert "  devices        8: 4 parts of the data by 2 of the vocabulary\n" in report
    assert "costs each device" in report
    assert "    all-reduce " in report
    assert max(map(len, report.splitlines())) <= 80
    assert 0 < figures(report)["this model"] < 9


def stop_at(process: subprocess.Popen[str], sign: str) -> tuple[str, str]:
    """Press Ctrl-C as soon as the sign is on stderr; what was printed before and after."""
    assert process.stderr is not None
    seen = ""
    while sign not in seen:
        character = process.stderr.read(1)
        assert character, f"the command ended early: {seen}"
        seen += character
    process.send_signal(signal.SIGINT)
    report, progress = process.communicate(timeout=120)
    return report, seen + progress


@pytest.mark.thorough(beyond=1)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize(
    ("sign", "outcome"),
    [("compiling", "nothing was learned"), ("tokens/s", "scoring what was learned")],
)
def test_an_interrupt_ends_the_training_but_not_the_report(sign, outcome, tmp_path):
    (tmp_path / "text").write_bytes(SOURCE)
    options = ["--text", "text", "--steps", "100000", "--vocabulary", "300", "--out", "."]
    with command(*options, directory=tmp_path) as process:
        report, progress = stop_at(process, sign)
    assert process.returncode == 130, progress
    assert "Traceback" not in progress
    assert outcome in progress
    learned = sign == "tokens/s"
    assert ("of 100,000 steps" in report) == ("this model" in report) == learned
    assert (tmp_path / "learning-curve.png").exists() == learned


def refusal(capsys, *arguments: str) -> str:
    """The one line on stderr of a command that exits with code 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"text\0", "binary"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x", "too short"),
    ],
)
def test_a_text_that_cannot_be_learned_from_is_one_line_and_exit_code_2(
    content, reason, tmp_path, capsys
):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    line = refusal(capsys, "--text", str(path))
    assert reason in line
    assert str(path) in line


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--steps", "0"),
        ("--steps", "many"),
        ("--vocabulary", "256"),
        ("--vocabulary", "-1"),
        ("--seed", "-1"),
        ("--seed", str(2**32)),
        ("--head", "fast"),
        ("--text", ""),
        ("--batch", "0"),
        ("--mesh", "4"),
        ("--mesh", "0x2"),
        ("--mesh", "4x2x1"),
        ("--processes", "0"),
        ("--process", "-1"),
        ("--no-such-option", ""),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(option, value, capsys):
    assert option in refusal(capsys, *filter(None, [option, value]))


def test_a_directory_that_cannot_be_written_is_found_out_first(tmp_path, capsys):
    path = tmp_path / "text"
    path.write_text("some words to learn from\n" * 9)
    assert "cannot write" in refusal(capsys, "--text", str(path), "--out", str(path))
    (tmp_path / "learning-curve.png").mkdir()
    assert "is a directory" in refusal(capsys, "--text", str(path), "--out", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--mesh", "4x2", "--batch", "6"], "take 8"),
        (["--mesh", "3x3", "--processes", "2"], "cannot be divided among 2 processes"),
        (["--mesh", "4x4"], "--xla_force_host_platform_device_count=16"),
    ],
)
def test_a_mesh_that_cannot_be_had_is_one_line_with_the_remedy(options, reason, tmp_path, capsys):
    jax.devices()  # Their number is fixed from here on.
    (tmp_path / "text").write_bytes(SOURCE)
    assert reason in refusal(capsys, "--text", str(tmp_path / "text"), *options)


@pytest.mark.parametrize("name", ["matplotlib", "tqdm"])
def test_a_missing_extra_is_named_in_one_line(name, monkeypatch, capsys):
    for module in [module for module in sys.modules if module.startswith("jaxent.demo")]:
        monkeypatch.delitem(sys.modules, module)
    for module in [name, *(module for module in sys.modules if module.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("jaxent", run_name="__main__")
    assert exit_.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert 'pip install "jaxent[demo]"' in line


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    options = (
        "--text --vocabulary --steps --head --batch --mesh --processes --process --coordinator"
    )
    for option in f"{options} --seed --out".split():
        assert f" {option} " in printed
