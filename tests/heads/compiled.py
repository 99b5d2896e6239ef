"""What the compiler made of a program: its matrix products, its buffers and its memory."""

import re


def temporaries(program):
    """Bytes that the program needs beside its inputs and outputs."""
    return program.memory_analysis().temp_size_in_bytes


def products(program):
    """How many matrix products the optimised program has, fused ones included."""
    return len(re.findall(r" dot\(", program.as_text()))


def buffers(program, *shape):
    """Instructions whose result has this shape, parameters and views of them left aside."""
    view = r"(?!\S+ (?:parameter|get-tuple-element|bitcast)\()"
    pattern = rf"= (?=\w+\[{','.join(map(str, shape))}\]){view}\S+ [\w-]+\("
    return re.findall(pattern, program.as_text())


def collectives(program):
    """What devices exchange: pairs of an operation and the shape of a result, sizes of 1 left out.

    An operation in a loop is there once.
    """
    kinds = (
        "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
    )
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", program.as_text())
    return [
        (kind, tuple(int(size) for size in shape.split(",") if size not in ("", "1")))
        for results, kind in found
        for shape in re.findall(r"\w+\[([\d,]*)\]", results)
    ]
