"""Which folders are versions, and which of them the version policy picks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.pb.model_config_pb2 import ModelVersionPolicy
from conch.repository.versions import RESERVED, select, version_numbers
from conch.types.error import InferError

available = st.lists(st.integers(1, 20), unique=True, min_size=1)


@given(st.lists(st.one_of(st.integers(0, 10**21).map(str), st.text(max_size=4), st.sampled_from(sorted(RESERVED)))))
def test_every_folder_is_a_version_or_warned_of_or_known_to_be_none(folders: list[str]) -> None:
    """Nothing is left out silently except reserved, hidden and cache folders."""
    folders = list(dict.fromkeys(folders))
    numbers, warnings = version_numbers(folders)
    silent = [name for name in folders if name in RESERVED or name.startswith(".")]
    assert len(numbers) + len(warnings) + len(silent) == len(folders)
    assert {str(number) for number in numbers} <= set(folders)
    assert list(numbers) == sorted(numbers)


def test_folder_warnings_are_tritons() -> None:
    """Leading zeros and names that are no integers have a text each."""
    assert version_numbers(["1", "0", "03", "abc", "warmup", "configs", "initial_state", "-1", "²"]) == (
        (0, 1),
        (
            "ignore version directory '-1' which fails to convert to integral number",
            "ignore version directory '03' which contains leading zeros in its directory name",
            "ignore version directory 'abc' which fails to convert to integral number",
            "ignore version directory '²' which fails to convert to integral number",
        ),
    )


@given(available, st.integers(1, 25))
def test_latest_takes_the_highest(numbers: list[int], count: int) -> None:
    """`latest` takes the highest n; a policy left out is the latest 1."""
    policy = ModelVersionPolicy(latest=ModelVersionPolicy.Latest(num_versions=count))
    chosen, missing = select(policy, numbers, "m")
    assert list(chosen) == sorted(numbers)[-count:]
    assert missing == ()
    assert select(ModelVersionPolicy(), numbers, "m")[0] == (max(numbers),)


def test_latest_of_nothing_is_nothing() -> None:
    """`latest { num_versions: 0 }`, which is also `latest {}`, leaves no version."""
    policy = ModelVersionPolicy(latest=ModelVersionPolicy.Latest())
    with pytest.raises(InferError, match="at least one version must be available"):
        select(policy, [1, 3], "m")


@given(available)
def test_all_takes_all(numbers: list[int]) -> None:
    """`all` takes every version."""
    policy = ModelVersionPolicy(all=ModelVersionPolicy.All())
    assert select(policy, numbers, "m") == (tuple(sorted(numbers)), ())


@given(available, st.lists(st.integers(1, 20), min_size=1))
def test_specific_takes_those_that_are_there_and_names_the_others(numbers: list[int], wanted: list[int]) -> None:
    """`specific` takes what it names and what exists; each one missing is named once; none left is an error."""
    policy = ModelVersionPolicy(specific=ModelVersionPolicy.Specific(versions=wanted))
    present = sorted(set(wanted) & set(numbers))
    if not present:
        with pytest.raises(InferError, match="at least one version must be available"):
            select(policy, numbers, "m")
        return
    chosen, missing = select(policy, numbers, "m")
    assert list(chosen) == present
    assert len(missing) == len(set(wanted) - set(numbers))


def test_missing_version_text() -> None:
    """The text for a version that is not there is Triton's."""
    policy = ModelVersionPolicy(specific=ModelVersionPolicy.Specific(versions=[1, 7]))
    assert select(policy, [1], "m")[1] == (
        "version 7 is specified for model 'm', but the version directory is not present",
    )


def test_no_version_is_an_error() -> None:
    """A model without versions cannot be loaded."""
    with pytest.raises(InferError) as caught:
        select(ModelVersionPolicy(), [], "m")
    assert str(caught.value) == (
        "Invalid argument: at least one version must be available under the version policy of model 'm'"
    )
