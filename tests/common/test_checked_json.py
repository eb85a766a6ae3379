import json

import pytest

from oekd_fast.common.checked_json import dump_checked, load_checked

CONTENT = {"accuracy": 83.125, "classes": ["a", "\N{SNOWMAN}"], "shape": (3, 2), "baseline": None, "nan": float("inf")}


@pytest.mark.parametrize("indent", [None, 1])
def test_content_is_read_back_without_its_checksum(indent):
    text = dump_checked(CONTENT, indent=indent)
    assert load_checked(text) == load_checked(text.encode()) == {**CONTENT, "shape": [3, 2]}
    assert list(json.loads(text)) == [*CONTENT, "checksum"]


def test_a_text_without_a_checksum_is_read():
    assert load_checked(json.dumps({"a": 1})) == {"a": 1}


def test_every_flipped_bit_is_refused_or_leaves_the_content_unchanged():
    text = dump_checked({"accuracy": 83.125, "epoch": 7}).encode()
    for position in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[position // 8] ^= 1 << position % 8
        try:
            content = load_checked(bytes(flipped))
        except ValueError:
            continue
        assert content == {"accuracy": 83.125, "epoch": 7}  # whitespace was changed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected a JSON object, got list"),
        ("[" * 100_000, "values nested too deeply"),
        (b"\xff", "can't decode"),
        (
            '{"a": 1, "checksum": "00"}',
            "checksum: expected .*, got '00'; remove this field from a file that was edited",
        ),
    ],
)
def test_damaged_texts_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        load_checked(text)
