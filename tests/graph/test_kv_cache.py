"""When the past's buffers may be longer than what they hold, and what tells their length then."""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.graph import half_precision, ort_cpu
from onnxkit.graph.kv_cache import CACHE, share_buffers
from onnxkit.graph.lowering import lower
from tests.decoder_graphs import DecoderSpec, build_decoder


def lowered(**settings) -> ir.Model:
    model = build_decoder(DecoderSpec(**settings))
    lower(model, ort_cpu.LOWERINGS)
    return model


def readers(model: ir.Model) -> set[str]:
    past = [value for value in model.graph.inputs if value.name.startswith("past_key_values.")]
    return {use.node.op_type for value in past for use in value.uses()}


def test_a_primitive_graph_reads_its_past_and_cannot_share():
    model = build_decoder()
    assert not share_buffers(model)
    assert CACHE not in model.metadata_props


def test_one_attention_that_stays_primitive_forbids_it():
    model = build_decoder()
    rows = [row for row in ort_cpu.LOWERINGS if row.name != "cached-attention"]
    first = next(row for row in ort_cpu.LOWERINGS if row.name == "cached-attention")
    lower(model, [*rows, first], regions=_all_but_one(model))
    assert not share_buffers(model)


def _all_but_one(model: ir.Model):
    from onnxkit.graph.regions import find_regions

    found = find_regions(model)
    attention = next(region for region in found if region.op == "attention")
    return [region for region in found if region is not attention]


def test_the_length_of_the_past_is_taken_from_the_mask():
    model = lowered(past_shape=True)
    assert readers(model) == {"GroupQueryAttention", "Shape"}
    assert share_buffers(model)
    assert readers(model) == {"GroupQueryAttention"}
    assert model.metadata_props[CACHE] == "shared"


def test_a_layer_that_reads_the_keys_of_another_forbids_it():
    """It takes them for as many as there are: Gemma 3n's and 4's last layers."""
    model = lowered()
    present = next(value for value in model.graph.outputs if value.name.startswith("present."))
    model.graph.append(ir.node("Identity", [present]))
    assert not share_buffers(model)
    assert CACHE not in model.metadata_props


def test_without_a_mask_nothing_tells_the_length():
    model = lowered(padding=False, cross=True, kv_heads=4, rotary=False)
    assert not share_buffers(model)


def test_float16_makes_the_cache_float16_and_no_cast_of_it():
    model = lowered()
    half_precision.to_half(model)
    past = [value for value in model.graph.inputs if value.name.startswith("past_key_values.")]
    present = [value for value in model.graph.outputs if value.name.startswith("present.")]
    assert {value.dtype for value in [*past, *present]} == {ir.DataType.FLOAT16}
    assert readers(model) == {"GroupQueryAttention"}
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT
