"""Tasks on models whose outputs are those of another one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxkit import Predictor
from onnxkit.errors import InputError
from tests.model_dirs import VOCABULARY, text_dir


@pytest.mark.parametrize("pooled", [True, False])
def test_logits_of_another_task_are_refused(tmp_path: Path, pooled: bool) -> None:
    """Logits of texts have two axes, those of tokens three."""
    folder = text_dir(
        tmp_path, "text-classification", np.ones((len(VOCABULARY), 3), np.float32), pooled=pooled
    )
    fitting, others = ["text-classification"], ["token-classification", "fill-mask"]
    for task in others if pooled else fitting:
        with pytest.raises(InputError, match=f"{task} needs logits of . axes.*name its own task with --task"):
            Predictor(folder, task=task)
    for task in fitting if pooled else others:
        assert Predictor(folder, task=task).task.name == task
