"""What stands beside a tiny checkpoint's weights: its tokenizer, image processor or feature extractor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.tiny_models import TinyModel


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _save_tokenizer(directory: Path, tiny: TinyModel) -> None:
    """A WordPiece tokenizer over letters and digits; [PAD] stands at the config's `pad_token_id`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words.insert(int(tiny.settings.get("pad_token_id", 0)), "[PAD]")
    words += [*pieces, *(f"##{piece}" for piece in pieces)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=int(tiny.settings.get("max_position_embeddings", 64)) - 2,
    )
    fast.save_pretrained(directory)


def _save_image_processor(directory: Path, tiny: TinyModel) -> None:
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    write_json(directory / "preprocessor_config.json", settings)


def _save_feature_extractor(directory: Path, tiny: TinyModel) -> None:
    family = next((name for name in _EXTRACTORS if tiny.name.startswith(name)), "")
    settings = {"sampling_rate": 16000, "return_attention_mask": True, **_EXTRACTORS[family]}
    write_json(directory / "preprocessor_config.json", settings)


_EXTRACTORS: Mapping[str, Mapping[str, Any]] = {
    "whisper": {
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 16, "chunk_length": 1,
        "return_attention_mask": False,
    },
    "moonshine": {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "do_normalize": False
    },
    "speech2text": {
        "feature_extractor_type": "Speech2TextFeatureExtractor", "feature_size": 20, "num_mel_bins": 20
    },
    "": {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1},
}  # fmt: skip
"""What preprocessor_config.json says, by the beginning of a tiny model's name."""


PROCESSORS: Mapping[str, Callable[[Path, TinyModel], None]] = {
    "text": _save_tokenizer,
    "image": _save_image_processor,
    "audio": _save_feature_extractor,
}
"""Kind of model → what writes it."""
