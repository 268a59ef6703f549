"""Padding before a maximum stays what it is."""

from __future__ import annotations

import onnx_ir as ir

from onnxkit.graph.edit import producer


class KeepPaddedPools(ir.passes.InPlacePass):
    """A MaxPool behind a Pad says `auto_pad=VALID` instead of pads of zero, which means the same.

    ONNX Runtime (1.31) makes one node of the two otherwise, and that pads with minus infinity: wrong where
    a window holds negative values only and the Pad's zeros (BiT, whose stem has no activation).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Mark the pools."""
        pools = [node for node in model.graph if _is_unpadded(node) and producer(node.inputs[0], "Pad")]
        for node in pools:
            node.attributes.pop("pads", None)
            node.attributes["auto_pad"] = ir.AttrString("auto_pad", "VALID")
        return ir.passes.PassResult(model, modified=bool(pools))


def _is_unpadded(node: ir.Node) -> bool:
    if node.op_type != "MaxPool" or node.domain:
        return False
    pads = node.attributes.get_ints("pads", ())
    automatic = node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    return not automatic and not any(pads) and not node.attributes.get_int("ceil_mode", 0)
