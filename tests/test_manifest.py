"""The manifest's text is canonical, its id follows from it, and two manifests' first difference has a name."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmurate.peer.errors import ConfigError
from murmurate.peer.manifest import MANIFEST_BYTES_MAX, SHOWN_MAX, Manifest, first_difference

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(st.text(max_size=3), JSON, max_size=4)


def test_the_text_is_canonical_json() -> None:
    manifest = Manifest.of({"b": [1, 2.5, None, True], "a": {"z": "é", "y": ()}})
    assert manifest.text == '{"a":{"y":[],"z":"\\u00e9"},"b":[1,2.5,null,true]}'


def test_the_swarm_id_is_the_sha256_of_the_text() -> None:
    assert Manifest.of({"a": 1}).swarm_id.hex() == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@given(TABLES)
def test_the_order_of_keys_does_not_matter(table: dict[str, object]) -> None:
    assert Manifest.of(dict(reversed(table.items()))) == Manifest.of(table)


@pytest.mark.parametrize("value", [math.nan, math.inf, b"bytes", {1, 2}, object()])
def test_what_is_not_plain_finite_json_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="not plain, finite JSON"):
        Manifest.of({"a": {"b": [value]}})


def test_a_text_that_no_handshake_could_carry_is_refused() -> None:
    with pytest.raises(ConfigError, match=f"at most {MANIFEST_BYTES_MAX}"):
        Manifest.of({"a": "x" * MANIFEST_BYTES_MAX})


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ({"mixing": {"f": 2, "rule": "nna"}}, {"mixing": {"f": 1, "rule": "mean"}}, "mixing.f: ours 2, theirs 1"),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "b: ours 2, theirs 3"),
        ({"a": 1}, {"a": 1, "b": {"c": 3}}, 'b: ours nothing, theirs {"c": 3}'),
        ({"a": 1, "b": None}, {"a": 1}, "b: ours null, theirs nothing"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "a[1]: ours 2, theirs 3"),
        ({"a": [{"n": "x"}, 2]}, {"a": [{"n": "y"}, 2]}, 'a[0].n: ours "x", theirs "y"'),
        ({"a": [1]}, {"a": [1, 2]}, "a: ours [1], theirs [1, 2]"),
        ({"a": 1}, {"a": 1.0}, "a: ours 1, theirs 1.0"),
        ({"a": 1}, {"a": True}, "a: ours 1, theirs true"),
        ({"a": {}}, {"a": 0}, "a: ours {}, theirs 0"),
    ],
)
def test_the_first_difference_has_a_dotted_name(mine: object, theirs: object, expected: str) -> None:
    assert first_difference(json.dumps(mine), json.dumps(theirs)) == expected


@given(TABLES, TABLES)
def test_equal_texts_and_only_those_have_no_difference(mine: dict[str, object], theirs: dict[str, object]) -> None:
    a, b = Manifest.of(mine).text, Manifest.of(theirs).text
    assert (first_difference(a, b) == "") == (a == b)


def test_a_value_written_in_another_way_is_a_difference() -> None:
    assert first_difference('{"a":1}', '{ "a": 1 }') == "manifest: equal fields, written differently"


@given(st.text() | st.sampled_from(["[" * 100_000, '{"a":' * 100_000, "1" * 5_000, "NaN", "[]", "null"]))
def test_a_hostile_text_is_explained_in_one_printable_line(theirs: str) -> None:
    text = first_difference('{"a":1}', theirs)
    assert text.isprintable()
    assert text


def test_a_hostile_name_or_value_cannot_fill_the_log() -> None:
    theirs = json.dumps({"\x1b[31m" + "k" * 10_000: "v" * 10_000})
    text = first_difference('{"z":1}', theirs)
    assert text.isprintable()
    assert len(text) <= 2 * SHOWN_MAX + 40
