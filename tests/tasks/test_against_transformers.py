"""Pre- and post-processing against transformers: its tokenizers, image processors and pipelines.

The only file of these tests that imports transformers (and torch), once.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from onnxkit import Predictor
from onnxkit.artifact import ModelDir
from onnxkit.tasks import task_for
from onnxkit.tasks.image_processor import ImageProcessor
from onnxkit.tasks.image_settings import DEFAULTS, parse_settings
from tests.model_dirs import VOCABULARY, save_tokenizer, table, text_dir

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

TRICKY = [
    "Hello, world!",
    "",
    " ",
    "  leading and trailing\t\n spaces  ",
    "naïve café — ÀÉÎÕÜ ß İstanbul ﬁn",
    "日本語と中文字符 mixed with English",
    "العربية עברית हिन्दी ไทย",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 and ‮rtl‬ marks",
    "zero\u200bwidth\u00a0nbsp\u00adsoft \ufeffbom",
    "[CLS] literal [MASK] specials [SEP] </s> <mask> <pad>",
    "combining e\u0301 a\u0308 and \u1e9b\u0323",
    "x" * 300,
    "1234567890 3.14159 $1,000.00 50% #hash @user http://x.y/z?a=b&c",
    "\x00control\x07chars\x7f",
    "the cat sat on the mat " * 20,
]
CORPUS = [
    *TRICKY,
    *["the quick brown fox jumps over the lazy dog", "Größenwahn über alles", "中文 日本"] * 20,
]


def word_pieces() -> dict[str, int]:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return {"vocab": tokenizer.get_vocab()}


def byte_pairs() -> dict[str, object]:
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return {"vocab": state["vocab"], "merges": [tuple(pair) for pair in state["merges"]]}


def unigrams() -> Tokenizer:
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def pieces() -> dict[str, object]:
    vocabulary = json.loads(unigrams().to_str())["model"]["vocab"]
    return {"vocab": [tuple(entry) for entry in vocabulary]}


def left_sided() -> object:
    """A generic class whose settings are all of the other kind: left, and a mask that eats its space."""
    tokenizer = unigrams()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        mask_token=transformers.AddedToken("<mask>", lstrip=True),
        unk_token="<unk>",
        padding_side="left",
        truncation_side="left",
        model_max_length=24,
    )


def of_class(name: str, make, **settings):
    return lambda: getattr(transformers, name)(**make(), model_max_length=24, **settings)


TOKENIZERS = {
    "bert-cased": of_class("BertTokenizer", word_pieces, do_lower_case=False),
    "bert-uncased": of_class("BertTokenizer", word_pieces),
    "distilbert": of_class("DistilBertTokenizer", word_pieces),
    "mpnet": of_class("MPNetTokenizer", word_pieces),
    "roberta": of_class("RobertaTokenizer", byte_pairs),
    "deberta": of_class("DebertaTokenizer", byte_pairs),
    "clip": of_class("CLIPTokenizer", byte_pairs),
    "xlm-roberta": of_class("XLMRobertaTokenizer", pieces),
    "deberta-v2": of_class("DebertaV2Tokenizer", pieces),
    "camembert": of_class("CamembertTokenizer", pieces),
    "left-sided": left_sided,
}


@pytest.fixture(params=TOKENIZERS)
def pair(request, tmp_path):
    """Return (our task, transformers' tokenizer) of one directory."""
    folder = text_dir(
        tmp_path, "feature-extraction", table(2), outputs=["last_hidden_state"],
        inputs=["input_ids", "attention_mask", "token_type_ids"],
    )  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    TOKENIZERS[request.param]().save_pretrained(folder)
    return task_for(ModelDir.open(folder)), transformers.AutoTokenizer.from_pretrained(folder)


def assert_same(feeds, theirs):
    for name, array in feeds.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_texts_become_the_same_ids(pair):
    task, tokenizer = pair
    for text in TRICKY:
        feeds = task.collate([task.encode({"text": text})])
        theirs = tokenizer([text], truncation=True, return_token_type_ids=True, return_tensors="np")
        assert_same(feeds, theirs)


def test_pairs_and_padding_are_the_same(pair):
    task, tokenizer = pair
    pairs = [(first, second) for first in TRICKY for second in TRICKY[::4]]
    for start in range(0, len(pairs), 5):
        batch = pairs[start : start + 5]
        groups = task.rows([{"text": first, "text_pair": second} for first, second in batch])
        feeds = task.collate([rows[0] for rows in groups])
        first, second = map(list, zip(*batch, strict=True))
        theirs = tokenizer(
            first, second, truncation=True, padding=True, return_token_type_ids=True, return_tensors="np"
        )
        assert_same(feeds, theirs)


def test_any_characters_become_the_same_ids(pair):
    """Random code points of every plane, seeded."""
    task, tokenizer = pair
    generator = np.random.default_rng(0)
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000)]
    for _ in range(60):
        chosen = [ranges[index] for index in generator.integers(0, len(ranges), 12)]
        text = "".join(chr(generator.integers(low, high)) for low, high in chosen)
        ours = task.encode({"text": text}).features["input_ids"]
        assert ours.tolist() == tokenizer(text, truncation=True)["input_ids"], repr(text)


def test_settings_overrule_the_normalizer_of_the_file(tmp_path):
    """transformers rebuilds BERT's normalizer from tokenizer_config.json; the file here lower-cases."""
    folder = text_dir(
        tmp_path, "feature-extraction", table(2), outputs=["last_hidden_state"],
        tokenizer={"do_lower_case": False, "strip_accents": True},
    )  # fmt: skip
    ours = task_for(ModelDir.open(folder)).encode({"text": "The CAT é sat"}).features["input_ids"]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)("The CAT é sat")["input_ids"]
    assert ours.tolist() == theirs


def test_special_tokens_of_the_settings_are_special(tmp_path):
    save_tokenizer(tmp_path)
    text_dir(tmp_path, "fill-mask", table(len(VOCABULARY)))
    ours = task_for(ModelDir.open(tmp_path)).encode({"text": "the [MASK] sat"}).features["input_ids"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)("the [MASK] sat")["input_ids"]
    assert ours.tolist() == theirs


def pictures() -> list[Image.Image]:
    """Return images of several sizes and modes; noise shows every difference in a filter."""
    generator = np.random.default_rng(0)
    sizes = [(64, 48), (48, 64), (33, 33), (7, 90), (300, 200), (224, 224), (256, 257)]
    return [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROCESSORS = [
    {"image_processor_type": "ViTImageProcessor"},
    {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 3, "image_mean": [0.1, 0.2, 0.3]},
    {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 30, "longest_edge": 40}},
    {"image_processor_type": "ViTImageProcessor", "size": {"max_height": 40, "max_width": 30}},
    {"image_processor_type": "ViTImageProcessor", "do_resize": False, "do_normalize": False},
    {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "size": {"height": 9, "width": 11}},
    {
        "feature_extractor_type": "ViTFeatureExtractor",
        "size": 16,
        "image_std": [1, 1, 1],
        "rescale_factor": 0.01,
    },
    {"image_processor_type": "ViTImageProcessor", "do_center_crop": True, "crop_size": 20, "size": [31, 17]},
    {"image_processor_type": "CLIPImageProcessor"},
    {"image_processor_type": "CLIPImageProcessor", "size": 40, "crop_size": 33},
    {"image_processor_type": "CLIPImageProcessor", "use_square_size": True},
    {"image_processor_type": "CLIPImageProcessor", "do_resize": False, "crop_size": 65},
    {"image_processor_type": "ChineseCLIPImageProcessor"},
    {"image_processor_type": "ConvNextImageProcessor"},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 50}, "crop_pct": 0.9},
    {"image_processor_type": "DeiTImageProcessor"},
    {"image_processor_type": "DeiTImageProcessor", "size": 40, "crop_size": {"height": 30, "width": 20}},
    {"image_processor_type": "BeitImageProcessor"},
    {"image_processor_type": "BeitImageProcessor", "do_center_crop": True, "size": 99, "crop_size": 77},
    {"image_processor_type": "SegformerImageProcessor"},
    {"image_processor_type": "SegformerImageProcessor", "size": 40, "do_reduce_labels": True},
    {"image_processor_type": "SiglipImageProcessor"},
    {"image_processor_type": "SiglipImageProcessor", "size": {"height": 20, "width": 30}, "resample": 2},
    {"image_processor_type": "BitImageProcessor"},
    {"image_processor_type": "BlipImageProcessor"},
    {"image_processor_type": "PvtImageProcessor"},
    {"image_processor_type": "LevitImageProcessor"},
    {"image_processor_type": "PoolFormerImageProcessor"},
    {"image_processor_type": "PoolFormerImageProcessor", "size": {"height": 40, "width": 40}},
    {"image_processor_type": "MobileNetV1ImageProcessor"},
    {"image_processor_type": "MobileNetV2ImageProcessor", "size": 60, "crop_size": 50},
    {"image_processor_type": "MobileViTImageProcessor"},
    {"image_processor_type": "EfficientNetImageProcessor"},
    {
        "image_processor_type": "EfficientNetImageProcessor",
        "rescale_offset": True,
        "rescale_factor": 1 / 127.5,
    },
    {"image_processor_type": "EfficientNetImageProcessor", "include_top": False, "do_center_crop": True},
]


def theirs_of(folder: Path, config: dict):
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


@pytest.mark.parametrize("config", PROCESSORS, ids=lambda config: json.dumps(config)[25:70])
def test_pixel_values_are_the_same_bits(tmp_path, config):
    theirs = theirs_of(tmp_path, config)
    ours = ImageProcessor(parse_settings(config, tmp_path), 3)
    for image in pictures():
        expected = np.asarray(theirs(image)["pixel_values"][0])
        actual = ours(image)
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected, err_msg=str(image.size))


def test_dinov3_resizes_what_it_has_rescaled(tmp_path):
    """Its processor needs torchvision, which resizes by this function of torch."""
    config = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 20, "width": 30}}
    ours = ImageProcessor(parse_settings(config, tmp_path), 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_STD))
    for image in pictures():
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)[None] * (1 / 255)
        resized = torch.nn.functional.interpolate(pixels, (20, 30), mode="bilinear", antialias=True)
        expected = ((resized[0] - mean) / std).numpy()
        np.testing.assert_allclose(ours(image), expected, atol=1e-5, err_msg=str(image.size))


@pytest.mark.parametrize("kind", [kind for kind in DEFAULTS if kind != "DINOv3ViT"])
def test_what_save_pretrained_writes_is_read_back(tmp_path, kind):
    """Every field is written then, some of them null."""
    theirs_of(tmp_path, {"image_processor_type": f"{kind}ImageProcessor"}).save_pretrained(tmp_path / "saved")
    saved = tmp_path / "saved" / "preprocessor_config.json"
    config = json.loads(saved.read_text())
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved", backend="pil")
    ours = ImageProcessor(parse_settings(config, saved), 3)
    image = pictures()[4]
    np.testing.assert_array_equal(ours(image), theirs(image)["pixel_values"][0])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_other_modes_become_rgb_as_do_convert_rgb_has_it(tmp_path, mode):
    config = {"image_processor_type": "SiglipImageProcessor"}
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 4), dtype=np.uint8)).convert(
        mode
    )
    expected = np.asarray(theirs_of(tmp_path, config)(image)["pixel_values"][0])
    np.testing.assert_array_equal(ImageProcessor(parse_settings(config, tmp_path), 3)(image), expected)


def test_grey_images_where_the_model_has_one_channel(tmp_path):
    config = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.3],
        "image_std": [0.2],
        "size": 16,
    }
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30), dtype=np.uint8))
    expected = np.asarray(theirs_of(tmp_path, config)(image)["pixel_values"][0])
    np.testing.assert_array_equal(ImageProcessor(parse_settings(config, tmp_path), 1)(image), expected)


LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]
SENTENCES = [
    "Anna lives in New York.",
    "anna annaville berlins",
    "who is in paris, berlin? the zq",
    "a [UNK] b",
]


class LookUp(torch.nn.Module):
    """The graph of `token_graph`, for transformers' pipelines."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, input_ids, attention_mask=None, **others):
        return {"logits": self.values[input_ids]}


def pipeline_of(kind: str, folder: Path, values, **settings):
    """Return transformers' pipeline around the look-up table."""
    module = transformers.pipelines
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.BertConfig(
        id2label=dict(enumerate(LABELS)), vocab_size=len(VOCABULARY), hidden_size=8, num_hidden_layers=1,
        num_attention_heads=1, intermediate_size=8,
    )  # fmt: skip
    base = getattr(transformers, kind)(config)
    look_up = LookUp(values)
    base.forward = lambda *args, **kwargs: look_up(*args, **kwargs)
    classes = {
        "BertForTokenClassification": module.TokenClassificationPipeline,
        "BertForMaskedLM": module.FillMaskPipeline,
        "BertForSequenceClassification": module.TextClassificationPipeline,
    }
    return classes[kind](model=base, tokenizer=tokenizer, **settings)


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_entities_are_those_of_the_pipeline(tmp_path, strategy, seed):
    values = table(len(LABELS), seed)
    names = {str(index): name for index, name in enumerate(LABELS)}
    folder = text_dir(tmp_path, "token-classification", values, config={"id2label": names})
    pipeline = pipeline_of("BertForTokenClassification", folder, values, aggregation_strategy=strategy)
    for record, theirs in zip(
        Predictor(folder, aggregation=strategy)(SENTENCES), pipeline(SENTENCES), strict=True
    ):
        ours = [
            (e["label"], pytest.approx(e["score"], abs=1e-6), e["start"], e["end"])
            for e in record["entities"]
        ]
        key = "entity" if strategy == "none" else "entity_group"
        assert ours == [(e[key], float(e["score"]), e["start"], e["end"]) for e in theirs]


def test_entities_of_windows_are_those_of_the_pipeline(tmp_path):
    values = table(len(LABELS), 3)
    names = {str(index): name for index, name in enumerate(LABELS)}
    folder = text_dir(
        tmp_path,
        "token-classification",
        values,
        config={"id2label": names},
        tokenizer={"model_max_length": 12},
    )
    pipeline = pipeline_of(
        "BertForTokenClassification", folder, values, aggregation_strategy="first", stride=4
    )
    text = "anna lives in new york, who is in paris. the good cat sat on a mat in berlin"
    [record] = Predictor(folder, aggregation="first", stride=4)(text)
    ours = [
        (e["label"], pytest.approx(e["score"], abs=1e-6), e["start"], e["end"]) for e in record["entities"]
    ]
    assert ours == [(e["entity_group"], float(e["score"]), e["start"], e["end"]) for e in pipeline(text)]


@pytest.mark.parametrize("text", ["The [MASK] sat", "[MASK] sat on the [MASK]."])
def test_masks_are_filled_as_by_the_pipeline(tmp_path, text):
    values = table(len(VOCABULARY))
    folder = text_dir(tmp_path, "fill-mask", values)
    theirs = pipeline_of("BertForMaskedLM", folder, values)(text, top_k=4)
    theirs = theirs if isinstance(theirs[0], list) else [theirs]
    [record] = Predictor(folder, top_k=4)([text])
    for ours, expected in zip(record["tokens"], theirs, strict=True):
        assert [(one["token_id"], one["token"], one["text"]) for one in ours] == [
            (one["token"], one["token_str"], one["sequence"]) for one in expected
        ]
        assert [one["score"] for one in ours] == pytest.approx([one["score"] for one in expected], abs=1e-6)


def test_what_a_tokenizer_saves_is_read_back(tmp_path):
    """A directory that transformers saves whole: its own files and forms of special tokens."""
    save_tokenizer(tmp_path / "a")
    folder = text_dir(tmp_path / "b", "fill-mask", table(len(VOCABULARY)))
    transformers.AutoTokenizer.from_pretrained(tmp_path / "a").save_pretrained(folder)
    setup = task_for(ModelDir.open(folder)).setup
    assert setup.specials["mask_token"] == "[MASK]"
    assert (setup.model_max_length, setup.pad_id, setup.padding_side) == (32, 0, "right")
