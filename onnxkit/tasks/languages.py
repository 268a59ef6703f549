"""How a model is told the languages of a translation: a prefix, tokens beside the text, the first new token.

By family, as the tokenizers of transformers do it: T5's prefixes stand in config.json's
task_specific_params; M2M100, NLLB, MBart and PLBart have a token for each language; Marian's models of
several target languages take `>>de<<` before the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenizers import processors

from onnxkit.errors import InputError, UsageError, suggestion
from onnxkit.safety import read_json

if TYPE_CHECKING:
    from onnxkit.artifact import ModelDir
    from onnxkit.tasks.tokenizer import TokenizerSetup

_TRANSLATION = re.compile(r"^translation_([A-Za-z_]+?)_to_([A-Za-z_]+)$")
_NAMES = re.compile(r"^translate (.+) to (.+?): *$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family of tokenizers marks languages.

    Attributes:
        tokens: what its language tokens look like; the first group is what people call the language.
        leading: whether the token stands before the text, else after its end token.
        source: the source language where none is named.
    """

    tokens: re.Pattern[str]
    leading: bool
    source: str


_FAMILIES: Mapping[str, Family] = {
    "NllbTokenizer": Family(
        tokens=re.compile(r"^(([a-z]{3})_[A-Z][a-z]{3})$"), leading=True, source="eng_Latn"
    ),
    "MBartTokenizer": Family(tokens=re.compile(r"^(([a-z]{2})_[A-Z]{2})$"), leading=False, source="en_XX"),
    "MBart50Tokenizer": Family(tokens=re.compile(r"^(([a-z]{2})_[A-Z]{2})$"), leading=True, source="en_XX"),
    "M2M100Tokenizer": Family(tokens=re.compile(r"^__(([a-z]{2,3}))__$"), leading=True, source="en"),
    "PLBartTokenizer": Family(
        tokens=re.compile(r"^__(([a-z]+)_[A-Z]{2}|[a-z]+)__$"), leading=False, source=""
    ),
}
_MARIAN = re.compile(r"^>>(.+)<<$")


@dataclass(frozen=True, kw_only=True)
class Languages:
    """What the chosen languages change.

    Attributes:
        prefix: stands before every text.
        template: the tokens beside the text, None for the tokenizer's own.
        first: the token that the decoder must say first, after its start.
        start: another start of the decoder.
        parameters: generation options of config.json for this pair.
    """

    prefix: str = ""
    template: Any = None
    first: int | None = None
    start: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskParameters:
    """config.json's task_specific_params: {"translation_en_to_de": {"prefix": "translate …"}, …}."""

    entries: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TaskParameters:
        """Read them; what is malformed counts as absent."""
        value = config.get("task_specific_params")
        entries = value.items() if isinstance(value, Mapping) else ()
        return cls(entries={str(key): one for key, one in entries if isinstance(one, Mapping)})

    def get(self, task: str) -> Mapping[str, Any]:
        """Return what is said about a task, {} where nothing is."""
        return self.entries.get(task, {})

    def prefix(self, task: str) -> str:
        """Return the prefix of a task, empty where it has none."""
        value = self.get(task).get("prefix")
        return value if isinstance(value, str) else ""

    def pairs(self) -> dict[tuple[str, str], str]:
        """Return the translations that have a prefix: {("en", "de"): "translation_en_to_de"}."""
        found = {}
        for name in self.entries:
            match = _TRANSLATION.match(name)
            if match and self.prefix(name):
                found[match[1], match[2]] = name
        return found

    def names(self) -> dict[str, str]:
        """Return what people call the languages of the prefixes: {"german": "de"}."""
        found = {}
        for (source, target), task in self.pairs().items():
            match = _NAMES.match(self.prefix(task))
            if match:
                found[match[1].lower()], found[match[2].lower()] = source, target
        return found


def languages_of(
    model: ModelDir,
    setup: TokenizerSetup,
    parameters: TaskParameters,
    *,
    source: str | None,
    target: str | None,
    needed: bool,
) -> Languages:
    """Return what a model must be told for these languages.

    Args:
        model: the directory.
        setup: its tokenizer.
        parameters: its task_specific_params.
        source: a language by its code or name; None where it is not named.
        target: likewise.
        needed: whether it is an error to name none where the model has several.

    Raises:
        UsageError: a language that the model does not have (with the nearest ones), or none named.
    """
    settings = _settings(model)
    name = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
    family = _FAMILIES.get(name)
    if family is not None:
        return _tokens(model, setup, settings, family, source, target, needed)
    if parameters.pairs():
        return _prefixed(parameters, source, target, needed)
    marked = {match[1]: token for token in setup.tokenizer.get_vocab() if (match := _MARIAN.match(token))}
    if marked or name == "MarianTokenizer":
        return _marian(settings, marked, source, target, needed)
    if source is not None or target is not None:
        option = "--target-lang" if target is not None else "--source-lang"
        raise UsageError(f"{option} does not apply: {model.path} says of no language how it is named")
    return Languages()


def _prefixed(parameters: TaskParameters, source: str | None, target: str | None, needed: bool) -> Languages:
    pairs = parameters.pairs()
    if source is None and target is None:
        if len(pairs) == 1 and needed:
            [task] = pairs.values()
            return Languages(prefix=parameters.prefix(task), parameters=parameters.get(task))
        return Languages()  # the texts may carry their prefix
    names = parameters.names()
    codes = list(dict.fromkeys(code for pair in pairs for code in pair))
    wanted = [
        None if text is None else _chosen(text, option, codes, names)
        for text, option in ((source, "--source-lang"), (target, "--target-lang"))
    ]
    fitting = [pair for pair in pairs if wanted[0] in (None, pair[0]) and wanted[1] in (None, pair[1])]
    if not fitting:
        known = ", ".join(f"{one} to {other}" for one, other in pairs)
        raise UsageError(f"the model does not translate {wanted[0]} to {wanted[1]}; it does {known}")
    if len(fitting) > 1:
        option, place = ("--source-lang", 0) if source is None else ("--target-lang", 1)
        raise UsageError(f"name {option}, too: {', '.join(dict.fromkeys(pair[place] for pair in fitting))}")
    task = pairs[fitting[0]]
    return Languages(prefix=parameters.prefix(task), parameters=parameters.get(task))


def _tokens(
    model: ModelDir,
    setup: TokenizerSetup,
    settings: Mapping[str, Any],
    family: Family,
    source: str | None,
    target: str | None,
    needed: bool,
) -> Languages:
    known: dict[str, str] = {}
    short: dict[str, list[str]] = {}
    for token in setup.tokenizer.get_vocab():
        match = family.tokens.match(token)
        if match:
            known[match[1]] = token
            short.setdefault(match[2] or match[1], []).append(match[1])
    names = {code: ones[0] for code, ones in short.items() if len(ones) == 1}
    default = str(settings.get("src_lang") or family.source)
    spoken = _chosen(source, "--source-lang", list(known), names) if source is not None else _bare(default)
    template = None
    if spoken in known:
        leading = family.leading and not settings.get("legacy_behaviour")
        template = _template(setup, known[spoken], leading=leading, where=str(model.path))
    wanted = target if target is not None else settings.get("tgt_lang")
    if wanted is None:
        if needed and _forced(model) is None and not _is_language(setup, model, family):
            raise _unnamed(known)
        return Languages(template=template)
    token = known[_chosen(_bare(str(wanted)), "--target-lang", list(known), names)]
    if _is_language(setup, model, family):  # the decoder starts with the language itself
        return Languages(template=template, start=setup.tokenizer.token_to_id(token))
    return Languages(template=template, first=setup.tokenizer.token_to_id(token))


def _marian(
    settings: Mapping[str, Any],
    marked: Mapping[str, str],
    source: str | None,
    target: str | None,
    needed: bool,
) -> Languages:
    reads, writes = (settings.get(key) or "one language" for key in ("source_lang", "target_lang"))
    if source is not None and source != reads:
        raise UsageError(f"--source-lang {source}: the model reads {reads} only")
    if marked:
        if target is None:
            if needed:
                raise _unnamed(marked)
            return Languages()
        return Languages(prefix=f"{marked[_chosen(target, '--target-lang', list(marked), {})]} ")
    if target is not None and target != writes:
        raise UsageError(f"--target-lang {target}: the model writes {writes} only")
    return Languages()


def _unnamed(known: Iterable[str]) -> UsageError:
    """Return what to say where a language must be named and is not."""
    first = "|".join(sorted(known)[:6])
    return UsageError(f"name the language to translate to: --target-lang {first}|…")


def _chosen(text: str, option: str, codes: Sequence[str], names: Mapping[str, str]) -> str:
    """Return the code that `text` means: a code, or another name of one."""
    if text in codes:
        return text
    bare = _bare(text)
    if bare in codes:
        return bare
    if bare.lower() in names:
        return names[bare.lower()]
    raise UsageError(
        f"{option} {text}: the model does not have this language; {suggestion(text, [*codes, *names])}"
    )


def _bare(text: str) -> str:
    return text.strip("_<>")


def _template(setup: TokenizerSetup, token: str, *, leading: bool, where: str) -> Any:
    """Return what puts the language's token before the text and the end token after it, or both after it."""
    end = setup.specials.get("eos_token")
    if end is None:
        raise InputError(f"{where}: tokenizer_config.json names no eos_token")
    special = [(one, setup.tokenizer.token_to_id(one)) for one in (token, end)]
    single = f"{token} $A {end}" if leading else f"$A {end} {token}"
    pair = f"{token} $A $B {end}" if leading else f"$A $B {end} {token}"
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _is_language(setup: TokenizerSetup, model: ModelDir, family: Family) -> bool:
    """Whether the decoder of this model starts with a language (MBart fine-tuned on one pair)."""
    start = model.config.get("decoder_start_token_id")
    token = setup.tokenizer.id_to_token(start) if isinstance(start, int) and start >= 0 else None
    return token is not None and family.tokens.match(token) is not None


def _forced(model: ModelDir) -> int | None:
    path = model.path / "generation_config.json"
    settings = [read_json(path, trust_remote_code=True)] if path.is_file() else []
    found = (one.get("forced_bos_token_id") for one in (*settings, model.config))
    return next((value for value in found if isinstance(value, int)), None)


def _settings(model: ModelDir) -> Mapping[str, Any]:
    path = model.path / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}
