"""A small transformer encoder with semantic regions, as `export` writes it, built without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxkit.graph import portable, semantic
from onnxkit.graph.edit import Editor
from onnxkit.graph.regions import annotate

HEADS, SIZE, VOCABULARY, POSITIONS = 4, 8, 150, 64
WIDTH = HEADS * SIZE


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What the encoder is made of."""

    layers: int = 2
    padding: bool = True
    causal: bool = False
    window: int = 0
    biased: bool = True
    rotary: bool = False
    position_bias: bool = False
    approximate: str = "none"
    grouped: bool = False
    cross: bool = False
    v_size: int = SIZE
    weight_scale: float = 0.3


class _Builder:
    def __init__(self, spec: EncoderSpec, seed: int) -> None:
        self.spec, self.random = spec, np.random.default_rng(seed)
        self.ids = ir.Value(
            name="input_ids", shape=ir.Shape(["batch_size", "sequence_length"]), type=_type("INT64")
        )
        self.mask = ir.Value(name="attention_mask", shape=self.ids.shape, type=_type("INT64"))
        inputs = [self.ids, self.mask] if spec.padding else [self.ids]
        self.graph = ir.Graph(
            inputs, [], nodes=[], opset_imports={"": 18, semantic.DOMAIN: 1}, name="encoder"
        )
        self.editor = Editor(self.graph)

    def weight(self, name: str, *shape: int, scale: float | None = None) -> ir.Value:
        data = self.random.standard_normal(shape).astype(np.float32) * (scale or self.spec.weight_scale)
        value = ir.Value(
            name=name, shape=ir.Shape(shape), type=_type("FLOAT"), const_value=ir.tensor(data, name=name)
        )
        self.graph.register_initializer(value)
        return value

    def add(
        self, op: str, *inputs: ir.Value | None, shape: Any = None, name: str = "", **attributes: Any
    ) -> ir.Value:
        domain = semantic.DOMAIN if op in ("Attention", "Mask", "Rotary", "Gelu") else ""
        node = ir.node(op, inputs, attributes, domain=domain, name=name or f"{op}_{len(self.graph)}")
        scopes = ["", *([name.rpartition("/")[0]] if "/" in name else []), node.name]
        node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(scopes)
        out = node.outputs[0]
        out.name, out.dtype = f"{node.name}:out", ir.DataType.FLOAT
        out.shape = ir.Shape(shape) if shape else None
        self.graph.append(node)
        return out

    def ints(self, *content: int) -> ir.Value:
        return self.editor.constant(np.array(content, np.int64))

    def linear(self, x: ir.Value, name: str, wide: int, out: int, biased: bool = True) -> ir.Value:
        shape = [*[*(x.shape or ())][:2], out]
        y = self.add("MatMul", x, self.weight(f"{name}.weight", wide, out), name=name, shape=shape)
        return (
            self.add("Add", y, self.weight(f"{name}.bias", out), name=f"{name}/bias", shape=shape)
            if biased
            else y
        )

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        weights = self.weight(f"{name}.weight", WIDTH), self.weight(f"{name}.bias", WIDTH)
        return self.add("LayerNormalization", x, *weights, name=name, shape=x.shape, axis=-1, epsilon=1e-5)

    def heads(self, x: ir.Value, count: int, size: int) -> ir.Value:
        batch, length = [*(x.shape or ())][:2]
        split = self.add("Reshape", x, self.ints(0, 0, count, size), shape=[batch, length, count, size])
        return self.add("Transpose", split, shape=[batch, count, length, size], perm=[0, 2, 1, 3])

    def attention_mask(self) -> ir.Value | None:
        spec = self.spec
        if not (spec.padding or spec.causal or spec.window):
            return None
        padding = None
        if spec.padding:
            padding = self.add("Cast", self.mask, shape=self.mask.shape, to=int(ir.DataType.BOOL))
            padding.dtype = ir.DataType.BOOL
        length = self.add("Squeeze", self.add("Shape", self.ids, start=1, end=2), self.ints(0))
        batch = self.add("Squeeze", self.add("Shape", self.ids, start=0, end=1), self.ints(0))
        inputs = (padding, batch, length, length)
        return self.add("Mask", *inputs, name="encoder/mask", window=spec.window, causal=int(spec.causal))

    def tables(self) -> tuple[ir.Value, ir.Value]:
        """cos and sin `[1,S,D]` of positions 0 to S-1."""
        angles = np.outer(np.arange(POSITIONS), 1.0 / 10.0 ** (np.arange(SIZE // 2) / SIZE))
        angles = np.concatenate([angles, angles], axis=-1)[None].astype(np.float32)
        length = self.add("Shape", self.ids, start=1, end=2)
        shape = [1, "sequence_length", SIZE]
        found = []
        for function in (np.cos, np.sin):
            table = self.editor.constant(function(angles))
            found.append(self.add("Slice", table, self.ints(0), length, self.ints(1), shape=shape))
        return found[0], found[1]

    def layer(self, x: ir.Value, name: str, mask: ir.Value | None, extra: dict[str, Any]) -> ir.Value:
        spec = self.spec
        kv_heads = HEADS // 2 if spec.grouped else HEADS
        other = extra.get("cross", x)
        q = self.heads(self.linear(x, f"{name}.query", WIDTH, WIDTH, spec.biased), HEADS, SIZE)
        k = self.heads(self.linear(other, f"{name}.key", WIDTH, kv_heads * SIZE, spec.biased), kv_heads, SIZE)
        v_width = kv_heads * spec.v_size
        v = self.heads(
            self.linear(other, f"{name}.value", WIDTH, v_width, spec.biased), kv_heads, spec.v_size
        )
        if "tables" in extra:
            q, k = (self.add("Rotary", y, *extra["tables"], shape=y.shape, name=f"{name}/turn_{n}")
                    for n, y in enumerate((q, k)))  # fmt: skip
        inputs = [q, k, v, mask, extra.get("bias")]
        batch, length = [*(x.shape or ())][:2]
        shape = [batch, length, HEADS, spec.v_size]
        attributes = {"scale": SIZE**-0.5, "softcap": 0.0}
        out = self.add("Attention", *inputs, name=f"{name}.self/attention", shape=shape, **attributes)
        width = HEADS * spec.v_size
        flat = self.add("Reshape", out, self.ints(0, 0, width), shape=[batch, length, width])
        x = self.norm(
            self.add("Add", self.linear(flat, f"{name}.output", width, WIDTH), x, shape=x.shape), f"{name}.n1"
        )
        y = self.linear(x, f"{name}.up", WIDTH, 2 * WIDTH)
        y = self.add("Gelu", y, name=f"{name}.act/gelu", shape=y.shape, approximate=spec.approximate)
        return self.norm(
            self.add("Add", self.linear(y, f"{name}.down", 2 * WIDTH, WIDTH), x, shape=x.shape), f"{name}.n2"
        )

    def build(self) -> ir.Model:
        words = self.weight("words", VOCABULARY, WIDTH, scale=1.0)
        x = self.add(
            "Gather", words, self.ids, name="embeddings", shape=["batch_size", "sequence_length", WIDTH]
        )
        mask, extra = self.attention_mask(), {}
        if self.spec.rotary:
            extra["tables"] = self.tables()
        if self.spec.cross:
            extra["cross"] = x
        if self.spec.position_bias:
            extra["bias"] = self.position_bias()
        for number in range(self.spec.layers):
            x = self.layer(x, f"encoder.layer.{number}", mask, extra)
        x.name = "last_hidden_state"
        self.graph.outputs.append(x)
        model = ir.Model(self.graph, ir_version=9, producer_name="test")
        regions = portable.lower(model)
        RemoveUnusedNodesPass()(model)
        for region in regions:
            annotate(region)
        model.opset_imports.pop(semantic.DOMAIN)
        return model

    def position_bias(self) -> ir.Value:
        """`[1,H,S,S]`: a function of the sizes, as MPNet's relative positions are."""
        length = self.add("Shape", self.ids, start=1, end=2)
        both = self.add("Concat", length, length, axis=0)
        table = self.weight("positions", 1, HEADS, POSITIONS, POSITIONS, scale=1.0)
        return self.add("Slice", table, self.ints(0, 0), both, self.ints(2, 3))


def _type(name: str) -> ir.TensorType:
    return ir.TensorType(ir.DataType[name])


def build_encoder(spec: EncoderSpec | None = None, *, seed: int = 0) -> ir.Model:
    """An encoder with inputs input_ids, attention_mask and output last_hidden_state `[B,S,32]`."""
    return _Builder(spec or EncoderSpec(), seed).build()


def save_plain(model: ir.Model, path: Path, *, regions: bool = True) -> None:
    """Write without value_info; `regions=False` makes it a foreign graph."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    if not regions:
        for node in proto.graph.node:
            del node.metadata_props[:]
    path.write_bytes(proto.SerializeToString())


def feeds(batch: int, length: int, *, padding: str = "none", seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded ids with a mask that leaves each row another number of tokens."""
    random = np.random.default_rng(seed)
    ids = random.integers(1, VOCABULARY, (batch, length))
    mask = np.ones_like(ids)
    for row in range(1, batch):
        short = max(1, length - 2 * row)
        if padding == "right":
            mask[row, short:] = 0
        elif padding == "left":
            mask[row, : length - short] = 0
    return {"input_ids": ids, "attention_mask": mask}
