"""Constrained output: random logits, and the result parses all the same."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest

from onnxkit.errors import EnvironmentProblem, InputError, ResourceError, UsageError
from onnxkit.generate.beams import BeamSearch
from onnxkit.generate.constraint import Constraint, grammar_constraint
from onnxkit.generate.logits import constrained, processors
from onnxkit.generate.options import GenerationOptions
from onnxkit.generate.sampling import choose, generator

pytest.importorskip("llguidance")

END = 256
VOCABULARY = 300  # more than the tokenizer has, as where the embedding is padded
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["a", "bé"]}, "maxItems": 3},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
DATE = r"[0-9]{4}-[01][0-9]"
TREE = json.dumps(
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    side: {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
                    for side in ("left", "right")
                },
                "required": ["left", "right"],
            }
        },
        "$ref": "#/$defs/node",
    }
)
SUM = 'start: NUMBER ("+" NUMBER)* ";"\nNUMBER: /[0-9]{1,3}/\n'


@cache
def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(2)
    return tokenizer


def _make(**what: str) -> Any:
    return grammar_constraint(_byte_tokenizer().to_str(), [END], vocabulary=VOCABULARY, **what)


def _write(constraint: Constraint, seed: int, most: int = 400) -> tuple[str, bool]:
    """Draw from random logits under the constraint; return the text and whether it came to its end."""
    options = GenerationOptions(do_sample=True, top_k=0)
    rng = generator(seed)
    tokens: list[int] = []
    while len(tokens) < most and not constraint.finished:
        logits = rng.standard_normal(VOCABULARY).astype(np.float32)
        token = choose(constrained(logits, logits, constraint.mask(most - len(tokens))), options, rng)
        if token == END:
            return _byte_tokenizer().decode(tokens), True
        constraint.accept(token)
        tokens.append(token)
    return _byte_tokenizer().decode(tokens), constraint.finished


def test_a_schema_is_followed_whatever_the_model_says() -> None:
    make = _make(json_schema=SCHEMA)
    for seed in range(50):
        text, ended = _write(make(), seed)
        assert ended
        jsonschema.validate(json.loads(text), json.loads(SCHEMA))


def test_a_regular_expression_is_matched_whole() -> None:
    make = _make(regex=DATE)
    for seed in range(50):
        text, ended = _write(make(), seed)
        assert ended
        assert re.fullmatch(DATE, text)


def test_a_grammar_is_parsed() -> None:
    make = _make(grammar=SUM)
    for seed in range(50):
        text, ended = _write(make(), seed)
        assert ended
        assert re.fullmatch(r"\d{1,3}(\+\d{1,3})*;", text)


@pytest.mark.parametrize(
    ("schema", "most"),
    [
        (SCHEMA, 60),
        ('{"type": "string"}', 12),
        ('{"type": "array", "items": {"type": "array", "items": {"type": "number"}}}', 40),
        ('{"type": "object", "additionalProperties": {"type": "string", "minLength": 5}}', 50),
        ('{"type": "object"}', 70),
        (TREE, 150),
        ('{"type": "string", "format": "email"}', 250),
    ],
)
def test_a_schema_is_closed_in_time(schema: str, most: int) -> None:
    make = _make(json_schema=schema)
    for seed in range(30):
        constraint = make()
        text, _ = _write(constraint, seed, most)
        assert constraint.complete
        jsonschema.validate(json.loads(text), json.loads(schema))


@pytest.mark.parametrize("most", range(220, 700, 30))
def test_a_list_of_long_items_is_closed_in_time(most: int) -> None:
    """Each comma that a model likes to write asks for a whole item more."""
    names = [f"a_rather_long_name_{number}" for number in range(8)]
    item = {"type": "object", "properties": {name: {"type": "integer"} for name in names}, "required": names}
    schema = {"type": "array", "items": item, "minItems": 1}
    constraint = _make(json_schema=json.dumps(schema))()
    liked = [_byte_tokenizer().token_to_id(letter) for letter in ",}"]
    tokens: list[int] = []
    while len(tokens) < most and not constraint.finished:
        allowed = constraint.mask(most - len(tokens))
        token = next((each for each in liked if allowed[each]), int(np.flatnonzero(allowed)[0]))
        if token == END:
            break
        constraint.accept(token)
        tokens.append(token)
    jsonschema.validate(json.loads(_byte_tokenizer().decode(tokens)), schema)


def test_the_way_to_the_end_wastes_no_blanks() -> None:
    first = _make(json_schema=SCHEMA)()
    count, shortest = 0, len('{"name":"","age":0}')
    while not first.complete:
        (token,) = np.flatnonzero(first.mask(1 + shortest - count))
        first.accept(int(token))
        count += 1
        assert count < 40
    assert count == shortest


def test_an_expression_is_brought_to_its_end_in_time() -> None:
    make = _make(regex="[a-z]{3,}-end")
    for seed in range(30):
        assert re.fullmatch("[a-z]{3,}-end", _write(make(), seed, 80)[0])


def test_what_cannot_end_in_time_is_cut() -> None:
    constraint = _make(json_schema=SCHEMA)()
    text, ended = _write(constraint, 0, 10)
    assert (constraint.complete, ended, len(text.encode()) <= 10) == (False, False, True)


def test_what_is_cut_is_not_complete() -> None:
    constraint = _make(regex="ab*c?")()
    assert (constraint.complete, constraint.finished) == (False, False)
    constraint.accept(_byte_tokenizer().token_to_id("a"))
    assert (constraint.complete, constraint.finished) == (True, False)
    assert constraint.mask()[END]
    constraint.accept(_byte_tokenizer().token_to_id("c"))
    assert (constraint.complete, constraint.finished) == (True, True)
    assert np.flatnonzero(constraint.mask()).tolist() == [END]


def test_an_end_that_is_ordinary_text_only_ends() -> None:
    letter = _byte_tokenizer().token_to_id
    make = grammar_constraint(
        _byte_tokenizer().to_str(), [letter("b")], vocabulary=VOCABULARY, regex="a[abc]c?"
    )
    constraint = make()
    constraint.accept(letter("a"))
    assert np.flatnonzero(constraint.mask()).tolist() == [letter("a"), letter("c")]
    constraint.accept(letter("a"))
    assert np.flatnonzero(constraint.mask()).tolist() == [letter("b"), letter("c")]


def test_a_fork_goes_its_own_way() -> None:
    letter = _byte_tokenizer().token_to_id
    constraint = _make(regex="(ab|cd)")()
    other = constraint.fork()
    constraint.accept(letter("a"))
    assert np.flatnonzero(other.mask()).tolist() == sorted([letter("a"), letter("c")])
    assert np.flatnonzero(constraint.mask()).tolist() == [letter("b")]


def test_beams_under_a_grammar_parse() -> None:
    make = _make(json_schema='{"type": "array", "items": {"type": "boolean"}, "maxItems": 3}')
    options = GenerationOptions(num_beams=3, num_return_sequences=3, eos_token_ids=(END,))
    random = np.random.default_rng(0)
    process = processors(options, vocabulary=VOCABULARY, prompt_length=1, max_new_tokens=200)
    beams = BeamSearch(
        options, np.array([5]), max_new_tokens=200, process=process, rng=generator(0), constraint=make()
    )
    while not beams.done:
        beams.step(random.standard_normal((3, VOCABULARY)).astype(np.float32))
    found = [h for h in beams.hypotheses() if h.finish_reason == "stop"]
    assert found
    for hypothesis in found:
        assert all(isinstance(item, bool) for item in json.loads(_byte_tokenizer().decode(hypothesis.tokens)))


@pytest.mark.parametrize(
    ("what", "parses"),
    [
        ({"regex": "(ab)+( b){2}"}, lambda text: re.fullmatch("(ab)+( b){2}", text)),
        (
            {"json_schema": '{"enum": [["ab", "b"], "b"]}'},
            lambda text: json.loads(text) in (["ab", "b"], "b"),
        ),
    ],
)
def test_a_sentencepiece_tokenizer_works(what: dict[str, str], parses: Callable[[str], Any]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁ab", "ab", "b", "▁b", '"', "[", "]", ",", '▁"b"', "\n", "\t"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    make = grammar_constraint(tokenizer.to_str(), [1], vocabulary=len(pieces), **what)
    first: set[str] = set()
    random = np.random.default_rng(0)
    for _ in range(30):
        constraint, tokens = make(), list[int]()
        while not constraint.finished:
            tokens.append(int(random.choice(np.flatnonzero(constraint.mask()))))
            constraint.accept(tokens[-1])
        first.add(pieces[tokens[0]][0])
        assert parses(tokenizer.decode(tokens))
    assert "▁" in first  # what the model is used to


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"regex": "[a-z"}, r"--regex is not possible: .*unclosed character class"),
        ({"regex": "a(?=b)"}, r"--regex is not possible: .*look-around"),
        ({"grammar": "start: foo"}, r'--grammar is not possible: .*unknown name: "foo"'),
        ({"json_schema": "{"}, r"--json-schema is not JSON: .*line 1 column 2"),
        ({"json_schema": '{"type": "strin"}'}, "--json-schema is not possible: Invalid type: strin"),
        ({"json_schema": "false"}, "--json-schema is not possible: a schema is an object"),
        ({"json_schema": "[]"}, "--json-schema is not possible: a schema is an object"),
        ({"json_schema": '{"type": "integer", "minimum": 5, "maximum": 2}'}, "Unsatisfiable schema"),
        ({"json_schema": '{"type": "array", "uniqueItems": true}'}, "Unimplemented keys"),
        ({}, "give one of"),
        ({"regex": "a", "grammar": "start: /a/"}, "give one of"),
    ],
)
def test_what_is_impossible_is_said_at_once(what: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        _make(**what)
    assert len(str(caught.value)) < 260


def test_a_tokenizer_that_llguidance_cannot_read_is_named() -> None:
    with pytest.raises(InputError, match=r"tokenizer.json: constrained output does not work with it"):
        grammar_constraint('{"version": "1.0"}', [1], vocabulary=10, regex="a")


def test_a_token_that_was_not_allowed_is_refused() -> None:
    constraint = _make(regex="a")()
    with pytest.raises(ResourceError, match="cannot follow the grammar"):
        constraint.accept(_byte_tokenizer().token_to_id("z"))


def test_without_the_extra_the_pip_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'onnxkit\[grammar\]'"):
        _make(regex="a")


def test_the_module_alone_does_not_import_llguidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    importlib.reload(importlib.import_module("onnxkit.generate.constraint"))
