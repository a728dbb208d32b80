"""Which argument an input is, by Triton's rules, for any names and any order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.backend.torch.naming import Wanted, bind, position
from conch.backend.torch.signature import Argument, Result, Signature
from conch.types.error import InferError

NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), min_size=1, max_size=6, unique=True)
OUTPUTS = ("OUTPUT__0",)


def takes(*names: str) -> Signature:
    return Signature(tuple([Argument(name) for name in names]))


@given(NAMES, st.randoms())
def test_names_of_arguments_lead_to_them_in_any_order(names: list[str], random: st.DataObject) -> None:
    """Where every input has an argument's name, the order of the config says nothing."""
    order = list(names)
    random.shuffle(order)  # type: ignore[attr-defined]
    found = bind(Wanted("m", tuple(order), OUTPUTS), takes(*names)).inputs
    assert found == {name: names.index(name) for name in names}


@given(NAMES, st.randoms())
def test_numbers_lead_to_arguments_in_any_order(names: list[str], random: st.DataObject) -> None:
    """Where every input is `<name>__<index>`, the index is the argument's place."""
    places = list(range(len(names)))
    random.shuffle(places)  # type: ignore[attr-defined]
    inputs = tuple([f"{name}__{place}" for name, place in zip(names, places, strict=True)])
    found = bind(Wanted("m", inputs, OUTPUTS), takes(*[f"arg_{n}" for n in range(len(names))])).inputs
    assert list(found.values()) == places


@given(NAMES)
def test_other_names_go_by_their_order_with_a_warning(names: list[str]) -> None:
    """Names that say nothing are taken in the order of the config, and Triton's warning names the first."""
    bound = bind(Wanted("m", tuple(names), OUTPUTS), takes(*[f"arg_{n}" for n in range(len(names))]))
    assert list(bound.inputs.values()) == list(range(len(names)))
    (warning,) = bound.warnings
    assert warning.startswith(f"input '{names[0]}' or previous input(s) are neither an input argument to the model 'm'")
    assert "(its arguments are: arg_0" in warning


@given(NAMES, NAMES)
def test_every_input_is_bound_to_an_argument_of_its_own(arguments: list[str], inputs: list[str]) -> None:
    """Whatever is accepted gives each input one argument, and each argument at most one input; else it is refused."""
    wanted = Wanted("m", tuple(inputs), OUTPUTS)
    if len(inputs) != len(arguments):
        with pytest.raises(InferError, match="configuration expects"):
            bind(wanted, takes(*arguments))
        return
    found = bind(wanted, takes(*arguments)).inputs
    assert sorted(found.values()) == list(range(len(arguments)))


@pytest.mark.parametrize(
    ("name", "index"),
    [("INPUT__0", 0), ("a__12", 12), ("a__b__1", None), ("a_1", None), ("a__", None), ("a__-1", None), ("a__²", None)],
)
def test_the_number_stands_behind_the_first_mark(name: str, index: int | None) -> None:
    """The index is all that follows the first `__`, and only digits are one."""
    assert position(name) == index


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ((), "model configuration must contain at least one input, none were specified."),
        (("x",), "unable to load model 'm', configuration expects 1 inputs, model provides 2"),
        (("x", "y", "z"), "unable to load model 'm', configuration expects 3 inputs, model provides 2"),
        (("x__0", "y__2"), "unable to load model 'm', input 'y__2' names argument 2, model provides 2"),
        (("x__1", "y__1"), "unable to load model 'm', inputs 'x__1' and 'y__1' share argument 1"),
    ],
)
def test_inputs_that_cannot_be_the_models_are_refused(inputs: tuple[str, ...], text: str) -> None:
    """Each refusal says what was expected and what came; its hint names the arguments."""
    with pytest.raises(InferError) as caught:
        bind(Wanted("m", inputs, OUTPUTS), takes("left", "right"))
    assert caught.value.message == text
    assert not inputs or "left, right" in caught.value.hint


def test_arguments_with_defaults_may_be_left_out() -> None:
    """Fewer inputs than arguments are fine as long as each argument without a default has one."""
    signature = Signature((Argument("x"), Argument("scale", required=False)))
    assert bind(Wanted("m", ("x",), OUTPUTS), signature).inputs == {"x": 0}
    with pytest.raises(InferError, match="no input of the configuration is the argument 'x'"):
        bind(Wanted("m", ("scale",), OUTPUTS), signature)


@pytest.mark.parametrize("control", ["START", "start__one"])
def test_controls_of_sequences_need_a_number_or_an_arguments_name(control: str) -> None:
    """A control that is neither `<name>__<index>` nor an argument is refused in Triton's words."""
    with pytest.raises(InferError) as caught:
        bind(Wanted("m", ("x",), OUTPUTS, (control,)), takes("x", "begins"))
    assert caught.value.message == f"input '{control}' does not follow <name>__<index> naming convention."
    assert bind(Wanted("m", ("x",), OUTPUTS, ("begins",)), takes("x", "begins")).inputs == {"x": 0, "begins": 1}
    assert bind(Wanted("m", ("x",), OUTPUTS, ("START__1",)), takes("x", "begins")).inputs["START__1"] == 1


def test_states_need_numbers() -> None:
    """An implicit state that is no `<name>__<index>` is refused in Triton's words."""
    with pytest.raises(InferError) as caught:
        bind(Wanted("m", ("x",), OUTPUTS, ("old",), ("old",), ("new",)), takes("x", "state"))
    assert caught.value.message == (
        "PyTorch model 'm' is using sequence batching with state but state 'old' does not follow the <name>__<index> "
        "naming convention. "
    )
    bound = bind(Wanted("m", ("x",), OUTPUTS, ("old__1",), ("old__1",), ("new__1",)), takes("x", "state"))
    assert (bound.inputs, bound.outputs) == ({"x": 0, "old__1": 1}, {"OUTPUT__0": 0, "new__1": 1})


@pytest.mark.parametrize(
    ("outputs", "places"),
    [(("OUTPUT__1", "OUTPUT__0"), [1, 0]), (("y", "z"), [0, 1]), (("sum", "RESULT[difference]"), [0, 1])],
)
def test_outputs_go_by_number_name_or_order(outputs: tuple[str, ...], places: list[int]) -> None:
    """Outputs are results by `<name>__<index>`, by the names of the results where these have some, or by order."""
    results = (
        Result("sum", aliases=("OUTPUT__0", "RESULT[sum]")),
        Result("difference", aliases=("OUTPUT__1", "RESULT[difference]")),
    )
    signature = Signature((Argument("x"),), results)
    assert list(bind(Wanted("m", ("x",), outputs), signature).outputs.values()) == places


def test_results_that_are_not_there_are_refused_at_load() -> None:
    """Where the number of results is known, an output beyond them is refused when the model is loaded."""
    signature = Signature((Argument("x"),), (Result("sum"),))
    with pytest.raises(InferError) as caught:
        bind(Wanted("m", ("x",), ("OUTPUT__1",)), signature)
    assert caught.value.message == (
        "The output OUTPUT__1 in the model configuration refers to an output index which doesn't exist. "
        "This model has 1 outputs"
    )
