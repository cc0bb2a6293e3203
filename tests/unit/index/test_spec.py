"""What settings a collection may have, and which vectors belong to it."""

import pytest
from pydantic import ValidationError

from index.errors import CollectionExists, ModelMismatch
from index.spec import CollectionSpec


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a" * 65},
        {"name": "../up"},
        {"name": "Upper"},
        {"name": "line\n"},
        {"dimensions": 0},
        {"dimensions": 65537},
        {"metric": "hamming"},
        {"kind": "hnswish"},
        {"fingerprint": "f"},
        {"indexed_keys": [""]},
        {"indexed_keys": ["a." * 16 + "a"]},
        {"indexed_keys": ["nul\0"]},
        {"indexed_keys": [f"k{number}" for number in range(17)]},
        {"unknown": 1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CollectionSpec.model_validate({"name": "a", "dimensions": 2} | wrong)


def test_the_same_settings_are_the_same_collection() -> None:
    spec = CollectionSpec(name="a", dimensions=2, model="clip", fingerprint="f1")
    spec.check_same(spec)
    spec.check_same(spec.model_copy(update={"fingerprint": None}))


def test_other_settings_are_named() -> None:
    spec = CollectionSpec(name="a", dimensions=2)
    with pytest.raises(CollectionExists, match=r"dimensions is 2, not 3; metric is 'cosine', not 'l2'"):
        spec.check_same(CollectionSpec(name="a", dimensions=3, metric="l2"))


def test_indexed_keys_are_the_same_in_any_order() -> None:
    spec = CollectionSpec(name="a", dimensions=2, indexed_keys=("b.c", "a", "a"))
    assert spec.indexed_keys == ("a", "b.c")
    spec.check_same(CollectionSpec(name="a", dimensions=2, indexed_keys=("a", "b.c")))
    with pytest.raises(CollectionExists, match=r"indexed_keys is \('a', 'b.c'\), not \(\)"):
        spec.check_same(CollectionSpec(name="a", dimensions=2))


def test_another_version_of_the_model_is_a_mismatch_whatever_its_dimensions() -> None:
    spec = CollectionSpec(name="a", dimensions=2, model="clip", fingerprint="f1")
    with pytest.raises(ModelMismatch, match=r"serve the model that filled it, or create a new collection"):
        spec.check_same(CollectionSpec(name="a", dimensions=3, model="clip", fingerprint="f2"))


def test_raw_vectors_are_welcome_everywhere_and_model_vectors_where_their_model_is() -> None:
    raw = CollectionSpec(name="a", dimensions=2)
    unfilled = CollectionSpec(name="a", dimensions=2, model="clip")
    filled = CollectionSpec(name="a", dimensions=2, model="clip", fingerprint="f1")
    for spec in (raw, unfilled, filled):
        spec.check_fingerprint(None)
    unfilled.check_fingerprint("f1")
    filled.check_fingerprint("f1")
    with pytest.raises(ModelMismatch, match="send vectors"):
        raw.check_fingerprint("f1")
    with pytest.raises(ModelMismatch, match="fingerprint f2"):
        filled.check_fingerprint("f2")
