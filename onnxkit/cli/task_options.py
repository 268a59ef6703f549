"""Options of `onnxkit run` that belong to tasks whose model is run once: labels, spans, vectors."""

from __future__ import annotations

from typing import Annotated

from onnxkit.cli.options import option

PANEL = "Task"

TASK_OPTIONS = {
    "top_k": Annotated[
        int | None,
        option(
            "--top-k", metavar="K", panel=PANEL, min=0,
            help="Answers for each sample; of a model that generates, the best K tokens to draw from.",
        ),
    ],
    "max_length": Annotated[
        int | None,
        option(
            "--max-length", metavar="N", panel=PANEL, min=1,
            help="Cut texts after N tokens; of a model that generates, prompt and output together.",
        ),
    ],
    "stride": Annotated[
        int | None,
        option(
            "--stride", metavar="N", panel=PANEL, min=0,
            help="Read long texts in windows that overlap by N tokens.",
        ),
    ],
    "pooling": Annotated[
        str | None,
        option(
            "--pooling", panel=PANEL, choices=("mean", "cls", "max", "last", "none"), metavar="HOW",
            help="Vector of a text from those of its tokens: mean, cls, max, last, none.",
        ),
    ],
    "normalize": Annotated[
        bool | None, option("--normalize/--no-normalize", help="Scale vectors to length 1.", panel=PANEL)
    ],
    "aggregation": Annotated[
        str | None,
        option(
            "--aggregation", panel=PANEL, metavar="HOW",
            choices=("none", "simple", "first", "average", "max"),
            help="How tokens join to entities: none, simple, first, average, max.",
        ),
    ],
    "activation": Annotated[
        str | None,
        option(
            "--activation", panel=PANEL, metavar="NAME", choices=("softmax", "sigmoid", "none"),
            help="From logits to scores: softmax, sigmoid, none.",
        ),
    ],
    "max_answer_length": Annotated[
        int | None,
        option("--max-answer-length", metavar="N", help="Tokens of an answer.", panel=PANEL, min=1),
    ],
    "null_answers": Annotated[
        bool | None,
        option("--null-answers/--no-null-answers", help="Allow no answer as an answer.", panel=PANEL),
    ],
}  # fmt: skip
