"""Every error of the index crosses a process boundary whole."""

import pickle

import pytest

from index import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.VectorIndexError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_pickling_keeps_type_message_and_index(kind: type[errors.VectorIndexError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what is wrong").at(3)))
    assert type(error) is kind
    assert (error.message, error.index, str(error)) == ("what is wrong", 3, "what is wrong")


def test_there_is_one_error_per_answer_of_the_contract() -> None:
    assert len(CLASSES) == 13
