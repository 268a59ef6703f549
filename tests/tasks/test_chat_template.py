"""Chat templates: limits of foreign code, and what is said where a chat or a template is no good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxkit.errors import InputError, UnsafeError
from onnxkit.tasks.chat_template import checked_messages
from onnxkit.tasks.jinja_sandbox import compile_template
from onnxkit.tasks.text_generation import TextGeneration
from tests.tasks.chat_templates import TEMPLATES
from tests.tasks.generating_dirs import sample

LONG = "{% set a = 'a' * 1000000 %}"
BOMBS = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{{ 'a' * 10000000000 }}",
    "{{ ['a' * 1000000] * 1000000 }}",
    "{{ '%10000000000s' % 'x' }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'x'.center(10 ** 10) }}",
    "{{ 'x'|center(1000000000) }}",
    "{{ 'x'|indent(10 ** 9) }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    LONG + "{{ a|replace('a', a) }}",
    LONG + "{{ a.replace('a', a) }}",
    LONG + "{{ a.join(a) }}",
    LONG + "{% set b = [a, a, a, a] %}{% set c = [b, b, b, b] %}{{ c ~ 'x' }}",
    LONG + "{% set b = [a, a, a, a] %}{% set c = [b, b, b, b] %}{{ c|tojson }}",
    "{% for i in range(90000) %}" + "x" * 200 + "{% endfor %}",
]


@pytest.mark.parametrize("source", BOMBS)
def test_bombs_are_refused(source: str) -> None:
    with pytest.raises(UnsafeError, match=r"^template: the chat template is refused"):
        compile_template(source, where="template").render({}, where="the chat")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ namespace(_a=1) }}",
        "{{ raise_exception.__globals__.items() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ dict.__class__.mro() }}",
    ],
)
def test_what_reaches_out_of_the_sandbox_is_refused(source: str) -> None:
    with pytest.raises((UnsafeError, InputError)):
        compile_template(source, where="template").render({"messages": [{"role": "user"}]}, where="the chat")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "the chat: .*roles must alternate"),
        ("{{ x.y.z }}", "the chat: .*'x' is undefined"),
        ("{{ messages + 1 }}", "template fails on it: TypeError"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
    ],
)
def test_templates_that_fail_say_why(source: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        compile_template(source, where="template").render({"messages": []}, where="the chat")


def test_what_is_no_template_names_its_line() -> None:
    with pytest.raises(InputError, match=r"template: not a chat template \(line 2\)"):
        compile_template("a\n{% for", where="template")


def test_rendering_starts_with_a_full_budget() -> None:
    template = compile_template("{% for i in range(90000) %}{% endfor %}x", where="template")
    assert [template.render({}, where="it") for _ in range(5)] == ["x"] * 5


def test_a_model_without_a_template(tmp_path: Path) -> None:
    task = TextGeneration(sample("pydoc-gpt2", tmp_path))
    with pytest.raises(InputError, match=r"no chat template .* or give a plain prompt"):
        task.encode({"messages": [{"role": "user", "content": "Hi"}]})


def test_named_templates_without_a_default(tmp_path: Path) -> None:
    model = sample("pydoc-gpt2", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    named = [{"name": "rag", "template": "x"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    with pytest.raises(InputError, match=r"no default template \(there are: rag\)"):
        _ = TextGeneration(model).template


@pytest.mark.parametrize(
    "messages",
    ["hi", [], [{"content": "x"}], ["x"], [{"role": "user", "content": 3}], {"role": "user"}],
)
def test_what_is_no_chat(messages: Any) -> None:
    with pytest.raises(InputError, match="line 3: "):
        checked_messages(messages, "line 3")


def test_an_instruction_makes_a_chat_of_a_prompt(tmp_path: Path) -> None:
    model = sample("pydoc-gpt2", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    task = TextGeneration(model, system="Be brief.")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = TextGeneration(model).encode({"messages": chat}).extra
    assert task.encode({"prompt": "Hi"}).extra.ids.tolist() == expected.ids.tolist()
    assert task.encode({"messages": chat[1:]}).extra.ids.tolist() == expected.ids.tolist()
    assert expected.stop_ids == (0,)  # the end of a turn ends an answer
