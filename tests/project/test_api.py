"""Every public function keeps the same manners: in its signature, its types and its docstring."""

import collections.abc
import inspect
import re
import types
import typing

import jax
import optax
import optax.losses
import pytest
from jax.typing import ArrayLike

import jaxent
from public import FUNCTIONS

OPTAX = tuple(int(part) for part in optax.__version__.split(".")[:3])

# What may be given by position, in this order of roles: data, then where it lies, then what counts.
DATA = {
    "advantages",
    "anchors",
    "chosen_log_probs",
    "class_priors",
    "counts",
    "cross_entropy",
    "desirable",
    "embeddings",
    "hidden",
    "images",
    "joint",
    "kernel",
    "keys",
    "label_paddings",
    "labels",
    "log_predictions",
    "log_probs",
    "log_targets",
    "logit_paddings",
    "logits",
    "logits_a",
    "logits_b",
    "loss_fn",
    "losses",
    "max_fun",
    "means",
    "nats",
    "negatives",
    "old_log_probs",
    "old_values",
    "policy_chosen_log_probs",
    "policy_log_probs",
    "policy_rejected_log_probs",
    "positives",
    "predictions",
    "predictor_outputs",
    "probs",
    "probs_a",
    "probs_b",
    "queries",
    "reference_chosen_log_probs",
    "reference_log_probs",
    "reference_rejected_log_probs",
    "rejected_log_probs",
    "returns",
    "rewards",
    "row_args",
    "scores",
    "student_hidden",
    "student_kernel",
    "target_logits",
    "targets",
    "teacher_hidden",
    "teacher_indices",
    "teacher_kernel",
    "teacher_log_probs",
    "texts",
    "tokens",
    "values",
    "variances",
}
# The numbers that a transform or a loss is about may go by position too.
NUMBERS = {
    "alpha",
    "beta",
    "bias",
    "cap",
    "eps",
    "log_temperature",
    "margin",
    "norm_degree",
    "num_bins",
    "num_bytes",
    "tau",
    "temperature",
}
PLACE = {"axis", "where", "weights"}
ARRAYS = DATA - {"loss_fn", "max_fun", "row_args"} | {
    "where",
    "class_where",
    "weights",
    "bias",
    "pos_weight",
    "segment_ids",
    "total_weight",
}
SECTION = re.compile(r"^(Args|Returns|Raises|Examples?|References?):$", re.MULTILINE)

everything = pytest.mark.parametrize("name", FUNCTIONS)


def parameters(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(getattr(jaxent, name)).parameters)


def docstring_sections(name: str) -> dict[str, str]:
    """The docstring cut at its headings; what stands before the first is under ''."""
    text = inspect.getdoc(getattr(jaxent, name)) or ""
    before, *rest = SECTION.split(text)
    headings = (heading.removesuffix("s") for heading in rest[::2])
    return {"": before} | dict(zip(headings, rest[1::2], strict=True))


def test_all_lists_exactly_the_public_names():
    visible = {
        name
        for name, value in vars(jaxent).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert sorted(jaxent.__all__) == sorted(visible)
    assert len(set(jaxent.__all__)) == len(jaxent.__all__)


@everything
def test_data_goes_by_position_and_options_by_keyword(name):
    by_position = []
    for parameter in parameters(name).values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            # An order of entropy has no default that would suit everybody.
            required = parameter.default is inspect.Parameter.empty
            assert not required or parameter.name == "alpha"
        else:
            assert parameter.name in DATA | NUMBERS | PLACE
            by_position.append(parameter.name)
    data = [argument for argument in by_position if argument in DATA]
    assert by_position[: len(data)] == data
    for argument in data:
        # Regression losses may be asked for the loss of an error.
        optional = argument == "targets" and data[0] == "predictions"
        default = parameters(name)[argument].default
        assert default is inspect.Parameter.empty or (optional and default is None)


@everything
def test_place_arguments_have_defaults_and_one_order(name):
    given = parameters(name)
    if "losses" in given and "axis" in given:  # those of reductions are options, and mean all axes
        axis = given.pop("axis")
        assert (axis.kind, axis.default) == (inspect.Parameter.KEYWORD_ONLY, None)
    place = [parameter for parameter in given.values() if parameter.name in PLACE]
    assert [parameter.name for parameter in place] == [
        argument for argument in ("axis", "where", "weights") if argument in given
    ]
    defaults = {parameter.name: parameter.default for parameter in place}
    # A joint distribution has an axis for each of its two variables, and those of pixels are many.
    several = (-2, -1) if "joint" in given else None
    axis = several if {"joint", "apply_softmax"} & set(given) else -1
    assert defaults == {argument: axis if argument == "axis" else None for argument in defaults}


@everything
def test_signature_begins_as_in_optax(name):
    theirs = getattr(optax.losses, name, None)
    if theirs is None:
        return
    if OPTAX < (0, 2, 8):
        pytest.skip("the signatures are those of optax 0.2.8; earlier ones have no `where` there")
    ours = list(parameters(name).values())
    for index, parameter in enumerate(inspect.signature(theirs).parameters.values()):
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            same = parameters(name)[parameter.name]  # may go by position here, or stand elsewhere
        else:
            same = ours[index]
            assert same.kind is parameter.kind
        assert (same.name, same.default) == (parameter.name, parameter.default)


@pytest.mark.parametrize(
    ("head", "dense"),
    [
        (jaxent.linear_jensen_shannon, jaxent.softmax_jensen_shannon),
        (jaxent.linear_kl_divergence, jaxent.softmax_kl_divergence),
        (
            jaxent.linear_softmax_cross_entropy,
            jaxent.softmax_cross_entropy_with_integer_labels,
        ),
    ],
)
def test_options_of_a_head_are_those_of_its_dense_loss_if_they_are_not_given(head, dense):
    ours, theirs = (inspect.signature(each).parameters for each in (head, dense))
    shared = (ours.keys() & theirs.keys()) - DATA
    assert shared
    assert {name: ours[name].default for name in shared} == {
        name: theirs[name].default for name in shared
    }


@everything
def test_types_are_array_like_in_and_array_out(name):
    hints = typing.get_type_hints(getattr(jaxent, name))
    assert set(hints) == {*parameters(name), "return"}
    returned = hints["return"]
    if typing.get_origin(returned) is collections.abc.Callable:  # a function that makes a loss
        returned = typing.get_args(returned)[-1]
    if issubclass(typing.get_origin(returned) or returned, tuple):  # plain, or with names
        parts = typing.get_args(returned) or typing.get_type_hints(returned).values()
    else:
        parts = (returned,)
    assert set(parts) == {jax.Array}
    for argument in ARRAYS & set(parameters(name)):
        assert set(typing.get_args(ArrayLike)) <= set(typing.get_args(hints[argument])), argument


@everything
def test_help_shows_a_signature_that_can_be_read(name):
    signature = str(inspect.signature(getattr(jaxent, name)))
    readable = "ndarray" not in signature
    assert readable, "its file lacks `from __future__ import annotations`, so ArrayLike is spelled"


@everything
def test_docstring_opens_with_one_line_and_a_formula(name):
    opening = docstring_sections(name)[""]
    summary, _, formula = opening.partition("\n\n")
    assert "\n" not in summary
    assert summary.endswith(".")
    assert ".. math::" in formula


@everything
def test_docstring_documents_every_argument_in_order(name):
    documented = re.findall(r"^  +(\*?\w+):", docstring_sections(name)["Arg"], re.MULTILINE)
    starred = [
        ("*" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else "") + parameter.name
        for parameter in parameters(name).values()
    ]
    assert documented == starred


@everything
def test_docstring_says_what_comes_back_and_in_which_unit(name):
    assert re.search(r"\b(nats|bits|units?)\b", docstring_sections(name)["Return"])


@everything
def test_docstring_says_what_is_refused(name):
    assert re.search("(Argument|Assertion)Error:", docstring_sections(name)["Raise"])


@everything
def test_docstring_has_an_example_and_a_source(name):
    sections = docstring_sections(name)
    assert ">>> import jaxent" in sections["Example"]
    assert sections["Reference"].strip()


@everything
def test_name_and_module_read_as_public(name):
    function = getattr(jaxent, name)
    assert inspect.isfunction(function)
    assert function.__name__ == name
