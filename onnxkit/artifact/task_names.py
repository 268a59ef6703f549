"""Task names: transformers' pipeline names, and what else people call them."""

from __future__ import annotations

import re

from onnxkit.errors import UsageError, suggestion

RAW = "raw"
"""The task of a model that onnxkit only feeds with tensors."""

TASKS: tuple[str, ...] = (
    "audio-classification",
    "automatic-speech-recognition",
    "depth-estimation",
    "feature-extraction",
    "fill-mask",
    "image-classification",
    "image-feature-extraction",
    "image-segmentation",
    "image-to-text",
    "object-detection",
    "question-answering",
    "sentence-similarity",
    "summarization",
    "text-classification",
    "text-generation",
    "text2text-generation",
    "token-classification",
    "translation",
    "zero-shot-image-classification",
)

# optimum's and older transformers' names.
_SYNONYMS = {
    "audio-ctc": "automatic-speech-recognition",
    "causal-lm": "text-generation",
    "default": "feature-extraction",
    "embedding": "sentence-similarity",
    "embeddings": "sentence-similarity",
    "image-features": "image-feature-extraction",
    "masked-lm": "fill-mask",
    "ner": "token-classification",
    "semantic-segmentation": "image-segmentation",
    "sentence-embedding": "sentence-similarity",
    "sentence-embeddings": "sentence-similarity",
    "sentence-transformers": "sentence-similarity",
    "sentiment-analysis": "text-classification",
    "seq2seq-lm": "text2text-generation",
    "sequence-classification": "text-classification",
    "speech2seq-lm": "automatic-speech-recognition",
    "text-ranking": "text-classification",
    "vision2seq-lm": "image-to-text",
}

# The end of a class name, longest first where one ends with another.
_HEADS = (
    ("ForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnsweringSimple", "question-answering"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "fill-mask"),
    ("ForPreTraining", "fill-mask"),
    ("ForCausalLM", "text-generation"),
    ("WithLMHeadModel", "fill-mask"),
    ("LMHeadModel", "text-generation"),
    ("ForConditionalGeneration", "text2text-generation"),
    ("ForImageClassificationWithTeacher", "image-classification"),
    ("ForImageClassification", "image-classification"),
    ("ForSemanticSegmentation", "image-segmentation"),
    ("ForObjectDetection", "object-detection"),
    ("ForDepthEstimation", "depth-estimation"),
    ("ForAudioClassification", "audio-classification"),
    ("ForCTC", "automatic-speech-recognition"),
    ("ForSpeechSeq2Seq", "automatic-speech-recognition"),
    ("EncoderModel", "feature-extraction"),
    ("ModelWithProjection", "feature-extraction"),
    ("Model", "feature-extraction"),
)
_VISION = (
    "BeitModel", "CLIPVision", "ConvNext", "Data2VecVision", "DeiT", "Dinov2", "DINOv3", "Hiera",
    "LevitModel", "MobileNet", "MobileViT", "PoolFormer", "PvtModel", "PvtV2", "ResNet", "RegNet",
    "SegformerModel", "SiglipVision", "Siglip2Vision", "SwinModel", "Swinv2", "ViT",
    "Yolos", "EfficientNet", "FocalNet",
)  # fmt: skip
_SPEECH = ("Whisper", "Speech2Text", "Moonshine", "SpeechEncoderDecoder")
_AUDIO_ENCODERS = ("Wav2Vec2", "Hubert", "WavLM", "UniSpeech", "SEW", "Data2VecAudio", "Whisper", "AST")
_CAPTIONERS = ("Blip", "Pix2Struct", "VisionEncoderDecoder", "Kosmos", "Git", "Donut", "Florence")
_TRANSLATORS = ("Marian", "M2M100", "NllbMoe", "FSMT")
_BY_NAME = {
    "BertGenerationEncoder": "feature-extraction",
    "BertGenerationDecoder": "text-generation",
    "EncoderDecoderModel": "text2text-generation",
    "SpeechEncoderDecoderModel": "automatic-speech-recognition",
    "VisionEncoderDecoderModel": "image-to-text",
}
_TWO_TOWERS = re.compile(r"^(Chinese)?(CLIP|Siglip2?|AltCLIP)Model$")


def normalize_task(name: str) -> str:
    """Return the exact task name for `name`, which may be a synonym or carry `-with-past`.

    Raises:
        UsageError: no such task; the message offers the nearest names.
    """
    key = name.strip().lower().replace("_", "-")
    for suffix in ("-with-past", "-no-past"):
        key = key.removesuffix(suffix)
    if key.startswith("translation-") and "-to-" in key:
        return "translation"
    key = _SYNONYMS.get(key, key)
    if key in TASKS or key == RAW:
        return key
    raise UsageError(f"unknown task {name!r}; {suggestion(key, [*TASKS, RAW, *_SYNONYMS])}")


def task_of_architecture(architecture: str) -> str | None:
    """Return the task that a transformers class serves, by its name, or None when it tells nothing.

    >>> task_of_architecture("BertForSequenceClassification")
    'text-classification'
    """
    name = architecture.removeprefix("TF").removeprefix("Flax")
    if _TWO_TOWERS.match(name):
        return "zero-shot-image-classification"
    task = next((task for head, task in _HEADS if name.endswith(head)), None)
    if task == "feature-extraction" and name.startswith(_TRANSLATORS):
        return "translation"  # MarianMTModel
    return _refined(name, task)


def _refined(name: str, task: str | None) -> str | None:
    """Correct what the end of the name says by what its beginning says."""
    if task == "text2text-generation":
        families = (
            (_SPEECH, "automatic-speech-recognition"),
            (_CAPTIONERS, "image-to-text"),
            (_TRANSLATORS, "translation"),
        )
        return next((other for family, other in families if name.startswith(family)), task)
    if task == "text-classification" and name.startswith(_AUDIO_ENCODERS):
        return "audio-classification"
    if name.endswith("ForPreTraining") and name.startswith(_AUDIO_ENCODERS):
        task = "feature-extraction"
    if (task == "feature-extraction" or name.endswith("ForPreTraining")) and name.startswith(_VISION):
        return "image-feature-extraction"
    return _BY_NAME.get(name, task)
