"""Tiny model directories for tests of tasks and the predictor: a graph, a tokenizer or image settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "the", "a", "cat", "dog", "sat", "on", "mat", "in", "paris", "berlin", "who", "where", "is", "anna",
    "lives", "good", "bad", "film", ".", ",", "?", "new", "york", "##s", "##ed", "##ing", "##ville",
]  # fmt: skip
LETTERS = [
    *"abcdefghijklmnopqrstuvwxyz0123456789",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"),
]
VOCABULARY = {
    token: index for index, token in enumerate([*SPECIALS, *WORDS, *(c for c in LETTERS if c not in WORDS)])
}


def word_piece() -> Tokenizer:
    """Return a lower-casing WordPiece tokenizer with BERT's template."""
    tokenizer = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", VOCABULARY["[CLS]"]), ("[SEP]", VOCABULARY["[SEP]"])],
    )
    return tokenizer


def save_tokenizer(folder: Path, *, tokenizer: Tokenizer | None = None, **settings: Any) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers would for BERT."""
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or word_piece()).save(str(folder / "tokenizer.json"))
    named = {
        role: f"[{role[:-6].upper()}]"
        for role in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 32, **named, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, tuple[int, Sequence[str | int]]],
    outputs: Mapping[str, Sequence[str | int]],
    weights: Mapping[str, np.ndarray[Any, Any]],
    output_type: int = TensorProto.FLOAT,
) -> None:
    """Write a graph as opset 18."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, output_type, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def token_graph(
    path: Path,
    table: np.ndarray[Any, Any],
    *,
    outputs: Sequence[str] = ("logits",),
    pooled: bool = False,
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    axes: Sequence[str | int] = ("batch_size", "sequence_length"),
    half: bool = False,
) -> None:
    """Write a graph that looks each token up in `table` [vocabulary, width].

    With `pooled` the vectors of the tokens under the mask are summed. Several outputs are the columns
    of the table, one each ([batch, sequence]).
    """
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["vectors"])]
    if "attention_mask" in inputs:
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=kind),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_column"]),
            helper.make_node("Mul", ["vectors", "mask_column"], ["kept"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["vectors"], ["kept"]))
    shape: list[str | int] = ["batch_size", "sequence_length", table.shape[1]]
    if pooled:
        nodes.append(helper.make_node("ReduceSum", ["kept", "middle"], [outputs[0]], keepdims=0))
        shape = ["batch_size", table.shape[1]]
    elif len(outputs) > 1:
        nodes.append(
            helper.make_node(
                "Split", ["kept"], [f"{o}_column" for o in outputs], axis=-1, num_outputs=len(outputs)
            )
        )
        nodes += [helper.make_node("Squeeze", [f"{o}_column", "last"], [o]) for o in outputs]
        shape = ["batch_size", "sequence_length"]
    else:
        nodes.append(helper.make_node("Identity", ["kept"], [outputs[0]]))
    for name in inputs:  # every declared input takes part, as ONNX Runtime drops none
        if name not in ("input_ids", "attention_mask"):
            nodes.append(helper.make_node("Identity", [name], [f"{name}_unused"]))
    save_graph(
        path,
        nodes,
        inputs=dict.fromkeys(inputs, (TensorProto.INT64, axes)),
        outputs=dict.fromkeys(outputs, shape),
        weights={"table": table, "last": np.array([-1]), "middle": np.array([1])},
        output_type=TensorProto.FLOAT16 if half else TensorProto.FLOAT,
    )


def text_dir(
    folder: Path,
    task: str,
    table: np.ndarray[Any, Any],
    *,
    config: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    **graph: Any,
) -> Path:
    """Write a whole directory of a text model; its architecture tells the task."""
    heads = {
        "text-classification": "BertForSequenceClassification",
        "token-classification": "BertForTokenClassification",
        "question-answering": "BertForQuestionAnswering",
        "fill-mask": "BertForMaskedLM",
    }
    token_graph(folder / "model.onnx", table, **graph)
    save_tokenizer(folder, **(tokenizer or {}))
    settings = {
        "model_type": "bert",
        "architectures": [heads.get(task, "BertModel")],
        "max_position_embeddings": 32,
        "vocab_size": len(VOCABULARY),
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def table(width: int, seed: int = 0, **rows: Sequence[float]) -> np.ndarray[Any, Any]:
    """Return random vectors [vocabulary, width] float32, those of `rows` (token=vector) as given."""
    values = np.random.default_rng(seed).standard_normal((len(VOCABULARY), width)).astype(np.float32)
    for token, row in rows.items():
        values[VOCABULARY[token]] = row
    return values


def image_dir(
    folder: Path,
    *,
    labels: int = 2,
    size: int = 8,
    half: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a classifier of images by the mean of each channel: label 0 is red, 1 green, 2 blue."""
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "space"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weight"], ["logits"]),
    ]
    save_graph(
        folder / "model.onnx",
        nodes,
        inputs={"pixel_values": (kind, ["batch_size", 3, "height", "width"])},
        outputs={"logits": ["batch_size", labels]},
        weights={"weight": np.eye(3, labels, dtype=dtype) * dtype(4), "space": np.array([2, 3])},
        output_type=kind,
    )
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": size}
    config["id2label"] = {str(i): name for i, name in enumerate(["red", "green", "blue"][:labels])}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **(settings or {})}))
    return folder
