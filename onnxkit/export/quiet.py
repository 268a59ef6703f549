"""Libraries that talk or leave things behind: kept off the user's terminal and out of the file system."""

from __future__ import annotations

import contextlib
import functools
import logging as python_logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "torch._subclasses", "onnxscript", "onnx_ir", "optimum")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block next to nothing is logged: a level's error, the export says itself."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    transformers_logging: Any = logging  # not annotated

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    gguf: Any = modeling_gguf_pytorch_utils
    bar = gguf.tqdm  # not transformers' own
    levels = {name: python_logging.getLogger(name).level for name in _LOGGERS}
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    gguf.tqdm = functools.partial(bar, disable=True)
    for name in _LOGGERS:
        python_logging.getLogger(name).setLevel(python_logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gguf.tqdm = bar
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        for name, level in levels.items():
            python_logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def no_compiler_cache() -> Iterator[None]:
    """Within the block, the cache folder of torch's compiler, which tracing makes, too, is a scratch one."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory(prefix="onnxkit-") as scratch:
        os.environ[variable] = before or scratch
        try:
            yield
        finally:
            if before is None:
                del os.environ[variable]
