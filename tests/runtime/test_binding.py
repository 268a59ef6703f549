"""IO binding: what is bound stays, nothing is copied, and an interruption ends the run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxkit.errors import InputError, ResourceError
from onnxkit.runtime import Buffer, Session, array_of, bits_dtype, open_session

FLOAT, INT64, BFLOAT16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BFLOAT16


def model(kind: int = FLOAT) -> bytes:
    """Return doubled = concat(x, x), with a count that has a default, and metadata."""
    graph = helper.make_graph(
        [
            helper.make_node("Concat", ["x", "x"], ["doubled"], axis=0),
            helper.make_node("Identity", ["count"], ["counted"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", kind, ["n"]), helper.make_tensor_value_info("count", INT64, [])],
        [
            helper.make_tensor_value_info("doubled", kind, ["m"]),
            helper.make_tensor_value_info("counted", INT64, []),
        ],
        [numpy_helper.from_array(np.array(3), "count")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, {"onnxkit.cache": "shared"})
    content: bytes = made.SerializeToString()
    return content


@pytest.fixture(scope="module")
def session() -> Session:
    return open_session(model())


def test_a_session_tells_its_metadata_and_what_has_a_default(session: Session) -> None:
    assert session.metadata == {"onnxkit.cache": "shared"}
    assert [spec.name for spec in session.inputs] == ["x"]
    assert [(spec.name, spec.shape) for spec in session.overridable] == [("count", ())]
    assert (session.device, session.device_id) == ("cpu", 0)


def test_bound_arrays_are_read_and_written_where_they_lie(session: Session) -> None:
    binding = session.binding()
    x, doubled, counted = np.ones(2, np.float32), np.zeros(4, np.float32), np.zeros((), np.int64)
    binding.feed("x", x)
    binding.fetch("doubled", doubled)
    binding.fetch("counted", counted)
    binding.run()
    assert doubled.tolist() == [1, 1, 1, 1] and counted == 3
    x[:] = 5
    count = np.array(8)
    binding.feed("count", count)
    binding.run()
    assert doubled.tolist() == [5, 5, 5, 5] and counted == 8


def test_outputs_become_inputs_and_outlive_later_runs(session: Session) -> None:
    binding = session.binding()
    binding.feed("x", np.array([1, 2], np.float32))
    held = []
    for _ in range(3):
        binding.fetch_value("doubled")
        binding.run()
        held.append(binding.values()["doubled"])
        binding.feed_value("x", held[-1])
    assert [array_of(value, "float32").tolist() for value in held] == [[1, 2] * 2, [1, 2] * 4, [1, 2] * 8]


def test_an_empty_input(session: Session) -> None:
    binding = session.binding()
    binding.feed("x", np.zeros(0, np.float32))
    binding.fetch_value("doubled")
    binding.run()
    assert array_of(binding.values()["doubled"], "float32").shape == (0,)


def test_a_part_of_a_buffer_is_bound(session: Session) -> None:
    source, target = Buffer(session, (3,), "float32"), Buffer(session, (9,), "float32")
    source.host()[:] = [1, 2, 3]
    binding = session.binding()
    binding.feed_buffer("x", source, (2,))
    binding.fetch_buffer("doubled", target, (4,))
    binding.run()
    assert target.host().tolist() == [1, 2, 1, 2, 0, 0, 0, 0, 0]
    target.put(np.arange(9, dtype=np.float32))
    assert target.host()[8] == 8


def test_bfloat16_travels_as_bits() -> None:
    binding = open_session(model(BFLOAT16)).binding()
    binding.feed("x", np.array([0x3FC0], np.uint16))
    for _ in range(2):
        binding.fetch_value("doubled")
        binding.run()
        value = binding.values()["doubled"]
        binding.feed_value("x", value)
    assert array_of(value, "bfloat16").tolist() == [0x3FC0] * 4
    assert bits_dtype("bfloat16") == "uint16" and bits_dtype("float16") == "float16"


def test_names_and_types_that_are_not_there(session: Session) -> None:
    binding = session.binding()
    with pytest.raises(InputError, match="no input y; it takes x, count"):
        binding.feed("y", np.zeros(1, np.float32))
    with pytest.raises(InputError, match="no output z; it has doubled, counted"):
        binding.fetch_value("z")
    with pytest.raises(InputError, match="str, which cannot be bound"):
        bits_dtype("str")


def test_a_buffer_of_the_wrong_size(session: Session) -> None:
    binding = session.binding()
    binding.feed("x", np.ones(2, np.float32))
    binding.fetch("doubled", np.zeros(3, np.float32))
    with pytest.raises(InputError, match="Concat"):
        binding.run()


def test_memory_that_is_not_there(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "zeros", refuse)
    with pytest.raises(ResourceError, match="no memory"):
        Buffer(session, (1 << 40,), "float32")


def test_an_interruption_ends_the_run(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    binding = session.binding()
    binding.feed("x", np.ones(2, np.float32))
    binding.fetch_value("doubled")
    made = binding._run_options

    def terminated() -> Any:
        options = made()
        options.terminate = True
        return options

    monkeypatch.setattr(binding, "_run_options", terminated)
    with pytest.raises(KeyboardInterrupt):
        binding.run()
