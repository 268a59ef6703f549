"""Tiny decoders with a cache, written by hand, and what they compute in plain numpy without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, HEADS, HEAD, LAYERS, CONTEXT = 40, 16, 2, 8, 2, 64
NEVER = np.float32(-1e9)
CACHE_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


def weights(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights by name, float32; one key/value head serves both query heads."""
    rng = np.random.default_rng(seed)
    made = {"E": (VOCABULARY, WIDTH), "P": (CONTEXT, WIDTH), "H": (WIDTH, VOCABULARY)}
    for layer in range(LAYERS):
        for part in ("", "x"):  # x: cross-attention
            made |= {f"Wq{part}{layer}": (WIDTH, WIDTH), f"Wo{part}{layer}": (WIDTH, WIDTH)}
            made |= {f"Wk{part}{layer}": (WIDTH, HEAD), f"Wv{part}{layer}": (WIDTH, HEAD)}
    return {name: rng.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in made.items()}


class Graph:
    """Collects nodes, and names what they give."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}

    def add(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        array = np.asarray(value, dtype)
        name = f"c_{array.dtype}_{'_'.join(map(str, array.reshape(-1)))}_{array.ndim}"
        self.constants[name] = array
        return name

    def heads(self, x: str, count: int) -> str:
        split = self.add("Reshape", x, self.const([0, 0, count, HEAD]))
        return self.add("Transpose", split, perm=[0, 2, 1, 3])

    def attend(self, q: str, keys: str, values: str, bias: str) -> str:
        """Return attention of [B,S,WIDTH] over [B,1,T,HEAD]."""
        scores = self.add("MatMul", self.heads(q, HEADS), self.add("Transpose", keys, perm=[0, 1, 3, 2]))
        scaled = self.add("Mul", scores, self.const(HEAD**-0.5, np.float32))
        shares = self.add("Softmax", self.add("Add", scaled, bias), axis=-1)
        mixed = self.add("Transpose", self.add("MatMul", shares, values), perm=[0, 2, 1, 3])
        return self.add("Reshape", mixed, self.const([0, 0, WIDTH]))

    def model(
        self, inputs: dict[str, tuple[int, list[Any]]], outputs: dict[str, tuple[int, list[Any]]]
    ) -> onnx.ModelProto:
        used = {name for node in self.nodes for name in node.input}
        stored = {name: array for name, array in {**weights(), **self.constants}.items() if name in used}
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in stored.items()],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def decoder(*, shared: bool = False, keep: bool = True, cross: bool = False, cache: str = "float32") -> bytes:
    """Return a decoder as the design names its inputs and outputs.

    Args:
        shared: GroupQueryAttention over one buffer, past and present at once, else Concat.
        keep: with the optional input `num_logits_to_keep`.
        cross: with cross-attention to an encoder (then without attention mask and positions).
        cache: type of the keys and values.
    """
    g = Graph()
    kind = CACHE_TYPES[cache]
    inputs: dict[str, tuple[int, list[Any]]] = {"input_ids": (TensorProto.INT64, ["B", "S"])}
    outputs: dict[str, tuple[int, list[Any]]] = {"logits": (TensorProto.FLOAT, ["B", "N", VOCABULARY])}
    prefix = "decoder." if cross else ""
    x = g.add("Gather", "E", "input_ids")
    if cross:
        inputs["encoder_attention_mask"] = (TensorProto.INT64, ["B", "X"])
        past = g.add("Shape", "past_key_values.0.decoder.key", start=2, end=3)
        new = g.add("Shape", "input_ids", start=1, end=2)
        total = g.add("Add", past, new)
        padded = None
        other = g.add("Unsqueeze", "encoder_attention_mask", g.const([1, 2]))
        x_bias = g.add(
            "Where",
            g.add("Cast", other, to=TensorProto.BOOL),
            g.const(0, np.float32),
            g.const(NEVER, np.float32),
        )
    else:
        inputs["attention_mask"] = (TensorProto.INT64, ["B", "T"])
        inputs["position_ids"] = (TensorProto.INT64, ["B", "S"])
        x = g.add("Add", x, g.add("Gather", "P", "position_ids"))
        total = g.add("Shape", "attention_mask", start=1, end=2)
        past = g.add("Sub", total, g.add("Shape", "input_ids", start=1, end=2))
        padded = "attention_mask"
    bias = _bias(g, past, total, padded)
    for layer in range(LAYERS):
        names = [f"past_key_values.{layer}.{prefix}{part}" for part in ("key", "value")]
        for name in names:
            inputs[name] = (kind, ["B", 1, "P", HEAD])
            outputs[name.replace("past_key_values", "present")] = (kind, ["B", 1, "T", HEAD])
        q, k, v = (g.add("MatMul", x, f"W{part}{layer}") for part in "qkv")
        mix = _shared if shared else _growing
        out = mix(g, (q, k, v), names, bias, total, kind)
        x = g.add("Add", x, g.add("MatMul", out, f"Wo{layer}"))
        if cross:
            seen = [f"past_key_values.{layer}.encoder.{part}" for part in ("key", "value")]
            inputs |= {name: (TensorProto.FLOAT, ["B", 1, "X", HEAD]) for name in seen}
            keys, values = seen
            out = g.attend(g.add("MatMul", x, f"Wqx{layer}"), keys, values, x_bias)
            x = g.add("Add", x, g.add("MatMul", out, f"Wox{layer}"))
    if keep:
        start = g.add("Neg", g.add("Unsqueeze", "num_logits_to_keep", g.const([0])))
        x = g.add("Slice", x, start, g.const([np.iinfo(np.int64).max]), g.const([1]))
        inputs["num_logits_to_keep"] = (TensorProto.INT64, [])
    g.add("MatMul", g.add("Tanh", x), "H", out="logits")
    model = g.model(inputs, outputs)
    if keep:
        model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "num_logits_to_keep"))
    if shared:
        helper.set_model_props(model, {"onnxkit.cache": "shared"})
    content: bytes = model.SerializeToString()
    return content


def encoder(*, projected: bool = True, mask_out: str = "mask_out") -> bytes:
    """Return the encoder of `decoder(cross=True)`: embeddings, and (`projected`) their keys and values.

    With `mask_out="encoder_attention_mask"` it says itself which of its positions count, as those of audio.
    """
    g = Graph()
    g.add("Tanh", g.add("Gather", "E", "input_ids"), out="last_hidden_state")
    # The mask is a declared input, which the ecosystem feeds; it says nothing to single embeddings.
    g.add("Identity", "attention_mask", out=mask_out)
    outputs: dict[str, tuple[int, list[Any]]] = {
        "last_hidden_state": (TensorProto.FLOAT, ["B", "X", WIDTH]),
        mask_out: (TensorProto.INT64, ["B", "X"]),
    }
    if projected:
        outputs |= _project(g, "last_hidden_state")
    ids = (TensorProto.INT64, ["B", "X"])
    content: bytes = g.model({"input_ids": ids, "attention_mask": ids}, outputs).SerializeToString()
    return content


def first_step() -> bytes:
    """Return what is asked of optimum's decoder for the first step: the encoder's keys and values."""
    g = Graph()
    outputs = _project(g, "encoder_hidden_states")
    for name in ("input_ids", "encoder_attention_mask"):
        outputs[g.add("Identity", name)] = (TensorProto.INT64, ["B", None])
    inputs: dict[str, tuple[int, list[Any]]] = {
        "input_ids": (TensorProto.INT64, ["B", "S"]),
        "encoder_hidden_states": (TensorProto.FLOAT, ["B", "X", WIDTH]),
        "encoder_attention_mask": (TensorProto.INT64, ["B", "X"]),
    }
    content: bytes = g.model(inputs, outputs).SerializeToString()
    return content


def _project(g: Graph, hidden: str) -> dict[str, tuple[int, list[Any]]]:
    outputs: dict[str, tuple[int, list[Any]]] = {}
    for layer in range(LAYERS):
        for part, letter in (("key", "k"), ("value", "v")):
            name = f"present.{layer}.encoder.{part}"
            made = g.heads(g.add("MatMul", hidden, f"W{letter}x{layer}"), 1)
            g.add("Identity", made, out=name)
            outputs[name] = (TensorProto.FLOAT, ["B", 1, "X", HEAD])
    return outputs


def _bias(g: Graph, past: str, total: str, mask: str | None) -> str:
    """Return [B or 1, 1, S, T]: 0 where a query may look, else NEVER."""
    end = g.add("Squeeze", total)
    keys = g.add("Range", g.const(0), end, g.const(1))
    queries = g.add("Range", g.add("Squeeze", past), end, g.const(1))
    seen = g.add("LessOrEqual", keys, g.add("Unsqueeze", queries, g.const([1])))
    if mask is not None:
        real = g.add("Unsqueeze", g.add("Cast", mask, to=TensorProto.BOOL), g.const([1, 2]))
        seen = g.add("And", seen, real)
    else:
        seen = g.add("Unsqueeze", seen, g.const([0, 1]))
    return g.add("Where", seen, g.const(0, np.float32), g.const(NEVER, np.float32))


def _growing(g: Graph, qkv: tuple[str, str, str], past: list[str], bias: str, total: str, kind: int) -> str:
    q, *new = qkv
    both = []
    for name, x in zip(past, new, strict=True):
        cast = g.add("Cast", g.heads(x, 1), to=kind)
        joined = g.add("Concat", name, cast, out=name.replace("past_key_values", "present"), axis=2)
        both.append(g.add("Cast", joined, to=TensorProto.FLOAT))
    return g.attend(q, both[0], both[1], bias)


def _shared(g: Graph, qkv: tuple[str, str, str], past: list[str], bias: str, total: str, kind: int) -> str:
    """GroupQueryAttention; half precision goes through casts, as it computes in the type of its cache."""
    rows = g.add("Shape", qkv[0], start=0, end=1)
    last = g.add("Cast", g.add("Sub", total, g.const([1])), to=TensorProto.INT32)
    lengths = g.add("Expand", last, rows)
    scalar = g.add("Cast", g.add("Squeeze", total), to=TensorProto.INT32)
    inputs = [g.add("Cast", x, to=kind) for x in qkv]
    bias = g.add("Cast", g.add("Max", bias, g.const(-1e4, np.float32)), to=kind)
    present = [name.replace("past_key_values", "present") for name in past]
    out = f"attended{len(g.nodes)}"
    node = helper.make_node(
        "GroupQueryAttention",
        [*inputs, *past, lengths, scalar, "", "", "", bias],
        [out, *present],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=1,
    )
    g.nodes.append(node)
    return g.add("Cast", out, to=TensorProto.FLOAT)


def reference(ids: np.ndarray[Any, Any], source: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
    """Return the logits float32 [n, VOCABULARY] of one sequence, without any cache.

    Args:
        ids: int64 [n]
        source: the encoder's ids, int64 [m], for `decoder(cross=True)`.
    """
    w = weights()
    n = len(ids)
    x = w["E"][ids] if source is not None else w["E"][ids] + w["P"][:n]
    causal = np.where(np.tril(np.ones((n, n), bool)), 0, NEVER)
    hidden = None if source is None else np.tanh(w["E"][source])
    for layer in range(LAYERS):
        x = x + _attention(x, x, w, str(layer), causal)
        if hidden is not None:
            x = x + _attention(x, hidden, w, f"x{layer}", np.zeros((n, len(hidden))))
    result: np.ndarray[Any, Any] = np.tanh(x) @ w["H"]
    return result


def _attention(x: Any, over: Any, w: dict[str, Any], part: str, bias: Any) -> Any:
    q = (x @ w[f"Wq{part}"]).reshape(len(x), HEADS, HEAD)
    k, v = over @ w[f"Wk{part}"], over @ w[f"Wv{part}"]
    scores = np.einsum("shd,td->hst", q, k) * HEAD**-0.5 + bias
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    shares = scores / scores.sum(-1, keepdims=True)
    return np.einsum("hst,td->shd", shares, v).reshape(len(x), WIDTH) @ w[f"Wo{part}"]


def greedy(prompt: list[int], count: int, source: list[int] | None = None) -> list[int]:
    """Return the next `count` tokens by `reference`."""
    ids = list(prompt)
    for _ in range(count):
        given = None if source is None else np.array(source)
        ids.append(int(reference(np.array(ids), given)[-1].argmax()))
    return ids[len(prompt) :]


def save(folder: Path, **graphs: bytes) -> Path:
    """Write a model directory without a manifest: NAME.onnx of each graph, and a config."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in graphs.items():
        (folder / f"{name}.onnx").write_bytes(content)
    config = {"architectures": ["GPT2LMHeadModel"], "n_positions": CONTEXT, "is_decoder": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
