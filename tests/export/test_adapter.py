from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from onnxkit.errors import EnvironmentProblem, InputError, UnsafeError
from onnxkit.export import ExportOptions, adapter, export_model
from onnxkit.export.checkpoint import Access, open_checkpoint
from onnxkit.runtime import open_session

IDS = np.array([[5, 6, 7, 8], [9, 10, 11, 0]])
MASK = (IDS > 0).astype(np.int64)


def _base(directory: Path, width: int = 32, layers: int = 2) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64,
        vocab_size=64, max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def _lora(directory: Path, base: Path, **settings: Any) -> Path:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False, **settings)
    get_peft_model(model, config).save_pretrained(str(directory))
    return directory


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return _base(tmp_path / "base")


@pytest.fixture
def lora(tmp_path: Path, base: Path) -> Path:
    return _lora(tmp_path / "lora", base)


def test_the_graph_computes_the_model_with_its_adapter(base: Path, lora: Path, tmp_path: Path) -> None:
    with torch.no_grad():
        inputs = {"input_ids": torch.from_numpy(IDS), "attention_mask": torch.from_numpy(MASK)}
        plain = AutoModelForSequenceClassification.from_pretrained(base).eval()
        without = plain(**inputs).logits.numpy()
        expected = PeftModel.from_pretrained(plain, str(lora)).eval()(**inputs).logits.numpy()
    report = export_model(base, tmp_path / "out", ExportOptions(adapter=lora))
    assert report.verification is not None and report.verification.passed
    session = open_session(tmp_path / "out" / "model.onnx")
    known = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": np.zeros_like(IDS)}
    logits = session.run({spec.name: known[spec.name] for spec in session.inputs})["logits"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.abs(logits - without).max() > 1e-3


def test_the_digest_covers_base_and_adapter(base: Path, lora: Path, tmp_path: Path) -> None:
    plain = open_checkpoint(str(base), Access()).digest()
    tuned = open_checkpoint(str(base), Access(adapter=lora)).digest()
    other = _lora(tmp_path / "other", base, lora_alpha=3)
    assert len({plain, tuned, open_checkpoint(str(base), Access(adapter=other)).digest()}) == 3


@pytest.mark.parametrize("change", [{"width": 64}, {"layers": 1}])
def test_another_base_model_is_refused(lora: Path, tmp_path: Path, change: dict[str, int]) -> None:
    other = _base(tmp_path / "other", **change)
    with pytest.raises(InputError, match=r"does not fit the model.*base model"):
        export_model(other, tmp_path / "out", ExportOptions(adapter=lora))


def test_an_adapter_that_lacks_weights_is_refused(base: Path, lora: Path, tmp_path: Path) -> None:
    deeper = _base(tmp_path / "deeper", layers=3)
    with pytest.raises(InputError, match="missing: "):
        export_model(deeper, tmp_path / "out", ExportOptions(adapter=lora))


def test_a_prefix_cannot_be_merged(base: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base)
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    get_peft_model(model, config).save_pretrained(str(tmp_path / "prefix"))
    with pytest.raises(InputError, match=r"PREFIX_TUNING.*merged"):
        export_model(base, tmp_path / "out", ExportOptions(adapter=tmp_path / "prefix"))


def test_pickles_are_refused(base: Path, lora: Path) -> None:
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    with pytest.raises(UnsafeError, match="pickle"):
        open_checkpoint(str(base), Access(adapter=lora))
    open_checkpoint(str(base), Access(adapter=lora, allow_pickle=True))


def test_a_config_that_names_a_module_is_refused(base: Path, lora: Path) -> None:
    config = json.loads((lora / "adapter_config.json").read_text())
    config |= {"megatron_config": {}, "megatron_core": "antigravity"}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsafeError, match="module"):
        open_checkpoint(str(base), Access(adapter=lora))


def test_no_adapter_and_a_damaged_one(base: Path, lora: Path) -> None:
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        open_checkpoint(str(base), Access(adapter=base))
    file = lora / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="truncated"):
        open_checkpoint(str(base), Access(adapter=lora))
    file.unlink()
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors"):
        open_checkpoint(str(base), Access(adapter=lora))


def test_a_missing_package_says_what_to_install(
    base: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"onnxkit\[export,adapter\]"):
        open_checkpoint(str(base), Access(adapter=lora))


def test_the_adapters_own_tokenizer_wins(tmp_path: Path) -> None:
    for name, text in (("tokenizer.json", "{}"), ("chat_template.jinja", "x"), ("adapter_config.json", "{}")):
        (tmp_path / "lora").mkdir(exist_ok=True)
        (tmp_path / "lora" / name).write_text(text)
    (tmp_path / "out").mkdir()
    adapter.copy_adapter_tokenizer(tmp_path / "lora", tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"tokenizer.json", "chat_template.jinja"}
