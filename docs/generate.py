"""Write what is generated of the documentation: docs/cli.md and docs/schemas/*.json.

`python -m docs.generate` writes; the tests fail while a file is not what this makes of the code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from typer.main import get_command
from typing_extensions import TypedDict

from onnxkit.cli.app import EXAMPLES, app
from onnxkit.cli.console import Console
from onnxkit.cli.help import default_text, option_names
from onnxkit.optimize.dialects import DIALECTS
from onnxkit.report import SCHEMA

HERE = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"
INTRODUCTION = """# Command line

Generated from the commands by `make docs`; do not edit.

    onnxkit COMMAND [OPTIONS] ...

Every option can be set in the environment, too: the tables name its variable. The command line wins,
and the manifest's history remembers where each value came from. A switch takes 1 or 0 there, an
option that may be repeated a list divided by blanks. No option is ignored in silence: one that does
not apply is an error (a `--seed` where nothing is drawn by chance, a warning). Data goes to stdout, all
else to stderr; [json.md](json.md) describes `--json` and the exit codes. Shell completion: `onnxkit
--install-completion`.

In what people read, 1 MB is 10^6 bytes.
"""


class Label(TypedDict):
    """A label with its score."""

    label: str
    score: float


class Span(TypedDict):
    """A stretch of the text, in characters; `end` is the first one after it."""

    label: str
    score: float
    text: str
    start: int
    end: int


class Candidate(TypedDict):
    """A token for a mask, and the whole text with it."""

    token: str
    token_id: int
    score: float
    text: str


class Answer(TypedDict):
    """A stretch of the context; an empty one means that it holds no answer."""

    answer: str
    score: float
    start: int
    end: int


class Index(TypedDict):
    """What every record has: the position of its sample in the input."""

    index: int


class Continuation(TypedDict, total=False):
    """One of several outputs for a prompt; score where it was searched with beams."""

    text: str
    finish_reason: Literal["stop", "length"]
    new_tokens: int
    score: float


class Segment(TypedDict):
    """A stretch of speech, in seconds from the beginning."""

    start_s: float
    end_s: float
    text: str


class Record(Index, total=False):
    """One result of `onnxkit run`; which fields it has depends on the task.

    Classification: label, score, scores (the best labels), labels (of multi-label models). Embeddings:
    embedding, or embeddings (one for each token or patch). Entities: entities, tokens. Filled masks:
    tokens (for each mask its candidates), text. Answers: answer, score, start, end, answers. Generated
    text: text (what is new), finish_reason, new_tokens, prompt_tokens, sequences (where several were asked
    for). Speech: text, language, duration_s, segments. `--score`: log_probability (nats), scored_tokens,
    perplexity.
    """

    label: str
    score: float
    scores: list[Label]
    labels: list[str]
    embedding: list[float]
    embeddings: list[list[float]]
    entities: list[Span]
    tokens: list[Span] | list[list[Candidate]]
    text: str
    answer: str
    start: int
    end: int
    answers: list[Answer]
    finish_reason: Literal["stop", "length", "interrupted"]
    new_tokens: int
    prompt_tokens: int
    sequences: list[Continuation]
    language: str
    duration_s: float
    segments: list[Segment]
    log_probability: float
    scored_tokens: int
    perplexity: float


class Tensor(TypedDict):
    """What an output of `onnxkit run --inputs` looks like; range and mean are of its finite values."""

    name: str
    dtype: str
    shape: list[int]
    min: float
    max: float
    mean: float
    finite: bool


def results() -> dict[str, Any]:
    """Return the type of `result` by command."""
    from onnxkit.export import ExportReport
    from onnxkit.measure import DoctorReport, ProfileReport, VerifyReport
    from onnxkit.measure.inspect import InspectReport
    from onnxkit.optimize import OptimizeReport
    from onnxkit.quantize import Analysis, QuantizeReport

    return {
        "export": ExportReport,
        "optimize": OptimizeReport,
        "quantize": QuantizeReport | Analysis,
        "run": list[Record] | list[Tensor],
        "profile": ProfileReport,
        "verify": VerifyReport,
        "inspect": InspectReport,
        "doctor": DoctorReport,
    }


class _Schemas(GenerateJsonSchema):
    """Numbers may be null: JSON has neither NaN nor infinity."""

    def float_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": ["number", "null"]}


def _closed(schema: Any) -> Any:
    """Allow no other fields than those described, and drop pydantic's titles."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(one) for key, one in schema.items() if key != "title" or not isinstance(one, str)}
    if "properties" in made:
        made.setdefault("additionalProperties", False)
    return made


def result_schema(kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON Schema of a type as `to_plain` writes it, and the definitions that it uses."""
    schema = _closed(TypeAdapter(kind).json_schema(mode="serialization", schema_generator=_Schemas))
    definitions: dict[str, Any] = schema.pop("$defs", {})
    return schema, definitions


def document_schema(command: str, kind: Any) -> dict[str, Any]:
    """Return the schema of the document that `onnxkit COMMAND --json` prints."""
    result, definitions = result_schema(kind)
    properties = {
        "schema": {"const": SCHEMA},
        "command": {"const": command},
        "version": {"type": "string", "description": "of onnxkit"},
        "result": result,
        "warnings": {"type": "array", "items": {"type": "string"}, "description": "also on stderr"},
    }
    return {
        "$schema": DIALECT,
        "title": f"onnxkit {command} --json",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        "$defs": definitions,
    }


def error_schema() -> dict[str, Any]:
    """Return the schema of the document that any command prints when it fails."""
    kinds = ["bug", "usage", "input", "environment", "resource", "unsafe", "gate", "signal"]
    error = {
        "code": {"type": "integer", "description": "the exit code"},
        "kind": {"enum": kinds},
        "message": {"type": "string", "description": "one line: what, where, how to mend"},
    }
    return {
        "$schema": DIALECT,
        "title": "onnxkit COMMAND --json, when it fails",
        "type": "object",
        "properties": {
            "schema": {"const": SCHEMA},
            "error": {
                "type": "object",
                "properties": error,
                "required": list(error),
                "additionalProperties": False,
            },
            "result": {"description": "the command's whole report, when a gate failed (code 7)"},
        },
        "required": ["schema", "error"],
        "additionalProperties": False,
    }


def record_schema() -> dict[str, Any]:
    """Return the schema of a line of `onnxkit run --jsonl`."""
    result, definitions = result_schema(Record)
    return {"$schema": DIALECT, "title": "onnxkit run --jsonl, a line", **result, "$defs": definitions}


def cli_markdown() -> str:
    """Return docs/cli.md."""
    group: Any = get_command(app)
    parts = [INTRODUCTION, "## Examples\n", _code(EXAMPLES)]
    parent = group.make_context("onnxkit", [], resilient_parsing=True, obj=Console())
    for name, command in group.commands.items():
        ctx = command.make_context(name, [], parent=parent, resilient_parsing=True)
        usage = re.sub(r"^Usage: ", "", command.get_usage(ctx))
        parts += [f"## onnxkit {name}\n", f"{command.help}\n", _code(usage), *_tables(command, ctx)]
        parts += [*(_fusions() if name == "optimize" else ()), "Examples:\n", _code(command.epilog)]
    return "\n".join(parts).rstrip() + "\n"


def _code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines()) + "\n"


def _tables(command: Any, ctx: Any) -> Iterator[str]:
    for title, params in command.sections(ctx).items():
        if title == "Arguments":
            yield "".join(f"- `{param.metavar}`: {param.help}\n" for param in params)
            continue
        yield f"**{title}**\n"
        yield "| option | environment | default | |\n|---|---|---|---|"
        yield "\n".join(_option_row(param) for param in params) + "\n"


def _fusions() -> Iterator[str]:
    found: dict[str, tuple[str, list[str]]] = {}
    for provider, dialect in DIALECTS.items():
        short = provider.removesuffix("ExecutionProvider").lower()
        for name, summary in dialect.summaries().items():
            found.setdefault(name, (summary, []))[1].append(short)
    yield "**Fusions** (what `--disable-fusion` takes)\n"
    yield "| name | providers | |\n|---|---|---|"
    rows = (f"| `{name}` | {', '.join(eps)} | {summary} |" for name, (summary, eps) in found.items())
    yield "\n".join(rows) + "\n"


def _option_row(param: Any) -> str:
    variable = f"`{param.envvar}`" if param.envvar else ""
    cells = [f"`{option_names(param)}`", variable, default_text(param), param.help or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def files() -> dict[Path, str]:
    """Return the text of every generated file."""
    schemas = {command: document_schema(command, kind) for command, kind in results().items()}
    schemas |= {"error": error_schema(), "run-jsonl": record_schema()}
    made = {
        HERE / "schemas" / f"{name}.json": json.dumps(schema, indent=2) for name, schema in schemas.items()
    }
    return {HERE / "cli.md": cli_markdown(), **{path: f"{text}\n" for path, text in made.items()}}


def main() -> None:
    """Write every file that changed."""
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
