"""Opening and running sessions: what is checked, and what is said."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxkit.errors import EnvironmentProblem, InputError, ResourceError, UsageError
from onnxkit.machine import usable_cores
from onnxkit.runtime import (
    RuntimeOptions,
    TensorSpec,
    import_onnxruntime,
    open_session,
    opset_ceiling,
    provider_name,
)
from onnxkit.runtime import cuda as cuda_module

FLOAT = TensorProto.FLOAT


@pytest.fixture
def adder(build: Any) -> bytes:
    """y[b, 3] = x[b, 3] + 1, z = -x."""
    one = helper.make_tensor("one", FLOAT, [3], [1.0, 1.0, 1.0])
    model = build(
        [helper.make_node("Add", ["x", "one"], ["y"], "add"), helper.make_node("Neg", ["x"], ["z"], "neg")],
        {"x": (FLOAT, ["batch", 3])},
        {"y": (FLOAT, ["batch", 3]), "z": (FLOAT, ["batch", 3])},
        initializers=[one],
    )
    return bytes(model.SerializeToString())


def test_specs_settings_and_results(adder: bytes) -> None:
    session = open_session(adder)
    assert session.inputs == (TensorSpec(name="x", dtype="float32", shape=("batch", 3)),)
    assert [spec.name for spec in session.outputs] == ["y", "z"]
    assert session.provider == "CPUExecutionProvider"
    assert session.threads == usable_cores()
    assert session.placement.nodes == {"CPUExecutionProvider": 2}
    assert session.placement.fallback_nodes == ()
    assert session.load_ms > 0
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    outputs = session.run({"x": x})
    np.testing.assert_array_equal(outputs["y"], x + 1)
    assert list(session.run({"x": x}, ["z"])) == ["z"]


def test_asked_threads_are_used(adder: bytes) -> None:
    session = open_session(adder, RuntimeOptions(threads=1))
    assert (session.threads.count, session.threads.source) == (1, "requested")
    with pytest.raises(UsageError, match="at least 1"):
        open_session(adder, RuntimeOptions(threads=0))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "missing input x"),
        ({"X": np.zeros((1, 3), np.float32)}, r"unknown input X \(did you mean x\?\)"),
        ({"x": np.zeros((1, 3))}, r"dtype float64, the model takes float32: use \.astype\('float32'\)"),
        ({"x": np.zeros((1, 3), ">f4")}, "big-endian"),
        ({"x": np.zeros(3, np.float32)}, r"shape \(3,\), the model takes \(batch, 3\)"),
        ({"x": np.zeros((1, 4), np.float32)}, r"shape \(1, 4\)"),
        ({"x": [[1.0, 2.0, 3.0]]}, "a list, not a numpy array"),
    ],
)
def test_wrong_feeds(adder: bytes, feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_session(adder).run(feeds)


def test_unknown_output(adder: bytes) -> None:
    with pytest.raises(InputError, match="no output w; it has y, z"):
        open_session(adder).run({"x": np.zeros((1, 3), np.float32)}, ["w"])


def test_a_non_contiguous_feed_is_read_right(adder: bytes) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4).T[:, ::1]
    np.testing.assert_array_equal(open_session(adder).run({"x": x})["z"], -x)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="x86-64 Linux only")
def test_denormals_are_zero_for_the_model_alone(build: Any, threads: int) -> None:
    """Products with them are slow on Intel's CPUs; the caller's own numbers keep theirs."""
    node = helper.make_node("Mul", ["x", "y"], ["z"])
    model = build([node], {"x": (FLOAT, [None]), "y": (FLOAT, [1])}, {"z": (FLOAT, [None])})
    session = open_session(model.SerializeToString(), RuntimeOptions(threads=threads))
    x = np.full(100_000, 1e-40, np.float32)
    x[0] = 1e-37
    z = session.run({"x": x, "y": np.ones(1, np.float32)})["z"]
    assert z[0] == np.float32(1e-37) and not z[1:].view(np.int32).any()
    assert (np.float32(1e-40) * np.ones(1, np.float32)).view(np.int32)[0] != 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_types_beyond_numpy_pass_through(build: Any, dtype: str) -> None:
    code = {"bfloat16": TensorProto.BFLOAT16, "float8_e4m3fn": TensorProto.FLOAT8E4M3FN}[dtype]
    model = build(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["i"], ["j"])],
        {"x": (code, ["n", 2]), "i": (TensorProto.INT64, ["n"])},
        {"y": (code, ["n", 2]), "j": (TensorProto.INT64, ["n"])},
        opset=19,
        ir=9,
    )
    session = open_session(model.SerializeToString())
    assert session.inputs[0].dtype == dtype
    x = np.array([[1.5, -2.0], [0.25, 8.0], [0.0, -0.5]], dtype=getattr(ml_dtypes, dtype))
    outputs = session.run({"x": x, "i": np.arange(2)})
    assert outputs["y"].dtype == x.dtype
    np.testing.assert_array_equal(outputs["y"].astype(np.float32), x.astype(np.float32))
    np.testing.assert_array_equal(outputs["j"], [0, 1])
    with pytest.raises(InputError, match="the model takes"):
        session.run({"x": x.astype(np.float32), "i": np.arange(2)})


def test_strings(build: Any) -> None:
    text = (TensorProto.STRING, ["n"])
    session = open_session(
        build([helper.make_node("Identity", ["x"], ["y"])], {"x": text}, {"y": text}).SerializeToString()
    )
    assert session.run({"x": np.array(["a", "ß"], dtype=object)})["y"].tolist() == ["a", "ß"]
    with pytest.raises(InputError, match="takes strings"):
        session.run({"x": np.zeros(2)})


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_session(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="a directory, not an ONNX file"):
        open_session(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08"])
def test_corrupt_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx: it is no ONNX model"):
        open_session(file)


def test_truncated_file(tmp_path: Path, adder: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(adder[: len(adder) // 2])
    with pytest.raises(InputError):
        open_session(file)


def test_unknown_operator_is_named(build: Any) -> None:
    x, y = {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}
    model = build([helper.make_node("Frobnicate", ["x"], ["y"], "odd")], x, y)
    with pytest.raises(InputError, match=r"knows no operator Frobnicate.*'odd'"):
        open_session(model.SerializeToString())
    model = build([helper.make_node("Foo", ["x"], ["y"], "odd", domain="my.domain")], x, y)
    model.opset_import.append(helper.make_opsetid("my.domain", 1))
    with pytest.raises(InputError, match=r"knows no operator my\.domain:Foo"):
        open_session(model.SerializeToString())


def test_missing_and_truncated_external_data(tmp_path: Path, build: Any) -> None:
    weight = helper.make_tensor("w", FLOAT, [4], np.ones(4, np.float32).tobytes(), raw=True)
    model = build(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        {"x": (FLOAT, [4])},
        {"y": (FLOAT, [4])},
        initializers=[weight],
    )
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0
    )
    assert open_session(tmp_path / "m.onnx").run({"x": np.ones(4, np.float32)})["y"].tolist() == [2.0] * 4
    (tmp_path / "m.onnx.data").write_bytes(b"123")
    with pytest.raises(InputError, match="weights of 'w' are not in the external data file"):
        open_session(tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(InputError, match="weights of 'w' are not in the external data file"):
        open_session(tmp_path / "m.onnx")


def test_a_failing_node_is_named(build: Any) -> None:
    model = build(
        [helper.make_node("Reshape", ["x", "s"], ["y"], "fold")],
        {"x": (FLOAT, ["n"]), "s": (TensorProto.INT64, [2])},
        {"y": (FLOAT, ["a", "b"])},
    )
    with pytest.raises(InputError, match=r"Reshape node 'fold' failed: .*cannot be reshaped") as caught:
        open_session(model.SerializeToString()).run({"x": np.zeros(5, np.float32), "s": np.array([2, 2])})
    assert "onnxruntime_src" not in str(caught.value)


def test_out_of_memory_is_a_resource_error(build: Any) -> None:
    model = build(
        [helper.make_node("Expand", ["x", "s"], ["y"], "grow")],
        {"x": (FLOAT, [1]), "s": (TensorProto.INT64, [2])},
        {"y": (FLOAT, ["a", "b"])},
    )
    with pytest.raises(ResourceError, match="smaller batch"):
        open_session(model.SerializeToString()).run(
            {"x": np.zeros(1, np.float32), "s": np.array([1 << 22, 1 << 22])}
        )


def test_the_ceiling_is_what_onnxruntime_takes(build: Any) -> None:
    ceiling = opset_ceiling()
    x, y = {"x": (FLOAT, [1])}, {"y": (FLOAT, [1])}
    node = [helper.make_node("Identity", ["x"], ["y"])]
    newest = build(node, x, y, opset=ceiling.opset, ir=ceiling.ir)
    assert open_session(newest.SerializeToString()).run({"x": np.ones(1, np.float32)})["y"] == 1
    with pytest.raises(InputError, match=f"opset {ceiling.opset + 1}, onnxruntime .* up to {ceiling.opset}:"):
        open_session(build(node, x, y, opset=ceiling.opset + 1, ir=ceiling.ir).SerializeToString())
    with pytest.raises(InputError, match=f"IR version {ceiling.ir + 1}, .* up to {ceiling.ir}:"):
        open_session(build(node, x, y, opset=18, ir=ceiling.ir + 1).SerializeToString())


def test_no_ceiling_when_the_environment_lifts_it() -> None:
    script = "from onnxkit.runtime import opset_ceiling as c\ntry: c()\nexcept Exception as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"ALLOW_RELEASED_ONNX_OPSET_ONLY": "0", "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "because ALLOW_RELEASED_ONNX_OPSET_ONLY is set: unset it" in done.stdout


def test_provider_names() -> None:
    assert provider_name("cpu") == "CPUExecutionProvider"
    assert provider_name("cuda") == provider_name("CUDAExecutionProvider") == "CUDAExecutionProvider"
    assert provider_name("tensorrt") == "TensorrtExecutionProvider"
    with pytest.raises(UsageError, match=r"'cdua': did you mean cuda"):
        provider_name("cdua")
    with pytest.raises(UsageError, match=r"did you mean CUDAExecutionProvider"):
        provider_name("CUDAExecutionProvder")


@pytest.mark.parametrize(
    ("ep", "options", "message"),
    [
        ("cpu", {"device_id": "0"}, "has no options: remove --ep-option device_id=0"),
        ("cuda", {"devise_id": "0"}, "has no option 'devise_id': it has device_id"),
        ("cuda", {"device_id": "first"}, "device_id is a whole number"),
        ("cuda", {"user_compute_stream": "1"}, "has no option"),
    ],
)
def test_provider_options_are_checked(adder: bytes, ep: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_session(adder, RuntimeOptions(ep=ep, ep_options=options))


def _cuda_works() -> bool:
    return not cuda_module.examine_cuda().problem


@pytest.mark.skipif(_cuda_works(), reason="CUDA works here")
def test_cuda_without_cuda_is_an_error_with_a_way_out(adder: bytes, capfd: Any) -> None:
    with pytest.raises(EnvironmentProblem, match=r"CUDAExecutionProvider cannot be used: .*--ep cpu"):
        open_session(adder, RuntimeOptions(ep="cuda"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
def test_cuda(adder: bytes) -> None:
    session = open_session(adder, RuntimeOptions(ep="cuda"))
    assert session.provider == "CUDAExecutionProvider"
    np.testing.assert_array_equal(session.run({"x": np.ones((1, 3), np.float32)})["y"], [[2.0, 2.0, 2.0]])


def _state(**changes: Any) -> cuda_module.CudaState:
    healthy = {
        "wheels": {"onnxruntime-gpu": "1.31.1"},
        "provider_built_in": True,
        "cuda_version": "13.0",
        "found": (),
        "missing": (),
        "driver": "ok",
        "devices": 1,
    }
    return cuda_module.CudaState(**{**healthy, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"wheels": {"onnxruntime": "1", "onnxruntime-gpu": "1"}},
         "overwrite each other: pip uninstall -y onnxruntime onnxruntime-gpu && pip install"),
        ({"wheels": {"onnxruntime": "1"}, "provider_built_in": False}, "onnxruntime is built without CUDA"),
        ({"driver": "no NVIDIA driver (libcuda.so.1 not found)"}, "install NVIDIA's driver"),
        ({"missing": ("libcudnn.so.9",)},
         'libcudnn.so.9 cannot be loaded: pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1"'),
    ],
)  # fmt: skip
def test_the_reason_why_cuda_fails(changes: dict[str, Any], message: str) -> None:
    problem = _state(**changes).problem
    assert message in problem
    assert bool(message) == bool(problem)


def test_a_provider_that_silently_falls_back_is_an_error(
    adder: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime lists CUDA and then runs on the CPU: trust only the session's own list."""
    ort = import_onnxruntime()
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort,
        "InferenceSession",
        lambda model, options, **_: real(model, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(EnvironmentProblem):
        open_session(adder, RuntimeOptions(ep="tensorrt"))


def test_profiling(tmp_path: Path, adder: bytes) -> None:
    session = open_session(adder, RuntimeOptions(profile_prefix=tmp_path / "trace"))
    session.run({"x": np.zeros((1, 3), np.float32)})
    trace = session.end_profiling()
    assert trace.parent == tmp_path and trace.is_file()
    with pytest.raises(UsageError, match="without profile_prefix"):
        open_session(adder).end_profiling()
