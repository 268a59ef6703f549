"""Which layers are quantized, and why the others are not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxkit import machine
from onnxkit.errors import InputError, UsageError
from onnxkit.quantize.hardware import TARGETS, hardware_for, hardware_of
from onnxkit.quantize.options import QuantizeOptions
from onnxkit.quantize.rewrite import prepare
from onnxkit.quantize.schemes import SCHEMES, scheme_named
from onnxkit.quantize.select import refuse_unsuitable, select
from tests.quantize.graphs import cosine, mlp, proto, quantized, random, session


def chosen(model, **options):
    options = QuantizeOptions(**options)
    selection = select(prepare(ir.from_proto(model), "m"), SCHEMES[options.scheme], options)
    return [t.name for t in selection.targets], {layer.name: layer.reason for layer in selection.kept}


def classifier(hidden: int = 256) -> object:
    """Words -> encoder -> head of 3 labels, over a table that is large enough."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["v"], name="embeddings.word"),
        helper.make_node("Gather", ["types", "ids"], ["t"], name="embeddings.type"),
        helper.make_node("Add", ["v", "t"], ["e"], name="embeddings.sum"),
        helper.make_node("MatMul", ["e", "w"], ["h"], name="encoder.dense"),
        helper.make_node("Relu", ["h"], ["r"], name="encoder.act"),
        helper.make_node("MatMul", ["r", "head"], ["m"], name="classifier"),
        helper.make_node("Add", ["m", "bias"], ["y"], name="classifier/bias"),
    ]
    weights = {
        "table": random(600, 64), "types": random(600, 64)[:2], "w": random(64, hidden),
        "head": random(hidden, 6), "bias": random(6),
    }  # fmt: skip
    return proto(nodes, weights, inputs={"ids": ["batch_size", "sequence_length"]}, ids=True)


def test_policies_keep_small_tables_and_heads():
    targets, kept = chosen(classifier())
    assert targets == ["embeddings.word", "encoder.dense"]
    assert kept["embeddings.type"] == "a table of fewer than 16384 elements"
    assert kept["classifier"].startswith("output head")


def test_an_include_pattern_overrules_the_policies():
    targets, kept = chosen(classifier(), include=("classifier", "dense"))
    assert targets == ["encoder.dense", "classifier"]
    assert kept["embeddings.word"] == "not included by pattern"


def convolutions():
    """A convolution of the image, one of each channel alone, and one over all of them."""
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], name="first"),
        helper.make_node("Conv", ["a", "depthwise"], ["b"], name="depthwise", group=8),
        helper.make_node("Conv", ["b", "grouped"], ["c"], name="grouped", group=4),
        helper.make_node("Conv", ["c", "pointwise"], ["y"], name="pointwise"),
    ]
    weights = {
        "first": random(8, 3, 3, 3), "depthwise": random(8, 1, 3, 3), "grouped": random(8, 2, 3, 3),
        "pointwise": random(16, 8, 1, 1),
    }  # fmt: skip
    return proto(nodes, weights, inputs={"x": ["batch_size", 3, 12, 12]}, ids=False)


def test_depthwise_convolutions_stay_float_unless_they_are_asked_for():
    targets, kept = chosen(convolutions(), scheme="int8-static", calibration="c.npz")
    assert targets == ["grouped", "pointwise"]
    assert kept["depthwise"].startswith("depthwise convolution: sensitive")
    for asked in ({"op_types": ("Conv",)}, {"include": ("depthwise",)}):
        targets, _ = chosen(convolutions(), scheme="int8-static", calibration="c.npz", **asked)
        assert "depthwise" in targets
    targets, _ = chosen(convolutions(), scheme="log8")
    assert targets == ["depthwise", "grouped", "pointwise"]


def test_a_large_head_is_quantized():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="dense"),
        helper.make_node("MatMul", ["h", "head"], ["y"], name="head"),
    ]
    weights = {"w": random(32, 32), "head": random(32, 500)}
    assert chosen(proto(nodes, weights, inputs={"x": [None, 32]}))[0] == ["dense", "head"]


def test_exclude_wins_over_include():
    targets, kept = chosen(mlp(), include=("layer",), exclude=("up$",))
    assert targets == ["layer.down"]
    assert kept == {"layer.up": "excluded by pattern"}


@pytest.mark.parametrize("flag", ["include", "exclude"])
def test_a_pattern_without_a_match_offers_the_nearest_names(flag):
    with pytest.raises(UsageError, match=rf"--{flag} 'layer\\.upp\$'.*nearest names: layer\.up"):
        chosen(mlp(), **{flag: (r"layer\.upp$",)})


def test_a_pattern_that_is_no_expression():
    with pytest.raises(UsageError, match="no regular expression"):
        chosen(mlp(), exclude=("[",))


def test_operator_types():
    targets, kept = chosen(classifier(), op_types=("MatMul",))
    assert targets == ["encoder.dense", "classifier"]
    assert kept["embeddings.word"] == "Gather is not among the operator types to quantize"
    with pytest.raises(UsageError, match="did you mean MatMul"):
        chosen(classifier(), op_types=("Matmull",))


def test_the_first_convolution_stays_float_unless_asked_for():
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], name="stem"),
        helper.make_node("Conv", ["h", "b"], ["y"], name="body"),
    ]
    model = proto(nodes, {"a": random(8, 3, 3, 3), "b": random(8, 8, 3, 3)}, inputs={"x": [None, 3, 16, 16]})
    targets, kept = chosen(model, scheme="int8-static")
    assert (targets, list(kept)) == (["body"], ["stem"])
    assert chosen(model, scheme="int8-static", op_types=("Conv",))[0] == ["stem", "body"]
    with pytest.raises(InputError, match=r"nothing left.*; int8-static, log8, log4 quantize Conv"):
        chosen(model, scheme="int8-dynamic")


def test_a_table_stays_float_with_its_head():
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["v"], name="words"),
        helper.make_node("Reshape", ["v", "flat"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "w"], ["h"], name="dense"),
        helper.make_node("Gemm", ["h", "table"], ["y"], name="head", transB=1),
    ]
    weights = {"table": random(600, 32), "w": random(32, 32), "flat": np.array([-1, 32])}
    model = proto(nodes, weights, inputs={"ids": ["b", "s"]}, ids=True)
    targets, kept = chosen(model, exclude=("head",))
    assert targets == ["dense"]
    assert kept["words"] == "a float layer reads the same table"


def test_nothing_to_quantize_at_all():
    model = proto([helper.make_node("Neg", ["x"], ["y"], name="n")], {}, inputs={"x": [1]})
    with pytest.raises(InputError, match="nothing to quantize"):
        chosen(model)


@pytest.mark.parametrize("op", ["DynamicQuantizeLinear", "QLinearMatMul", "MatMulNBits", "DequantizeLinear"])
def test_a_quantized_model_is_refused(op):
    node = ir.node(op, [ir.Value(name="x")], name="n")
    model = ir.Model(ir.Graph([], [], nodes=[node], opset_imports={"": 18}), ir_version=9)
    with pytest.raises(InputError, match=f"already quantized.*'n' is {op}"):
        refuse_unsuitable(model, "model.onnx")


def test_half_precision_is_refused():
    weights = {"w": random(32, 32).astype(np.float16)}
    model = proto([helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], weights, inputs={"x": [1, 32]})
    with pytest.raises(InputError, match=r"already half precision.*fp16"):
        refuse_unsuitable(ir.from_proto(model), "model.onnx")


def old_model(op: str = "Squeeze", **attributes: object) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="dense"),
        helper.make_node(op, ["h"], ["y"], name="last", **attributes),
    ]
    model = proto(nodes, {"w": random(32, 8)}, inputs={"x": [1, 32]})
    model.opset_import[0].version = 11
    model.ir_version = 6
    return model


def test_an_old_opset_is_raised():
    """Files of other tools are often of opset 9 to 12; Squeeze takes its axes as an input since 13."""
    model = old_model(axes=[0])
    prepared = prepare(ir.from_proto(model), "model.onnx")
    assert prepared.opset_imports[""] == 13
    assert [node.name for node in prepared.graph if node.op_type == "MatMul"] == ["dense"]
    x = {"x": random(1, 32)}
    (right,), (got,) = (ReferenceEvaluator(one).run(None, x) for one in (model, ir.to_proto(prepared)))
    np.testing.assert_array_equal(got, right)


def test_an_old_operator_that_cannot_be_raised_is_named_with_its_opset():
    with pytest.raises(InputError, match=r"^model.onnx has opset 11; 13 or later is needed"):
        prepare(ir.from_proto(old_model("NoSuchOperator")), "model.onnx")


def test_a_weight_that_layers_share_through_identities_is_stored_once():
    """PyTorch writes Identity(weight) for each layer but one; those products looked like activations'."""
    nodes = [
        helper.make_node("Identity", ["w"], ["w1"], name="again"),
        helper.make_node("Identity", ["w1"], ["w2"], name="once more"),
        helper.make_node("MatMul", ["x", "w2"], ["h"], name="layer.0"),
        helper.make_node("MatMul", ["h", "w1"], ["i"], name="layer.1"),
        helper.make_node("MatMul", ["i", "w"], ["y"], name="layer.2"),
    ]
    model = proto(nodes, {"w": random(128, 128, scale=0.1)}, inputs={"x": ["b", 128]})
    written, selection = quantized(model)
    assert [target.name for target in selection.targets] == ["layer.0", "layer.1", "layer.2"]
    assert [i.data_type for i in written.graph.initializer if list(i.dims) == [128, 128]] in ([2], [3])
    x = {"x": random(4, 128)}
    right, got = (session(one).run(x)["y"] for one in (model, written))
    assert cosine(right, got) > 0.99


def test_a_table_that_masks_stays_float():
    model = classifier()
    table = random(600, 64)
    table[3] = -np.inf
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(table, "table"))
    names, kept = chosen(model)
    assert "encoder.dense" in names and "embeddings.word" not in names
    assert kept["embeddings.word"] == "its table masks with infinite values"


def test_layers_of_branches_are_spoken_of():
    """silero-vad's layers all stand in the branches of an If."""
    product = helper.make_node("MatMul", ["x", "w"], ["b"], name="inner")
    result = helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None)
    branch = helper.make_graph([product], "branch", [], [result])
    nodes = [
        helper.make_node("Cast", ["flag"], ["f"], to=onnx.TensorProto.BOOL),
        helper.make_node("If", ["f"], ["y"], then_branch=branch, else_branch=branch),
    ]
    weights = {"w": random(32, 8), "v": random(8, 64)}
    model = proto(nodes, weights, inputs={"x": [1, 32], "flag": []})
    with pytest.raises(InputError, match=r"2 layers stay float \(first: 'inner', in a branch or loop\)"):
        chosen(model)
    nodes.append(helper.make_node("MatMul", ["y", "v"], ["z"], name="outer"))
    model = proto(nodes, weights, inputs={"x": [1, 32], "flag": []}, outputs=("z",))
    assert chosen(model, include=(".",)) == (["outer"], {"inner": "in a branch or loop"})


def test_an_unknown_scheme_offers_the_nearest():
    with pytest.raises(UsageError, match="did you mean int8-static"):
        scheme_named("int8-stattic")


def test_the_grid_follows_from_the_machine():
    assert hardware_for("avx2").products == "paired"
    assert hardware_for("avx2").convolutions == "seven"
    assert hardware_for("avx2").slow_8_bit_blocks and not hardware_for("arm64").slow_8_bit_blocks
    assert [name for name in TARGETS if not hardware_for(name).fused_attention] == ["avx512-vnni"]
    for name in set(TARGETS) - {"avx2"}:
        assert hardware_for(name).products == hardware_for(name).convolutions == "full"
    assert hardware_for(None) == hardware_of(machine.cpu())


def test_an_unknown_machine_offers_the_nearest():
    with pytest.raises(UsageError, match="--target 'avx512vnni': did you mean avx512-vnni"):
        hardware_for("avx512vnni")


def test_an_exclusion_file_names_layers(tmp_path):
    path = tmp_path / "keep.txt"
    path.write_text("# most sensitive first\n^layer\\.up$\n\n")
    targets, kept = chosen(mlp(), exclude_from=path)
    assert targets == ["layer.down"]
    assert kept == {"layer.up": "excluded by the exclusion file"}
    path.write_text("layer.upp\n")
    with pytest.raises(UsageError, match=r"--exclude-from .* 'layer.upp' matches no node.*: layer\.up"):
        chosen(mlp(), exclude_from=path)
    with pytest.raises(InputError, match="cannot be read"):
        chosen(mlp(), exclude_from=tmp_path / "none.txt")


@pytest.mark.parametrize("values", [[0, 1], [-7, 0, 5, 120]])
def test_a_mask_of_small_integers_is_no_code(values):
    stored = np.random.default_rng(0).choice(values, (32, 32)).astype(np.int8)
    nodes = [
        helper.make_node("Cast", ["mask"], ["m"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["w", "m"], ["p"]),
        helper.make_node("MatMul", ["x", "p"], ["y"], name="n"),
    ]
    model = proto(nodes, {"w": random(32, 32), "mask": stored}, inputs={"x": [1, 32]})
    if len(values) == 2:
        refuse_unsuitable(ir.from_proto(model), "model.onnx")
        return
    with pytest.raises(InputError, match=r"a weight of node 'n' is stored as integers"):
        refuse_unsuitable(ir.from_proto(model), "model.onnx")


def test_logarithmic_codes_are_refused():
    weights = {"onnxkit.log4.values": random(256, 2), "w": random(32, 32)}
    model = proto([helper.make_node("MatMul", ["x", "w"], ["y"], name="n")], weights, inputs={"x": [1, 32]})
    with pytest.raises(InputError, match=r"already quantized .*logarithmic codes"):
        refuse_unsuitable(ir.from_proto(model), "model.onnx")
