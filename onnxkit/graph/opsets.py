"""Older graphs, brought to the opset that a rewrite is written for."""

from __future__ import annotations

import logging

import onnx
import onnx_ir as ir

from onnxkit.errors import InputError


def raise_opset(model: ir.Model, oldest: int, where: str) -> None:
    """Convert a graph that is older than opset `oldest` to that and to its IR version, in place.

    Raises:
        InputError: onnx's converter does not know an operator of the graph.
    """
    version = model.graph.opset_imports.get("", oldest)
    if version >= oldest:
        return
    from onnxscript import version_converter

    logger = logging.getLogger("onnxscript.version_converter")
    quiet, logger.disabled = logger.disabled, True  # it says which of two converters it takes
    try:
        version_converter.convert_version(model, oldest, fallback=True)
    except Exception as error:  # of onnx's C++, without a common base
        raise _cannot(where, version, oldest) from error
    finally:
        logger.disabled = quiet
    if model.graph.opset_imports[""] != oldest:  # what its converter cannot do it leaves as it is
        raise _cannot(where, version, oldest)
    standard = onnx.helper.make_opsetid("", oldest)
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for([standard]))


def _cannot(where: str, version: int, oldest: int) -> InputError:
    return InputError(
        f"{where} has opset {version}; {oldest} or later is needed, and onnx's version converter does not "
        f"know all of its operators: export it anew with a later opset"
    )
