from __future__ import annotations

import pytest

from onnxkit.artifact import TASKS, normalize_task, task_of_architecture
from onnxkit.artifact.infer import infer_task
from onnxkit.errors import UsageError
from onnxkit.runtime import TensorSpec


@pytest.mark.parametrize("task", TASKS)
def test_exact_names_stay(task: str) -> None:
    assert normalize_task(task) == task
    assert normalize_task(f"{task}-with-past") == task


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("default", "feature-extraction"),
        ("sequence-classification", "text-classification"),
        ("causal-lm-with-past", "text-generation"),
        ("seq2seq-lm-with-past", "text2text-generation"),
        ("masked-lm", "fill-mask"),
        ("ner", "token-classification"),
        ("Sentiment_Analysis", "text-classification"),
        ("translation_en_to_fr", "translation"),
        ("raw", "raw"),
    ],
)
def test_synonyms(name: str, task: str) -> None:
    assert normalize_task(name) == task


def test_an_unknown_name_offers_near_ones() -> None:
    with pytest.raises(UsageError, match="did you mean text-classification"):
        normalize_task("text-clasification")
    with pytest.raises(UsageError, match="known are"):
        normalize_task("zzzzzz")


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("RobertaForTokenClassification", "token-classification"),
        ("DistilBertForQuestionAnswering", "question-answering"),
        ("XLMRobertaForMaskedLM", "fill-mask"),
        ("BertModel", "feature-extraction"),
        ("ViTForImageClassification", "image-classification"),
        ("ViTModel", "image-feature-extraction"),
        ("Dinov2Model", "image-feature-extraction"),
        ("CLIPVisionModel", "image-feature-extraction"),
        ("CLIPVisionModelWithProjection", "image-feature-extraction"),
        ("CLIPTextModelWithProjection", "feature-extraction"),
        ("CLIPModel", "zero-shot-image-classification"),
        ("GPT2LMHeadModel", "text-generation"),
        ("LlamaForCausalLM", "text-generation"),
        ("T5ForConditionalGeneration", "text2text-generation"),
        ("T5EncoderModel", "feature-extraction"),
        ("MarianMTModel", "translation"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("WhisperForAudioClassification", "audio-classification"),
        ("Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("Wav2Vec2ForSequenceClassification", "audio-classification"),
        ("BlipForConditionalGeneration", "image-to-text"),
        ("VisionEncoderDecoderModel", "image-to-text"),
        ("DeiTForImageClassificationWithTeacher", "image-classification"),
        ("EncoderDecoderModel", "text2text-generation"),
        ("BertGenerationEncoder", "feature-extraction"),
        ("BertGenerationDecoder", "text-generation"),
        ("SpeechEncoderDecoderModel", "automatic-speech-recognition"),
        ("FlaubertWithLMHeadModel", "fill-mask"),
        ("XLMForQuestionAnsweringSimple", "question-answering"),
        ("BertForPreTraining", "fill-mask"),
        ("Wav2Vec2ForPreTraining", "feature-extraction"),
        ("ViTMAEForPreTraining", "image-feature-extraction"),
        ("SomethingElse", None),
    ],
)
def test_architectures(architecture: str, task: str | None) -> None:
    assert task_of_architecture(architecture) == task


def _specs(**shapes: tuple[int | str, ...]) -> list[TensorSpec]:
    return [TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()]


_TEXT = _specs(input_ids=("b", "s"), attention_mask=("b", "s"))
_HIDDEN = ("b", "s", 4)
_ARCH_MLM = {"architectures": ["BertForMaskedLM"]}
_ARCH_TOKENS = {"architectures": ["BertForTokenClassification"]}
_IMAGE = _specs(pixel_values=("b", 3, 224, 224))


@pytest.mark.parametrize(
    ("config", "inputs", "outputs", "task"),
    [
        ({}, _TEXT, _specs(last_hidden_state=("b", "s", 4)), "feature-extraction"),
        ({}, _TEXT, _specs(token_embeddings=_HIDDEN, sentence_embedding=("b", 4)), "sentence-similarity"),
        ({}, _TEXT, _specs(start_logits=("b", "s"), end_logits=("b", "s")), "question-answering"),
        ({}, _TEXT, _specs(logits=("b", 3)), "text-classification"),
        ({"vocab_size": 99}, _TEXT, _specs(logits=("b", "s", 99)), "fill-mask"),
        ({"vocab_size": 99}, _TEXT, _specs(logits=("b", "s", 9)), "token-classification"),
        ({"is_decoder": True}, _TEXT, _specs(logits=("b", "s", 9)), "text-generation"),
        ({}, _IMAGE, _specs(logits=("b", 10)), "image-classification"),
        ({}, _IMAGE, _specs(last_hidden_state=("b", "s", 4)), "image-feature-extraction"),
        ({}, _specs(input_values=("b", "t")), _specs(logits=("b", "t", 32)), "automatic-speech-recognition"),
        (_ARCH_MLM, _TEXT, _specs(last_hidden_state=_HIDDEN), "feature-extraction"),
        (_ARCH_TOKENS, _TEXT, _specs(logits=("b", "s", "n")), "token-classification"),
        ({"architectures": ["BertModel"]}, _TEXT, _specs(logits=("b", 2)), "text-classification"),
        ({"architectures": "BertModel"}, _TEXT, _specs(logits=("b", 2)), "text-classification"),
        ({}, _specs(x=("b",)), _specs(y=("b",)), "raw"),
        ({}, _specs(x=("b",)), _specs(logits=("b", 2)), "raw"),
        ({}, [], [], "raw"),
    ],
)  # fmt: skip
def test_inference(
    config: dict[str, object], inputs: list[TensorSpec], outputs: list[TensorSpec], task: str
) -> None:
    assert infer_task(config, inputs, outputs) == task
