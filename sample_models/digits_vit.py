"""``digits-vit``: which digit a small grey image shows, on the handwritten digits that scikit-learn ships."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from sample_models.common import (
    SEED,
    Card,
    Result,
    Row,
    Splits,
    chunks,
    conclude,
    fit,
    side,
)

LABELS = [str(digit) for digit in range(10)]
SIZE, PATCH = 32, 8
STEPS, BATCH, RATE = 2000, 64, 1e-3
CALIBRATION_SHARE, EVALUATION_SHARE = 0.07, 0.31

CARD = Card(
    name="digits-vit",
    summary="Image classification: which digit, 0 to 9, a handwritten one is.",
    pipeline_tag="image-classification",
    licence="cc-by-4.0",
    languages=(),
    data="""The 1797 images of 8 x 8 grey pixels that scikit-learn ships, which are the test part of the
        UCI "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (CC BY 4.0). An image
        goes to the training, calibration or evaluation set by the hash of its pixels. `calibration.jsonl`
        and `evaluation.jsonl` name PNG files beside them: `image` is the relative path, `label` the
        digit.""",
    architecture=f"""`ViTForImageClassification`, {SIZE} x {SIZE} RGB input in patches of {PATCH} x
        {PATCH}, 4 layers of width 64, 4 heads, feed-forward 128. The image processor (`ViTImageProcessor`
        with PIL's bilinear resize) converts to RGB and scales to -1 .. 1.""",
    training=f"""{STEPS} steps of batch {BATCH}, AdamW (peak rate {RATE:g}, cosine with warm-up); images
        are turned, scaled and moved at random.""",
    limits="""One upright bright digit that fills a dark image; nothing else was measured. Training and
        evaluation have digits of the same writers.""",
)


@cache
def images() -> tuple[Image.Image, ...]:
    """Return scikit-learn's digits as grey images; its 17 levels are spread over 0 to 255."""
    levels = load_digits().images
    return tuple(Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)) for image in levels)


def image_of(row: Row) -> Image.Image:
    """Return the image of a row of :func:`splits`, whose file name is its number in scikit-learn's set."""
    return images()[int(Path(row["image"]).stem)]


def splits() -> Splits:
    """Return the three sets; the training images are named but never stored."""
    sets = Splits([], [], [])
    for index, (image, digit) in enumerate(zip(images(), load_digits().target, strict=True)):
        where = side(image.tobytes(), CALIBRATION_SHARE, EVALUATION_SHARE)
        getattr(sets, where).append({"image": f"{where}/{index:04}.png", "label": LABELS[digit]})
    return sets


def _distort(pixels: Tensor) -> Tensor:
    """Turn, scale and move each image a little; the uncovered border is black (-1)."""
    count = len(pixels)
    angle = (torch.rand(count) - 0.5) * 0.5
    scale = 1 + (torch.rand(count) - 0.5) * 0.3
    shift = (torch.rand(count, 2, 1) - 0.5) * 0.3
    rows = [angle.cos() * scale, -angle.sin() * scale, angle.sin() * scale, angle.cos() * scale]
    matrix = torch.cat([torch.stack(rows, 1).view(count, 2, 2), shift], dim=2)
    grid = affine_grid(matrix, list(pixels.shape), align_corners=False)
    return grid_sample(pixels + 1, grid, align_corners=False) - 1


def _batches(pixels: Tensor, labels: Tensor) -> Iterator[dict[str, Tensor]]:
    """Yield distorted training batches for ever."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order = torch.randperm(len(pixels), generator=generator)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            yield {"pixel_values": _distort(pixels[chosen]), "labels": labels[chosen]}


def train(directory: Path, splits: Splits) -> Result:
    """Train the model, and store it, its processor and the images with the measured accuracy."""
    processor = ViTImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, do_convert_rgb=True, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    model = ViTForImageClassification(
        ViTConfig(
            image_size=SIZE,
            patch_size=PATCH,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
        )
    )
    pixels = processor([image_of(row) for row in splits.train], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([LABELS.index(row["label"]) for row in splits.train])
    seconds = fit(model, _batches(pixels, labels), STEPS, RATE)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    for row in (*splits.calibration, *splits.evaluation):
        path = directory / row["image"]
        path.parent.mkdir(exist_ok=True)
        image_of(row).save(path, optimize=True)
    return conclude(directory, model, splits, CARD, metric="accuracy", evaluate=evaluate, seconds=seconds)


def predict(directory: Path, rows: Sequence[Row]) -> list[str]:
    """Return the label that the stored model gives to each stored image."""
    processor = AutoImageProcessor.from_pretrained(directory)  # type: ignore[no-untyped-call]
    model = AutoModelForImageClassification.from_pretrained(directory)
    found: list[str] = []
    with torch.inference_mode():
        for batch in chunks(rows):
            inputs = processor([Image.open(directory / row["image"]) for row in batch], return_tensors="pt")
            found += [model.config.id2label[index] for index in model(**inputs).logits.argmax(-1).tolist()]
    return found


def evaluate(directory: Path, rows: Sequence[Row]) -> float:
    """Return the share of rows whose digit the stored model finds."""
    found = predict(directory, rows)
    return sum(label == row["label"] for label, row in zip(found, rows, strict=True)) / len(rows)
