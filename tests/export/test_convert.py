"""Small modules through the FX clean-up and the conversion, on ONNX Runtime against eager PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.export import Dim

from onnxkit.export import fx
from onnxkit.export.convert import to_onnx
from onnxkit.graph.files import save_model, set_opset
from onnxkit.graph.passes import clean_up
from onnxkit.runtime import RuntimeOptions, open_session

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Function(torch.nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def converted(function: Any, x: torch.Tensor = X) -> ir.Model:
    module = Function(function)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
    with torch.no_grad():
        model = to_onnx(program, decompose=False)
    clean_up(model)
    set_opset(model, 18)
    return model


def check(function: Any, path: Path, x: torch.Tensor = X) -> ir.Model:
    """Same values on another batch size, too."""
    model = converted(function, x)
    save_model(model, path / "model.onnx")
    session = open_session(path / "model.onnx", RuntimeOptions(threads=1))
    for given in (x, x[:3].contiguous()):
        results = function(given.clone())
        expected = results if isinstance(results, tuple) else (results,)
        got = session.run({session.inputs[0].name: given.numpy()})
        for right, actual in zip(expected, got.values(), strict=True):
            np.testing.assert_allclose(actual, right.numpy(), rtol=1e-5, atol=1e-6)
    return model


def add_in_place(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y += 1
    z = y * 3
    y.mul_(0.5)
    return y + z


CASES: dict[str, Any] = {
    "in-place on a fresh tensor": add_in_place,
    "unbind": lambda x: torch.add(*x.reshape(-1, 2, 3).unbind(1)),
    "split": lambda x: torch.cat(x.split(4, dim=-1)[::-1], dim=-1),
    "split with sizes": lambda x: x.split([1, 2, 3], dim=1)[2] * 2,
    "split into one": lambda x: x.split(6, dim=-1)[0] + 1,
    "chunk": lambda x: x.chunk(4, dim=-1)[1] - 1,
    "promotion": lambda x: (x > 0.5) * 3 + x,
    "integer mean": lambda x: (x > 0).sum(1) / 3,
    "integer cumsum": lambda x: (x > 0).cumsum(1).to(torch.int32) + 1,
    "a size among narrow integers": lambda x: ((x > 0).int() + x.shape[0]) * x.shape[0],
    "no-ops": lambda x: x.contiguous().to(torch.float32).expand(-1, 6)[:, :].clone() * 2,
    "dropout at inference": lambda x: torch.nn.functional.dropout(x, 0.5, training=False) + 1,
    "minimum": lambda x: torch.min(x, x * 2),
    "several outputs": lambda x: (x + 1, x.sum(1)),
    "step": lambda x: x[:, ::2] * 1,
    "clip": lambda x: x.clip(-0.5, 0.5),
    "reshape as": lambda x: x.reshape(-1, 2, 3).reshape_as(x) * 2,
    "a pool of everything": lambda x: torch.nn.functional.adaptive_avg_pool2d(x.reshape(-1, 2, 3, 1), 1),
    "swapped axes": lambda x: x.reshape(-1, 2, 3).swapaxes(1, 2) * 2,
    "variance": lambda x: x.var(1, keepdim=True) + x.reshape(-1, 2, 3).var((1, 2), unbiased=False)[:, None],
    "standard deviation": lambda x: x.std(-1),
    "variance over an axis of any length": lambda x: x.var(0) + x.std() + x.var((0, 1), keepdim=True),
    "square": lambda x: x.square() + 1,
    "subtracted from a number": lambda x: 1 - x,
    "integers subtracted from a number": lambda x: (1.0 - (x > 0.5).long()) * -1e4,
    "subtracted from a size": lambda x: x.shape[0] - x,
    "subtracted from a tensor": lambda x: torch.rsub(x, x[:, :1], alpha=2),
    "an operator to decompose": lambda x: torch.nn.functional.softsign(x),
    "one that decomposes twice": lambda x: torch.cosine_similarity(x, x * 2 + 1, dim=1),
}


@pytest.mark.parametrize("name", CASES)
def test_same_values(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


def test_split_is_one_operator(tmp_path: Path) -> None:
    model = check(CASES["split"], tmp_path)
    assert [node.op_type for node in model.graph] == ["Split", "Concat"]


def test_no_ops_leave_nothing(tmp_path: Path) -> None:
    model = check(CASES["no-ops"], tmp_path)
    assert [node.op_type for node in model.graph] == ["Mul"]


def test_a_named_padding(tmp_path: Path) -> None:
    weight = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(1))
    x = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(2))
    for padding in ("valid", "same"):
        check(lambda x, p=padding: torch.nn.functional.conv2d(x, weight, padding=p), tmp_path, x)


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_is_one_operator_with_a_constant_bias(bias: bool, tmp_path: Path) -> None:
    convolution = torch.nn.Conv2d(
        4, 6, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=2, bias=bias
    )
    x = torch.randn(4, 4, 7, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        model = check(convolution, tmp_path, x)
    (node,) = model.graph
    assert [value.is_initializer() for value in node.inputs[1:] if value] == [True] * (1 + bias)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalization_is_one_operator(affine: bool, tmp_path: Path) -> None:
    norm = torch.nn.BatchNorm1d(6, affine=affine).eval()
    generator = torch.Generator().manual_seed(3)
    torch.nn.init.uniform_(norm.get_buffer("running_mean"), -1, 1, generator=generator)
    torch.nn.init.uniform_(norm.get_buffer("running_var"), 0.5, 2, generator=generator)
    with torch.no_grad():
        model = check(norm, tmp_path)
    assert [node.op_type for node in model.graph] == ["BatchNormalization"]


def test_weight_norm(tmp_path: Path) -> None:
    convolution = torch.nn.Conv1d(3, 4, 2, groups=1).eval()
    for dim in (0, 2):
        normed = torch.nn.utils.parametrizations.weight_norm(copy.deepcopy(convolution), dim=dim)
        with torch.no_grad():
            check(normed, tmp_path, torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(4)))


def in_place_on_a_view(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y[:, 0] += 1
    return y


def test_in_place_on_a_view(tmp_path: Path) -> None:
    check(in_place_on_a_view, tmp_path)


def test_cleaning_alone_does_not_see_through_views() -> None:
    program = torch.export.export(Function(in_place_on_a_view), (X,), strict=False)
    with pytest.raises(fx.NeedsDecomposition, match="view"):
        fx.clean(program)
