"""Options of `onnxkit quantize`. Which schemes take which stands in `quantize.schemes`; others refuse them.

The lists of values are those of `onnxkit.quantize`, spelled out since that package needs numpy and onnx,
which `--help` must not load; a test compares them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from onnxkit.cli.options import DATA, option

SCHEMES = (
    "int8-dynamic", "int8-static", "int8-weight", "int4-weight", "fp16", "bf16", "log8", "log4", "mixed",
)  # fmt: skip
FORMATS = ("qoperator", "qdq")
CALIBRATORS = ("minmax", "moving-average", "percentile", "entropy", "mse")
DEFAULT_CALIBRATOR = "moving-average"
ALGORITHMS = ("rtn", "search", "k-quant", "hqq", "gptq", "awq")
EMBEDDINGS = ("keep", "int8", "int4")
TARGETS = ("avx2", "avx512-vnni", "arm64", "cuda")

_INTEGERS = "Integers (int8-dynamic, int8-static)"
_BLOCKS = "Blocks (int8-weight, int4-weight, log8, log4, mixed)"
_LAYERS, _LIMITS = "Which layers", "Limits (layers are released until they hold; else exit code 7)"

Scheme = Annotated[
    str,
    option("--scheme", metavar="SCHEME", choices=SCHEMES,
           help=f"What becomes of weights and activations: {', '.join(SCHEMES)}."),
]  # fmt: skip
Target = Annotated[
    str | None,
    option("--target", choices=TARGETS, help="The machine that the result is for.", show_default="this one"),
]
Measure = Annotated[
    bool, option("--measure/--no-measure", help="Compare accuracy and speed with the input model.")
]

# --- data ---

Calibration = Annotated[
    str | None,
    option("--calibration", metavar="FILE|DIR|random", panel=DATA,
           help="Samples to learn from; `random` makes some up. int8-static needs it, others get better."),
]  # fmt: skip
Samples = Annotated[
    int, option("--samples", metavar="N", help="Calibration samples used.", panel=DATA, min=1)
]
MaxLength = Annotated[
    int | None,
    option("--max-length", metavar="N", help="Tokens used of a sample.", panel=DATA, min=1,
           show_default="the model's limit"),
]  # fmt: skip
CalibrationCache = Annotated[
    Path | None,
    option("--calibration-cache", metavar="FILE", panel=DATA,
           help="Keep ranges, smoothing and channel statistics (not gptq's Hessians) for the next time."),
]  # fmt: skip
Evaluation = Annotated[
    Path | None,
    option("--eval", metavar="FILE|DIR", panel=DATA,
           help="Samples to compare accuracy and speed on; without it a part of the calibration set."),
]  # fmt: skip

# --- integers ---

Format = Annotated[
    str | None,
    option("--format", choices=FORMATS, panel=_INTEGERS, show_default="qoperator",
           help="int8-static: ONNX Runtime's operators (fastest there), or standard QuantizeLinear pairs."),
]  # fmt: skip
Calibrator = Annotated[
    str | None,
    option("--calibrator", choices=CALIBRATORS, metavar="NAME", panel=_INTEGERS,
           show_default=DEFAULT_CALIBRATOR,
           help=f"int8-static: how a range follows from what was seen: {', '.join(CALIBRATORS)}."),
]  # fmt: skip
PerChannel = Annotated[
    bool,
    option("--per-channel/--per-tensor", panel=_INTEGERS,
           help="One weight scale per output channel, or one per tensor (not in blocks)."),
]  # fmt: skip
SmoothQuant = Annotated[
    str | None,
    option("--smooth-quant", metavar="auto|off|ALPHA", panel=_INTEGERS, show_default="auto with data",
           help="Move outliers from activations to weights: alpha searched, not, or given (0 to 1)."),
]  # fmt: skip
BiasCorrection = Annotated[
    bool,
    option("--bias-correction/--no-bias-correction", panel=_INTEGERS,
           help="Add back the mean of the error that each layer's output gets."),
]  # fmt: skip

# --- blocks ---

Algorithm = Annotated[
    str | None,
    option("--algorithm", choices=ALGORITHMS, metavar="NAME", panel=_BLOCKS,
           show_default="4 bits: gptq with data, search without; 8 bits: search",
           help=f"How codes are found: {', '.join(ALGORITHMS)}. gptq and awq need data, search gets better."),
]  # fmt: skip
BlockSize = Annotated[
    int | None,
    option("--block-size", metavar="N", panel=_BLOCKS, show_default="32",
           help="Weights that share a scale: 16, 32, 64, 128, 256."),
]  # fmt: skip
Symmetric = Annotated[
    bool | None,
    option("--symmetric/--asymmetric", panel=_BLOCKS, show_default="asymmetric with 4 bits",
           help="Blocks without zero points (faster, smaller), or with (closer)."),
]  # fmt: skip
AccuracyLevel = Annotated[
    int | None,
    option("--accuracy-level", metavar="0-4", panel=_BLOCKS, show_default="4",
           help="What blocks are multiplied in: 0 any, 1 fp32, 2 fp16, 3 bf16, 4 int8."),
]  # fmt: skip
Embeddings = Annotated[
    str | None,
    option("--embeddings", choices=EMBEDDINGS, panel=_BLOCKS, show_default="int8",
           help="What becomes of embedding tables and the output head; a tied one is stored once."),
]  # fmt: skip
BitsPerWeight = Annotated[
    float | None,
    option("--bits-per-weight", metavar="X", panel=_BLOCKS,
           help="mixed: what a weight may take on average, scales, tables and head included."),
]  # fmt: skip

# --- layers ---

Include = Annotated[
    list[str] | None,
    option("--include", metavar="REGEX", panel=_LAYERS,
           help="Quantize only nodes whose name matches (repeat)."),
]  # fmt: skip
Exclude = Annotated[
    list[str] | None,
    option("--exclude", metavar="REGEX", panel=_LAYERS,
           help="Keep nodes float whose name matches (repeat)."),
]  # fmt: skip
ExcludeFrom = Annotated[
    Path | None,
    option("--exclude-from", metavar="FILE", panel=_LAYERS,
           help="A file of such expressions, one a line, as --analyze writes it."),
]  # fmt: skip
OpTypes = Annotated[
    str | None,
    option("--op-types", metavar="OP,…", panel=_LAYERS, help="Operator types to quantize: MatMul,Gemm,Conv."),
]
Analyze = Annotated[
    bool,
    option("--analyze", panel=_LAYERS,
           help="Write no model but what each layer costs alone: a table, a plot, an exclusion file."),
]  # fmt: skip

# --- limits ---

MaxDrop = Annotated[
    float | None,
    option("--max-drop", metavar="POINTS", panel=_LIMITS, help="What the task's metric may lose on --eval."),
]
MinCosine = Annotated[
    float | None,
    option("--min-cosine", metavar="X", panel=_LIMITS,
           help="The least cosine of an output to the input model's."),
]  # fmt: skip
MaxKl = Annotated[
    float | None,
    option("--max-kl", metavar="NATS", panel=_LIMITS,
           help="The largest mean KL divergence of the next token's distribution."),
]  # fmt: skip
MaxWorstSlice = Annotated[
    float | None,
    option("--max-worst-slice", metavar="POINTS", panel=_LIMITS,
           help="What the class or language that loses most may lose."),
]  # fmt: skip
