"""A small decoder with a cache as `export` writes it, its regions written by hand: no PyTorch, no tracer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxkit.graph.edit import Editor
from onnxkit.graph.files import set_opset
from onnxkit.graph.regions import Region, annotate

Array = np.ndarray[Any, Any]
VOCABULARY, LOWEST = 96, float(np.finfo(np.float32).min)
_INT64, _FLOAT, _BOOL = ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """What the decoder is made of.

    Attributes:
        padding: reads `attention_mask`; False: an encoder-decoder's decoder, whose rows are never padded.
        cross: attends to `past_key_values.N.encoder.*`, too.
        heads_first: q, k and v reach the attention as `[B,H,S,D]`.
        past_shape: the length of the past is read from the past's shape, as traced models do.
        position_bias: `[1,H,1,T]` added to the scores.
        tied: the head reads the embedding (Gemm, transB).
    """

    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    size: int = 8
    padding: bool = True
    cross: bool = False
    rotary: bool = True
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    position_bias: bool = False
    biased: bool = False
    heads_first: bool = False
    past_shape: bool = False
    tied: bool = True

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.heads * self.size


class _Builder:
    def __init__(self, spec: DecoderSpec, seed: int) -> None:
        self.spec, self.random = spec, np.random.default_rng(seed)
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="decoder")
        self.editor = Editor(self.graph)
        self.regions: list[Region] = []
        self.scope = ""

    def input(self, name: str, dtype: ir.DataType, *shape: str | int) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        return value

    def weight(self, name: str, *shape: int, scale: float = 0.3) -> ir.Value:
        return self.stored(name, self.random.standard_normal(shape).astype(np.float32) * np.float32(scale))

    def stored(self, name: str, data: Array) -> ir.Value:
        tensor = ir.tensor(data, name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def add(
        self, op: str, *inputs: ir.Value | None, name: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        title = name or f"{self.scope}/{op}_{len(self.graph)}"
        node = ir.node(op, inputs, attributes, name=title, num_outputs=outputs)
        for number, value in enumerate(node.outputs):
            value.name = f"{title}:{number}"
        self.graph.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def ints(self, *content: int) -> ir.Value:
        return self.editor.constant(np.array(content, np.int64))

    def number(self, content: float | int, dtype: Any = np.float32) -> ir.Value:
        return self.editor.constant(np.array(content, dtype))

    @contextmanager
    def region(self, op: str, inputs: Mapping[str, Any], **attrs: Any) -> Iterator[dict[str, ir.Value]]:
        """What is added inside is one region; the outputs go into the dictionary that comes back."""
        start, outputs = len(self.graph), {}
        yield outputs
        nodes = tuple(list(self.graph)[start:])
        self.regions.append(
            Region(
                id=f"{self.scope}#{op}{len(self.regions)}", op=op, attrs=attrs, inputs=inputs,
                outputs=outputs, nodes=nodes,
            )
        )  # fmt: skip

    def linear(self, x: ir.Value, name: str, wide: int, out: int) -> ir.Value:
        y = self.add("MatMul", x, self.weight(f"{name}.weight", wide, out), name=name)
        return (
            self.add("Add", y, self.weight(f"{name}.bias", out), name=f"{name}/bias")
            if self.spec.biased
            else y
        )

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        self.scope = name
        weight = self.stored(
            f"{name}.weight", 1 + 0.1 * self.random.standard_normal(self.spec.width).astype(np.float32)
        )
        with self.region("rms_norm", {"x": x, "weight": weight}, epsilon=1e-5) as outputs:
            mean = self.add("ReduceMean", self.add("Mul", x, x), self.ints(-1), keepdims=1)
            root = self.add("Sqrt", self.add("Add", mean, self.number(1e-5)))
            outputs["out"] = self.add("Mul", self.add("Div", x, root), weight)
        return outputs["out"]

    def lengths(self) -> None:
        """`queries`, `keys` (int64 scalars) and the mask, from what a traced model reads them."""
        spec, zero = self.spec, self.ints(0)
        new = self.add("Shape", self.ids, start=1, end=2)
        if spec.padding and not spec.past_shape:
            total = self.add("Shape", self.mask, start=1, end=2)
        else:
            past = self.past[0][0]
            total = self.add("Add", self.add("Shape", past, start=2, end=3), new)
        self.queries, self.keys = (self.add("Squeeze", value, zero) for value in (new, total))
        keep = self.add("Cast", self.mask, to=int(_BOOL)) if spec.padding else None
        self.scope = "mask"
        inputs = {"padding": keep, "queries": self.queries, "keys": self.keys}
        with self.region("mask", inputs, causal=True, window=spec.window) as outputs:
            key = self.add("Range", self.number(0, np.int64), self.keys, self.number(1, np.int64))
            offset = self.add("Sub", self.keys, self.queries)
            rows = self.add("Range", offset, self.keys, self.number(1, np.int64))
            query = self.add("Unsqueeze", rows, self.ints(1))
            near = self.add("LessOrEqual", key, query)
            if spec.window:
                limit = self.add("Sub", query, self.number(spec.window, np.int64))
                near = self.add("And", near, self.add("Greater", key, limit))
            near = self.add("Unsqueeze", near, self.ints(0, 1))
            if keep is not None:
                near = self.add("And", self.add("Unsqueeze", keep, self.ints(1, 2)), near)
            outputs["out"] = self.add("Where", near, self.number(0.0), self.number(LOWEST))
        self.bias = outputs["out"]

    def tables(self) -> tuple[ir.Value, ir.Value]:
        """cos and sin `[B,S,D]` of `position_ids`."""
        size = self.spec.size
        frequency = (1.0 / 10.0 ** (np.arange(size // 2) / size)).astype(np.float32)
        at = self.add("Cast", self.add("Unsqueeze", self.positions, self.ints(2)), to=int(_FLOAT))
        angle = self.add("Mul", at, self.editor.constant(frequency))
        both = self.add("Concat", angle, angle, axis=-1)
        return self.add("Cos", both), self.add("Sin", both)

    def turn(self, x: ir.Value, heads: int) -> ir.Value:
        """Rotate `[B,S,H·D]`."""
        size, (cos, sin) = self.spec.size, self.turning
        attrs = {"interleaved": False, "layout": "bsh", "num_heads": heads, "head_dim": size}
        with self.region("rotary", {"x": x, "cos": cos, "sin": sin}, **attrs) as outputs:
            apart = self.add("Reshape", x, self.ints(0, 0, heads, size))
            wide = [self.add("Unsqueeze", table, self.ints(2)) for table in (cos, sin)]
            first, second = self.add("Split", apart, axis=-1, num_outputs=2, outputs=2)
            turned = self.add("Concat", self.add("Neg", second), first, axis=-1)
            whole = self.add("Add", self.add("Mul", apart, wide[0]), self.add("Mul", turned, wide[1]))
            outputs["out"] = self.add("Reshape", whole, self.ints(0, 0, heads * size))
        return outputs["out"]

    def split(self, x: ir.Value, heads: int) -> ir.Value:
        apart = self.add("Reshape", x, self.ints(0, 0, heads, self.spec.size))
        return self.add("Transpose", apart, perm=[0, 2, 1, 3])

    def attend(self, name: str, q: ir.Value, k: ir.Value, v: ir.Value, past: Any) -> ir.Value:
        """A cached self-attention; its keys and values become outputs."""
        spec, heads, kv = self.spec, self.spec.heads, self.spec.kv_heads
        self.scope = f"{name}.self_attn"
        if spec.heads_first:
            q, k, v = self.split(q, heads), self.split(k, kv), self.split(v, kv)
        inputs = {"q": q, "k": k, "v": v, "past_key": past[0], "past_value": past[1], "mask": self.bias}
        if spec.position_bias:
            inputs["bias"] = self.position_bias
        if spec.sinks:
            inputs["sinks"] = self.weight(f"{name}.sinks", heads, scale=1.0)
        attrs = self._attrs("bhsd" if spec.heads_first else "bsh", kv)
        with self.region("attention", inputs, **attrs) as outputs:
            if not spec.heads_first:
                q, k, v = self.split(q, heads), self.split(k, kv), self.split(v, kv)
            keys, values = (
                self.add("Concat", old, new, axis=2) for old, new in zip(past, (k, v), strict=True)
            )
            context = self.scores(q, self.repeat(keys), self.repeat(values), inputs)
            outputs |= {"out": context, "present_key": keys, "present_value": values}
            if not spec.heads_first:
                outputs["out"] = self.merge(context)
        self.present += [keys, values]
        return self.merge(outputs["out"]) if spec.heads_first else outputs["out"]

    def _attrs(self, layout: str, kv_heads: int) -> dict[str, Any]:
        spec = self.spec
        return {
            "num_heads": spec.heads, "kv_num_heads": kv_heads, "head_dim": spec.size, "v_head_dim": spec.size,
            "scale": 0.4, "softcap": spec.softcap, "causal": False, "layout": layout,
        }  # fmt: skip

    def merge(self, context: ir.Value) -> ir.Value:
        rows = self.add("Transpose", context, perm=[0, 2, 1, 3])
        return self.add("Reshape", rows, self.ints(0, 0, self.spec.width))

    def repeat(self, x: ir.Value) -> ir.Value:
        times = self.spec.heads // self.spec.kv_heads
        if times == 1:
            return x
        wide = self.add("Expand", self.add("Unsqueeze", x, self.ints(2)), self.ints(1, 1, times, 1, 1))
        return self.add("Reshape", wide, self.ints(0, self.spec.heads, -1, self.spec.size))

    def scores(self, q: ir.Value, k: ir.Value, v: ir.Value, inputs: Mapping[str, Any]) -> ir.Value:
        spec = self.spec
        scores = self.add("MatMul", q, self.add("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.add("Mul", scores, self.number(0.4))
        if spec.softcap:
            cap = self.number(spec.softcap)
            scores = self.add("Mul", self.add("Tanh", self.add("Div", scores, cap)), cap)
        for role in ("bias", "mask"):
            if inputs.get(role) is not None:
                scores = self.add("Add", scores, inputs[role])
        if "sinks" not in inputs:
            return self.add("MatMul", self.add("Softmax", scores, axis=-1), v)
        sink = self.add("Reshape", inputs["sinks"], self.ints(1, spec.heads, 1, 1))
        shape = self.add("Shape", scores, start=0, end=3)
        shape = self.add("Concat", shape, self.ints(1), axis=0)
        everything = self.add("Concat", scores, self.add("Expand", sink, shape), axis=-1)
        weights = self.add("Softmax", everything, axis=-1)
        weights = self.add("Slice", weights, self.ints(0), self.ints(-1), self.ints(-1))
        return self.add("MatMul", weights, v)

    def cross(self, name: str, q: ir.Value, past: Any) -> ir.Value:
        """Attention over the encoder's keys and values."""
        spec = self.spec
        self.scope = f"{name}.cross_attn"
        inputs = {"q": q, "k": past[0], "v": past[1], "mask": self.cross_bias}
        with self.region("attention", inputs, **self._attrs("cross", spec.heads)) as outputs:
            context = self.scores(self.split(q, spec.heads), past[0], past[1], inputs)
            outputs["out"] = self.merge(context)
        return outputs["out"]

    def layer(self, x: ir.Value, number: int) -> ir.Value:
        spec, name = self.spec, f"model.layers.{number}"
        wide, kv = spec.width, spec.kv_heads * spec.size
        y = self.norm(x, f"{name}.input_layernorm")
        self.scope = f"{name}.self_attn"
        q, k, v = (
            self.linear(y, f"{name}.self_attn.{part}_proj", wide, out)
            for part, out in zip("qkv", (wide, kv, kv), strict=True)
        )
        if spec.rotary:
            q, k = self.turn(q, spec.heads), self.turn(k, spec.kv_heads)
        y = self.attend(name, q, k, v, self.past[number])
        x = self.add("Add", x, self.linear(y, f"{name}.self_attn.o_proj", wide, wide), name=f"{name}/Add")
        if spec.cross:
            y = self.norm(x, f"{name}.cross_layernorm")
            y = self.cross(
                name, self.linear(y, f"{name}.cross_attn.q_proj", wide, wide), self.encoded[number]
            )
            x = self.add(
                "Add", x, self.linear(y, f"{name}.cross_attn.o_proj", wide, wide), name=f"{name}/Add_1"
            )
        y = self.norm(x, f"{name}.post_attention_layernorm")
        self.scope = f"{name}.mlp"
        gate, up = (self.linear(y, f"{name}.mlp.{part}_proj", wide, 2 * wide) for part in ("gate", "up"))
        y = self.add("Mul", self.add("Mul", gate, self.add("Sigmoid", gate)), up)
        return self.add(
            "Add", x, self.linear(y, f"{name}.mlp.down_proj", 2 * wide, wide), name=f"{name}/Add_2"
        )

    def last_rows(self, x: ir.Value) -> ir.Value:
        """The last `num_logits_to_keep` positions; 0, the default of that optional input, keeps all."""
        count = self.stored("num_logits_to_keep", np.array(0, np.int64))
        self.graph.inputs.append(count)
        start = self.add("Reshape", self.add("Neg", count), self.ints(1))
        return self.add("Slice", x, start, self.ints(np.iinfo(np.int64).max), self.ints(1))

    def head(self, x: ir.Value, embedding: ir.Value) -> ir.Value:
        self.scope = "lm_head"
        if not self.spec.tied:
            return self.add(
                "MatMul", x, self.weight("lm_head.weight", self.spec.width, VOCABULARY), name="lm_head"
            )
        rows = self.add("Reshape", x, self.ints(-1, self.spec.width))
        product = self.add("Gemm", rows, embedding, transB=1, name="lm_head")
        sizes = self.add("Shape", x, start=0, end=2)
        return self.add("Reshape", product, self.add("Concat", sizes, self.ints(VOCABULARY), axis=0))

    def build(self) -> ir.Model:
        spec = self.spec
        self.ids = self.input("input_ids", _INT64, "batch_size", "sequence_length")
        if spec.padding:
            self.mask = self.input("attention_mask", _INT64, "batch_size", "total_sequence_length")
        if spec.cross:
            attended = self.input("encoder_attention_mask", _INT64, "batch_size", "encoder_sequence_length")
        if spec.rotary:
            self.positions = self.input("position_ids", _INT64, "batch_size", "sequence_length")
        self.past = self._caches("decoder." if spec.cross else "", spec.kv_heads, "past_sequence_length")
        if spec.cross:
            self.encoded = self._caches("encoder.", spec.heads, "encoder_sequence_length")
        self.present: list[ir.Value] = []
        self.lengths()
        if spec.cross:
            keep = self.add("Cast", attended, to=int(_BOOL))
            with self.region("mask", {"padding": keep}, causal=False, window=0) as outputs:
                wide = self.add("Unsqueeze", keep, self.ints(1, 2))
                outputs["out"] = self.add("Where", wide, self.number(0.0), self.number(LOWEST))
            self.cross_bias = outputs["out"]
        if spec.rotary:
            self.turning = self.tables()
        if spec.position_bias:
            self._position_bias()
        embedding = self.weight("model.embed_tokens.weight", VOCABULARY, spec.width, scale=1.0)
        x = self.add("Gather", embedding, self.ids, name="model.embed_tokens")
        for number in range(spec.layers):
            x = self.layer(x, number)
        self.graph.outputs.append(self.head(self.last_rows(self.norm(x, "model.norm")), embedding))
        return self._finish()

    def _position_bias(self) -> None:
        """A function of how far back a key is, `[1,H,1,T]` (ALiBi's form, shifted by the last query)."""
        slopes = self.editor.constant(
            (0.5 ** np.arange(1, self.spec.heads + 1)).astype(np.float32).reshape(1, -1, 1, 1)
        )
        at = self.add("Range", self.number(0, np.int64), self.keys, self.number(1, np.int64))
        self.position_bias = self.add("Mul", slopes, self.add("Cast", at, to=int(_FLOAT)))

    def _caches(self, kind: str, heads: int, length: str) -> list[tuple[ir.Value, ir.Value]]:
        def one(layer: int, what: str) -> ir.Value:
            name = f"past_key_values.{layer}.{kind}{what}"
            return self.input(name, _FLOAT, "batch_size", heads, length, self.spec.size)

        return [(one(layer, "key"), one(layer, "value")) for layer in range(self.spec.layers)]

    def _finish(self) -> ir.Model:
        kind = "decoder." if self.spec.cross else ""
        shape = ir.Shape(["batch_size", self.spec.kv_heads, "total_sequence_length", self.spec.size])
        for number, value in enumerate(self.present):
            value.name = f"present.{number // 2}.{kind}{('key', 'value')[number % 2]}"
            value.dtype, value.shape = _FLOAT, shape
            self.graph.outputs.append(value)
        logits = self.graph.outputs[0]
        logits.name, logits.dtype = "logits", _FLOAT
        logits.shape = ir.Shape(["batch_size", "sequence_length", VOCABULARY])
        model = ir.Model(self.graph, ir_version=8)
        set_opset(model, 18)
        for region in self.regions:
            annotate(region)
        return model


def build_decoder(spec: DecoderSpec | None = None, *, seed: int = 0) -> ir.Model:
    """A decoder with the inputs and outputs of an exported one."""
    return _Builder(spec or DecoderSpec(), seed).build()


def feeds(
    spec: DecoderSpec,
    *,
    new: int,
    past: int = 0,
    pads: tuple[int, ...] = (0,),
    buffer: int = 0,
    seed: int = 0,
) -> dict[str, Array]:
    """Seeded inputs, one row for each of `pads` (padded slots at its left).

    Args:
        buffer: slots of the past's tensors; those behind the past hold garbage. 0: just the past.
    """
    random, rows, total = np.random.default_rng(seed), len(pads), past + new
    mask = (np.arange(total) >= np.array(pads)[:, None]).astype(np.int64)
    made: dict[str, Array] = {"input_ids": random.integers(0, VOCABULARY, (rows, new))}
    if spec.padding:
        made["attention_mask"] = mask
    if spec.rotary:
        made["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)[:, past:]
    kind = "decoder." if spec.cross else ""
    for layer in range(spec.layers):
        for what in ("key", "value"):
            content = random.standard_normal((rows, spec.kv_heads, past, spec.size)).astype(np.float32)
            whole = np.full((rows, spec.kv_heads, max(buffer, past), spec.size), 9.0, np.float32)
            whole[:, :, :past] = content
            made[f"past_key_values.{layer}.{kind}{what}"] = whole
    if spec.cross:
        seen = 7
        made["encoder_attention_mask"] = (
            np.arange(seen) < np.array([seen, *range(3, 3 + rows - 1)])[:, None]
        ).astype(np.int64)
        for layer in range(spec.layers):
            for what in ("key", "value"):
                shape = (rows, spec.heads, seen, spec.size)
                made[f"past_key_values.{layer}.encoder.{what}"] = random.standard_normal(shape).astype(
                    np.float32
                )
    return made
