"""Options of `onnxkit run` for models that generate: what is said, how tokens are chosen, when it ends.

Defaults are the model's own (generation_config.json), so every option is None until it is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from onnxkit.cli.options import DATA, OUTPUT, option

_TEXT, _LENGTH, _CHOICE, _SHAPE = "Prompt", "Length and end", "Choice of tokens", "Speed and form"
_SPEECH = "Speech"


def _integer(name: str, help: str, panel: str = _CHOICE, metavar: str = "N") -> Any:
    return Annotated[int | None, option(name, metavar=metavar, help=help, panel=panel)]


def _number(name: str, help: str, metavar: str = "X") -> Any:
    return Annotated[float | None, option(name, metavar=metavar, help=help, panel=_CHOICE)]


def _text(name: str, help: str, panel: str, metavar: str) -> Any:
    return Annotated[str | None, option(name, metavar=metavar, help=help, panel=panel)]


def _texts(name: str, help: str, panel: str, metavar: str) -> Any:
    return Annotated[list[str] | None, option(name, metavar=metavar, help=help, panel=panel)]


def _file(name: str, help: str, panel: str = _SHAPE, metavar: str = "FILE") -> Any:
    return Annotated[Path | None, option(name, metavar=metavar, help=help, panel=panel)]


def _switch(name: str, help: str, panel: str) -> Any:
    return Annotated[bool | None, option(name, help=help, panel=panel)]


WAYS = {
    "chat": _switch("--chat", "Talk with the model, line by line; /help says what else it takes.", DATA),
    "messages": _file("--messages", "A chat to answer: a JSON list of {role, content}.", DATA, "FILE.json"),
    "score": _switch("--score", "Say how probable the text is: log-probability, perplexity.", OUTPUT),
    "stream": _switch(
        "--stream/--no-stream", "Show the answer as it comes; a terminal does for one prompt.", OUTPUT
    ),
    "subtitles": Annotated[
        str | None,
        option(
            "--subtitles", panel=OUTPUT, choices=("srt", "vtt"), metavar="srt|vtt",
            help="Print a transcript as subtitles.",
        ),
    ],
}  # fmt: skip
"""What is done with the prompt, and how it is shown."""

GENERATING_TASK = {
    "system": _text("--system", "What the chat's model is told first.", _TEXT, "TEXT"),
    "prefix": _text("--prefix", "Put before every text (T5: what to do with it).", _TEXT, "TEXT"),
    "source_lang": _text("--source-lang", "Language to translate from.", _TEXT, "LANG"),
    "target_lang": _text("--target-lang", "Language to translate to.", _TEXT, "LANG"),
    "language": _text("--language", "Language that is spoken; without it, it is detected.", _SPEECH, "LANG"),
    "timestamps": _switch("--timestamps", "Say when what was said.", _SPEECH),
    "translate": _switch("--translate", "Translate the speech into English.", _SPEECH),
    "stop": _texts("--stop", "End at this text, which is cut off (repeat).", _LENGTH, "TEXT"),
    "stop_token": _texts("--stop-token", "End at this token (repeat).", _LENGTH, "TOKEN"),
}
"""Options of the tasks themselves."""

ENGINE = {
    "speculate": Annotated[
        str | None,
        option(
            "--speculate", panel=_SHAPE, choices=("ngram",), metavar="ngram",
            help="Guess what repeats an earlier passage; the output stays the same.",
        ),
    ],
    "draft": _file("--draft", "Let this smaller model of the same tokenizer guess.", metavar="DIR"),
    "json_schema": _file("--json-schema", "Every output is JSON of this schema."),
    "regex": _text("--regex", "Every output matches this expression.", _SHAPE, "REGEX"),
    "grammar": _file("--grammar", "Every output follows this grammar (Lark)."),
}  # fmt: skip
"""How the engine works, and what its output must be."""

GENERATION = {
    "max_new_tokens": _integer("--max-new-tokens", "Longest output.", _LENGTH),
    "min_new_tokens": _integer("--min-new-tokens", "Shortest output.", _LENGTH),
    "min_length": _integer("--min-length", "Shortest output, the prompt counted.", _LENGTH),
    "do_sample": _switch("--do-sample/--no-do-sample", "Draw tokens by chance, or take the best.", _CHOICE),
    "temperature": _number("--temperature", "Over 1 more variety, below 1 less; 0 takes the best.", "T"),
    "top_p": _number("--top-p", "Draw from the best tokens that hold this probability.", "P"),
    "min_p": _number("--min-p", "Draw from tokens of this share of the best one's probability.", "P"),
    "typical_p": _number("--typical-p", "Draw from tokens of about the expected surprise.", "P"),
    "epsilon_cutoff": _number("--epsilon-cutoff", "Draw from tokens of this probability or more."),
    "eta_cutoff": _number("--eta-cutoff", "The same, less strict where nothing stands out."),
    "repetition_penalty": _number("--repetition-penalty", "Over 1: less of what was said before."),
    "presence_penalty": _number("--presence-penalty", "Lower the logits of tokens that were generated."),
    "frequency_penalty": _number("--frequency-penalty", "The same, for each time."),
    "no_repeat_ngram_size": _integer("--no-repeat-ngram-size", "Repeat no N tokens in a row."),
    "encoder_repetition_penalty": _number(
        "--encoder-repetition-penalty", "Over 1: more of what stands in the text that is read."
    ),
    "encoder_no_repeat_ngram_size": _integer(
        "--encoder-no-repeat-ngram-size", "Repeat no N tokens of the text that is read."
    ),
    "num_beams": _integer("--num-beams", "Search with N beams."),
    "length_penalty": _number("--length-penalty", "Of beams: over 0 favours longer ones."),
    "early_stopping": Annotated[
        str | None,
        option(
            "--early-stopping", panel=_CHOICE, choices=("true", "false", "never"), metavar="WHEN",
            help="When a beam search ends: true, false, never.",
        ),
    ],
    "num_return_sequences": _integer("--num-return-sequences", "Outputs for each prompt."),
    "seed": _integer("--seed", "Seed of the draws.", metavar="N"),
}  # fmt: skip
"""`GenerationOptions` by name; `--top-k` and `--max-length` stand among the tasks' options."""

SHARED_WITH_TASKS = ("top_k", "max_length")


def generation_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return values of GENERATION as `GenerationOptions` takes them."""
    if "early_stopping" in values:
        word = values["early_stopping"]
        values = {**values, "early_stopping": word if word == "never" else word == "true"}
    return values
