"""Image tasks: what is opened, how it is converted, what errors name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from onnxkit import Predictor
from onnxkit.artifact import ModelDir
from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import read_samples
from onnxkit.tasks import feeds, task_for
from onnxkit.tasks.image_processor import ImageProcessor, as_image, center_crop, output_size
from onnxkit.tasks.image_settings import DEFAULTS, parse_settings
from tests.heard import Heard
from tests.model_dirs import image_dir, save_graph


def red(size=(10, 12), mode="RGB"):
    return Image.new(mode, size, (255, 0, 0) if mode == "RGB" else (255, 0, 0, 255))


def test_paths_images_and_arrays_are_the_same(tmp_path):
    folder = image_dir(tmp_path / "model", labels=3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8))
    path = tmp_path / "x.png"
    image.save(path)
    array = np.asarray(image)
    items = [str(path), path, image, array, {"image": path}, np.moveaxis(array, -1, 0)]
    records = Predictor(folder)(items)
    assert all({**record, "index": 0} == records[0] for record in records)
    assert list(records[0]) == ["index", "label", "score", "scores"]


def test_labels_come_from_the_config(tmp_path):
    folder = image_dir(tmp_path)
    record, green = Predictor(folder)([red(), Image.new("RGB", (5, 5), (0, 255, 0))])
    assert (record["label"], green["label"]) == ("red", "green")
    assert record["score"] == pytest.approx(1 / (1 + np.exp(-8)), abs=1e-6)


def test_accuracy_on_a_folder_of_classes(tmp_path):
    predictor = Predictor(image_dir(tmp_path / "model"))
    for name, color in {"red/1": (255, 0, 0), "red/2": (0, 255, 0), "green/1": (0, 255, 0)}.items():
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), color).save(path)
    samples = list(read_samples(tmp_path / "data"))
    metric = predictor.task.metric(predictor(samples), samples)
    assert (metric.name, metric.value, metric.count) == ("accuracy", pytest.approx(2 / 3), 3)


def test_the_models_dtype_is_fed(tmp_path):
    folder = image_dir(tmp_path, half=True)
    task = task_for(ModelDir.open(folder))
    [batch] = feeds(task, [{"image": red()}, {"image": red()}])
    assert (batch["pixel_values"].dtype, batch["pixel_values"].shape) == (np.float16, (2, 3, 8, 8))
    assert Predictor(folder)([red()])[0]["label"] == "red"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.new("L", (6, 6), 200).convert(mode)
    [batch] = feeds(task_for(ModelDir.open(image_dir(tmp_path))), [{"image": image}])
    assert batch["pixel_values"].shape == (1, 3, 8, 8)


def test_a_bad_image_names_its_line(tmp_path):
    folder = image_dir(tmp_path / "model")
    red().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "data.jsonl").write_text('{"image": "good.png"}\n{"image": "bad.png"}\n')
    with pytest.raises(InputError, match=r"data\.jsonl:2: .*bad\.png: truncated, or no image"):
        Predictor(folder)(read_samples(tmp_path / "data.jsonl"))
    with pytest.raises(InputError, match=r"data\.jsonl:2: .*bad\.png: no such image"):
        (tmp_path / "bad.png").unlink()
        Predictor(folder)(read_samples(tmp_path / "data.jsonl"))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"text": "a"}, r"sample 0: there is no 'image' \(columns: text\)"),
        ({"image": 3}, "sample 0: an image is a path"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "uint8 array"),
        ({"image": np.zeros((4, 4, 2), np.uint8)}, "uint8 array"),
    ],
)
def test_what_is_no_image(tmp_path, sample, message):
    with pytest.raises(InputError, match=message):
        Predictor(image_dir(tmp_path))([sample])


@pytest.mark.parametrize("dtype", [np.uint16, ">u2", np.int32, np.float32])
@pytest.mark.parametrize(("scale", "told"), [(257, True), (1, False)])
def test_more_than_eight_bits_are_said(tmp_path, dtype, scale, told):
    pixels = (np.arange(24).reshape(4, 6) * 11 * scale).astype(dtype)
    image, heard = Image.fromarray(pixels), Heard()
    Predictor(image_dir(tmp_path), progress=heard)([red(), image])
    text = (
        f"sample 1: pixels up to {23 * 11 * scale} count as 255 where they are above it; convert it to 8 bits"
    )
    assert heard.warnings == ([text] if told else [])


def test_settings_missing_or_unknown(tmp_path):
    folder = image_dir(tmp_path)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "OddImageProcessor"}')
    with pytest.raises(InputError, match="OddImageProcessor is none that onnxkit has"):
        Predictor(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": "x"}'
    )
    with pytest.raises(InputError, match="not usable image settings"):
        Predictor(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"preprocessor_config\.json is missing; .*save_pretrained"):
        Predictor(folder)


def test_the_image_part_of_a_processor_config(tmp_path):
    folder = image_dir(tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert Predictor(folder)([red()])[0]["label"] == "red"


def test_images_of_several_sizes_need_padding_or_batches_of_one(tmp_path):
    folder = image_dir(tmp_path, settings={"do_resize": False})
    images = [red((4, 6)), red((6, 4)), red((4, 6))]
    with pytest.raises(InputError, match="images of 2 sizes in one batch; use a batch size of 1"):
        Predictor(folder)(images)
    assert [r["label"] for r in Predictor(folder, batch_size=1)(images)] == ["red"] * 3
    image_dir(tmp_path, settings={"do_resize": False, "do_pad": True})
    [batch] = feeds(task_for(ModelDir.open(folder)), [{"image": image} for image in images])
    assert batch["pixel_values"].shape == (3, 3, 6, 6)


@pytest.mark.parametrize(
    ("size", "crop"), [((5, 7), (2, 2)), ((5, 7), (4, 3)), ((2, 3), (5, 6)), ((6, 2), (3, 4))]
)
def test_center_crop_is_centered_and_padded_with_zeros(size, crop):
    pixels = np.ones((*size, 1), np.uint8)
    cropped = center_crop(pixels, {"height": crop[0], "width": crop[1]})
    assert cropped.shape == (*crop, 1)
    assert cropped.sum() == min(size[0], crop[0]) * min(size[1], crop[1])


@pytest.mark.parametrize("kind", DEFAULTS)
@pytest.mark.parametrize("change", [{}, {"size": {"height": 36, "width": 28}}, {"do_center_crop": False}])
def test_the_size_that_every_image_gets(tmp_path, kind, change):
    """Two shapes come out alike exactly where a size is promised."""
    settings = parse_settings({"image_processor_type": f"{kind}ImageProcessor", **change}, tmp_path)
    if kind == "ConvNext" and "size" in change:  # it knows a shortest edge only
        with pytest.raises(InputError, match="has no known form"):
            ImageProcessor(settings, 3)(red())
        return
    shapes = {ImageProcessor(settings, 3)(red(size)).shape[1:] for size in ((40, 30), (35, 50))}
    promised = output_size(settings)
    assert shapes == {promised} if promised else len(shapes) == 2


def test_arrays_of_grey_values():
    for shape in [(4, 5), (4, 5, 1), (1, 4, 5)]:
        image = as_image(np.zeros(shape, np.uint8))
        assert (image.mode, image.size) == ("L", (5, 4))


def features(folder, outputs):
    """A model that hands its pixels on as features: [rows, patches, 3], or their channel means."""
    nodes = [
        helper.make_node("Reshape", ["pixel_values", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["last_hidden_state"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["pixel_values", "space"], ["pooler_output"], keepdims=0),
        helper.make_node("Identity", ["pixel_values"], ["map"]),
    ]
    shapes = {"last_hidden_state": ["n", "p", 3], "pooler_output": ["n", 3]}
    save_graph(
        folder / "model.onnx",
        nodes,
        inputs={"pixel_values": (TensorProto.FLOAT, ["n", 3, "h", "w"])},
        outputs={name: shapes[name] for name in outputs},
        weights={"flat": np.array([0, 3, -1]), "space": np.array([2, 3])},
    )
    (folder / "preprocessor_config.json").write_text('{"size": 2, "do_normalize": false}')
    return folder


def test_image_features(tmp_path):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    values = np.arange(12).reshape(4, 3) / 255
    folder = features(tmp_path, ["last_hidden_state", "pooler_output"])
    expected = {None: values.max(0), "mean": values.mean(0), "cls": values[0]}
    for pooling, vector in expected.items():
        [record] = Predictor(folder, pooling=pooling)([image])
        assert record["embedding"] == pytest.approx(vector, abs=1e-6)
    [record] = Predictor(folder, pooling="none")([image])
    np.testing.assert_allclose(record["embeddings"], values, atol=1e-6)
    [record] = Predictor(folder, normalize=True)([image])
    assert np.linalg.norm(record["embedding"]) == pytest.approx(1)
    features(tmp_path, ["last_hidden_state"])
    assert Predictor(folder)([image])[0]["embedding"] == pytest.approx(values[0], abs=1e-6)
    with pytest.raises(UsageError, match="cls, mean, none"):
        Predictor(folder, pooling="max")
