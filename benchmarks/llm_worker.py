"""One language model under one runtime, timed on command: the process behind a row of `benchmarks/llm.py`.

    PYTHON llm_worker.py KIND PATH THREADS

Runs in each runtime's own environment, so it imports nothing of onnxkit unless KIND asks for it. One JSON
object a line comes from stdin, one answer a line goes to stdout: {"do": "open"}, {"do": "prefill",
"tokens": 512}, {"do": "decode", "depth": 512, "steps": 32}, {"do": "usage"}. Every runtime picks greedily,
and every decoding step counts the choice of the token.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Protocol

os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import numpy as np

CONTEXT = 2048
LOWEST_ID, HIGHEST_ID = 10, 40_000


class Runtime(Protocol):
    """What a runtime must be able to do; a state is what it keeps of a prompt."""

    def start(self, ids: list[int]) -> Any:
        """Return an empty state for a prompt of this length, without computing anything."""

    def prefill(self, state: Any, ids: list[int]) -> None:
        """Compute the prompt and choose the first token."""

    def decode(self, state: Any, ids: list[int], steps: int) -> float:
        """Seconds a step, of `steps` steps after the prompt `ids` that was computed before."""


class Stepwise:
    """For runtimes that are stepped from outside."""

    def decode(self, state: Any, ids: list[int], steps: int) -> float:
        """As the protocol says."""
        self.rewind(state, len(ids))
        started = time.perf_counter()
        for _ in range(steps):
            self.step(state)
        return (time.perf_counter() - started) / steps

    def rewind(self, state: Any, depth: int) -> None:
        """Forget what follows the first `depth` tokens, and make the next step ready."""
        raise AssertionError

    def step(self, state: Any) -> None:
        """Compute one token and choose the next."""
        raise AssertionError


class Genai(Stepwise):
    """onnxruntime-genai's Generator."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime_genai as genai

        self._genai = genai
        config = genai.Config(path)
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = genai.Model(config)

    def start(self, ids: list[int]) -> Any:
        """A generator, whose cache holds the whole context."""
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=CONTEXT, min_length=CONTEXT, do_sample=False)
        return self._genai.Generator(self._model, params)

    def prefill(self, state: Any, ids: list[int]) -> None:
        """As the protocol says."""
        state.append_tokens(np.array(ids, dtype=np.int32))
        state.generate_next_token()

    def rewind(self, state: Any, depth: int) -> None:
        """As the protocol says."""
        state.rewind_to(depth)
        state.append_tokens(np.array([LOWEST_ID], dtype=np.int32))
        state.generate_next_token()

    def step(self, state: Any) -> None:
        """As the protocol says."""
        state.generate_next_token()


class LlamaCpp(Stepwise):
    """llama.cpp through the plain C interface, so that Python costs it nothing."""

    def __init__(self, path: str, threads: int) -> None:
        import llama_cpp

        self._api = api = llama_cpp
        self._log = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self._log, ctypes.c_void_p(0))
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        self._threads = threads
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._next: dict[int, int] = {}

    def start(self, ids: list[int]) -> Any:
        """A context of its own."""
        params = self._api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, CONTEXT, 512
        params.n_threads = params.n_threads_batch = self._threads
        return self._api.llama_init_from_model(self._model, params)

    def prefill(self, state: Any, ids: list[int]) -> None:
        """As the protocol says."""
        self._decode(state, ids)

    def rewind(self, state: Any, depth: int) -> None:
        """As the protocol says."""
        self._api.llama_memory_seq_rm(self._api.llama_get_memory(state), 0, depth, -1)
        self._decode(state, [LOWEST_ID])

    def step(self, state: Any) -> None:
        """As the protocol says."""
        self._decode(state, [self._next[id(state)]])

    def _decode(self, state: Any, ids: list[int]) -> None:
        array = (self._api.llama_token * len(ids))(*ids)
        if self._api.llama_decode(state, self._api.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")
        logits = self._api.llama_get_logits_ith(state, -1)
        self._next[id(state)] = int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._vocabulary,))))


class Optimum(Stepwise):
    """optimum-onnx's ORTModelForCausalLM, called step by step without `generate`'s own work."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM

        torch.set_num_threads(threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._torch = torch
        self._model = ORTModelForCausalLM.from_pretrained(path, session_options=options)

    def start(self, ids: list[int]) -> Any:
        """Past keys and values by depth; `last` is what the next step reads."""
        return {"depth": 0, "past": None, "next": None, "kept": {}}

    def prefill(self, state: Any, ids: list[int]) -> None:
        """As the protocol says."""
        self._forward(state, self._torch.tensor([ids]))
        state["kept"] = dict(state)

    def rewind(self, state: Any, depth: int) -> None:
        """As the protocol says: the prompt's own tensors are read again."""
        kept = state["kept"]
        state.update(depth=kept["depth"], past=kept["past"])
        self._forward(state, self._torch.tensor([[LOWEST_ID]]))

    def step(self, state: Any) -> None:
        """As the protocol says."""
        self._forward(state, state["next"])

    def _forward(self, state: Any, ids: Any) -> None:
        depth = state["depth"] + ids.shape[1]
        out = self._model(
            input_ids=ids,
            attention_mask=self._torch.ones((1, depth), dtype=self._torch.int64),
            position_ids=self._torch.arange(state["depth"], depth)[None],
            past_key_values=state["past"],
            use_cache=True,
        )
        state.update(depth=depth, past=out.past_key_values, next=out.logits[:, -1:].argmax(-1))


class Onnxkit:
    """Our engine, as `run` uses it; a state is a conversation that is asked for the same prompt again."""

    def __init__(self, path: str, threads: int) -> None:
        from onnxkit.artifact import ModelDir
        from onnxkit.generate import Engine
        from onnxkit.runtime import RuntimeOptions

        self._engine = Engine.open(ModelDir.open(Path(path)), RuntimeOptions(threads=threads))
        self._engine.decoder.pages.now()  # what a run does by itself after about a second

    def start(self, ids: list[int]) -> Any:
        """An empty conversation."""
        return self._engine.conversation()

    def prefill(self, state: Any, ids: list[int]) -> None:
        """As the protocol says."""
        state.generate(self._request(ids, 1))

    def decode(self, state: Any, ids: list[int], steps: int) -> float:
        """As the protocol says; the engine's own clock, from the first token on."""
        stats = state.generate(self._request([*ids, LOWEST_ID], steps + 1)).stats
        return float(stats.seconds - stats.first_token_s) / steps

    def _request(self, ids: list[int], tokens: int) -> Any:
        from onnxkit.generate import Request
        from onnxkit.generate.options import GenerationOptions

        return Request(prompt=np.array(ids), options=GenerationOptions(max_new_tokens=tokens))


KINDS = {"genai": Genai, "llama.cpp": LlamaCpp, "optimum": Optimum, "onnxkit": Onnxkit}
IMPORTS = {
    "genai": "onnxruntime_genai",
    "llama.cpp": "llama_cpp",
    "optimum": "optimum.onnxruntime",
    "onnxkit": "onnxkit.generate.engine",
}


class Worker:
    """Answers the commands; keeps one state for each depth."""

    def __init__(self, kind: str, path: str, threads: int) -> None:
        self._kind, self._path, self._threads = kind, path, threads
        self._runtime: Runtime
        self._states: dict[int, Any] = {}

    def open(self) -> dict[str, Any]:
        """Load the model; `seconds` holds no import."""
        importlib.import_module(IMPORTS[self._kind])
        started = time.perf_counter()
        self._runtime = KINDS[self._kind](self._path, self._threads)
        return {"seconds": time.perf_counter() - started}

    def prefill(self, tokens: int) -> dict[str, Any]:
        """Time one prompt in a new state."""
        ids = prompt(tokens)
        state = self._runtime.start(ids)
        started = time.perf_counter()
        self._runtime.prefill(state, ids)
        return {"seconds": time.perf_counter() - started}

    def decode(self, depth: int, steps: int) -> dict[str, Any]:
        """Time steps after a prompt of `depth` tokens; the prompt is computed once and for all."""
        ids = prompt(depth)
        if depth not in self._states:
            self._states[depth] = self._runtime.start(ids)
            self._runtime.prefill(self._states[depth], ids)
        return {"seconds": self._runtime.decode(self._states[depth], ids, steps)}

    def usage(self) -> dict[str, Any]:
        """The peak memory of this process, Python and imports included, and its CPU seconds."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"peak_bytes": peak, "cpu_seconds": time.process_time()}


def prompt(tokens: int) -> list[int]:
    """The same random ids for every runtime."""
    return np.random.default_rng(tokens).integers(LOWEST_ID, HIGHEST_ID, tokens).tolist()


def main() -> None:
    """Answer until stdin ends; what libraries print goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    for line in sys.stdin:
        command = json.loads(line)
        reply = getattr(worker, command.pop("do"))(**command)
        channel.write(json.dumps(reply) + "\n")
        channel.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
