"""The whisper task without a model: prompts, windows, fallbacks, records, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from onnxkit.errors import InputError, UsageError
from onnxkit.inputs import Located
from onnxkit.tasks import task_for
from onnxkit.tasks.whisper import Whisper
from tests.speech import CODES, RATE, Said, tone, whisper_dir

WORDS = 40
EOS, START = 40, 41
EN, DE, FR, ES, TRANSLATE, TRANSCRIBE = range(42, 48)
NO_SPEECH, NO_TIMESTAMPS = 50, 51
BEGIN = 52


def stamp(seconds):
    return BEGIN + round(seconds / 0.02)


def walk(task, audio, answers):
    """Give `answers` one after the other to the rows of a recording; return rows and record."""
    rows, records = [task.encode({"audio": audio})], []
    for answer in answers:
        records.append(task.decode_completion([answer], rows[-1], 1))
        following = task.next_row(rows[-1], records[-1])
        if following is None:
            return rows, task.merge(records)
        rows.append(following)
    raise AssertionError("the recording wants more windows")


@pytest.fixture
def model(tmp_path):
    return whisper_dir(tmp_path / "whisper", window_s=1)


def prompt(task, seconds=0.5):
    return task.encode({"audio": tone(seconds)}).extra


def test_the_prefix_of_a_known_language(model):
    assert prompt(Whisper(model, language="German")).ids.tolist() == [START, DE, TRANSCRIBE, NO_TIMESTAMPS]
    assert prompt(Whisper(model, language="fr", translate=True)).ids.tolist() == [
        START, FR, TRANSLATE, NO_TIMESTAMPS,
    ]  # fmt: skip
    assert prompt(Whisper(model, language="fr", timestamps=True)).ids.tolist() == [START, FR, TRANSCRIBE]
    assert prompt(Whisper(model, language="fr"), seconds=1.5).ids.tolist() == [START, FR, TRANSCRIBE]


def test_an_unknown_language_is_decoded_first(model):
    task = Whisper(model)
    asked = prompt(task)
    assert asked.ids.tolist() == [START]
    assert asked.rule.prefix == ((EN, DE, FR, ES), (TRANSCRIBE,), (NO_TIMESTAMPS,))
    _, record = walk(task, tone(0.5), [Said((DE, TRANSCRIBE, NO_TIMESTAMPS, 1, 2))])
    assert (record["language"], record["text"], record["new_tokens"]) == ("de", "w1w2", 5)


def test_an_option_of_the_files_wins_over_detection(tmp_path):
    forced = whisper_dir(tmp_path / "a", window_s=1, forced_decoder_ids=[[1, FR], [2, TRANSLATE]])
    assert prompt(Whisper(forced)).ids.tolist() == [START, FR, TRANSLATE, NO_TIMESTAMPS]
    assert prompt(Whisper(forced, language="de")).ids.tolist() == [START, DE, TRANSLATE, NO_TIMESTAMPS]
    open_language = whisper_dir(tmp_path / "b", window_s=1, forced_decoder_ids=[[1, None], [2, TRANSCRIBE]])
    assert prompt(Whisper(open_language)).ids.tolist() == [START]
    named = whisper_dir(tmp_path / "c", window_s=1, language="<|es|>", task="translate")
    assert prompt(Whisper(named)).ids.tolist() == [START, ES, TRANSLATE, NO_TIMESTAMPS]


def test_what_older_checkpoints_have_in_config_json(tmp_path):
    model = whisper_dir(tmp_path, window_s=1)
    older = {
        "forced_decoder_ids": [[1, FR], [2, TRANSLATE]],
        "suppress_tokens": [9],
        "decoder_start_token_id": 7,
    }
    model = dataclasses.replace(model, config={**model.config, **older, "vocab_size": 51_865})
    task = Whisper(model)
    assert prompt(task).ids.tolist() == [START, FR, TRANSLATE, NO_TIMESTAMPS]
    assert 9 not in task.tokens.suppress
    (tmp_path / "generation_config.json").unlink()
    task = Whisper(model)
    assert prompt(task).ids.tolist() == [7, FR, TRANSLATE, NO_TIMESTAMPS]
    assert task.tokens.suppress == (9,)


def test_english_only(tmp_path):
    model = whisper_dir(tmp_path, window_s=1, is_multilingual=False)
    assert prompt(Whisper(model, language="English")).ids.tolist() == [START, NO_TIMESTAMPS]
    assert walk(Whisper(model), tone(0.5), [Said((1,))])[1]["language"] == "en"
    with pytest.raises(UsageError, match="knows English only, not 'de'"):
        Whisper(model, language="de")
    with pytest.raises(UsageError, match="cannot translate"):
        Whisper(model, translate=True)


def test_ids_that_only_the_tokenizer_knows(tmp_path):
    names = ("lang_to_id", "task_to_id", "no_timestamps_token_id", "decoder_start_token_id", "eos_token_id")
    model = whisper_dir(tmp_path, window_s=1, **dict.fromkeys(names))
    task = Whisper(model, language="de")
    assert prompt(task).ids.tolist() == [START, DE, TRANSCRIBE, NO_TIMESTAMPS]
    assert task.tokens.eos == EOS
    assert set(task.tokens.languages) == set(CODES)


def test_a_short_recording_is_one_window(model):
    rows, record = walk(Whisper(model, language="en"), tone(0.7), [Said((1, 2, 3), "length")])
    assert rows[0].features["input_features"].shape == (80, 100)
    assert record == {
        "text": "w1w2w3", "language": "en", "duration_s": 0.7, "finish_reason": "length", "new_tokens": 3,
    }  # fmt: skip


def test_long_recordings_continue_at_the_last_pair(model):
    task = Whisper(model, language="en", timestamps=True)
    said = [
        Said(
            (stamp(0), 1, stamp(0.3), stamp(0.3), 2, stamp(0.5), stamp(0.5), 9)
        ),  # what is cut is read again
        Said((stamp(0), 3, stamp(0.4), stamp(0.4), 4, stamp(0.8))),  # a single end: the window is done
        Said((stamp(0.1), 5, stamp(0.2))),
    ]
    rows, record = walk(task, tone(2.2), said)
    assert [row.extra.sample.seek for row in rows] == [0, 50, 150]
    assert record["segments"] == [
        {"start_s": 0.0, "end_s": 0.3, "text": "w1"}, {"start_s": 0.3, "end_s": 0.5, "text": "w2"},
        {"start_s": 0.5, "end_s": 0.9, "text": "w3"}, {"start_s": 0.9, "end_s": 1.3, "text": "w4"},
        {"start_s": 1.5, "end_s": 1.7, "text": "w5"},
    ]  # fmt: skip
    assert record["text"] == "w1w2w3w4w5"
    features = rows[0].extra.sample.recording.features
    np.testing.assert_array_equal(rows[1].features["input_features"], features[:, 50:150])
    last = rows[2].features["input_features"]
    np.testing.assert_array_equal(last[:, :70], features[:, 150:])
    assert not last[:, 70:].any()


def test_segments_end_with_the_sound_and_reading_too(model):
    task = Whisper(model, language="en", timestamps=True)
    rows, record = walk(task, tone(0.5), [Said((stamp(0), 1, stamp(0.9), stamp(0.9)))])
    assert len(rows) == 1
    assert record["segments"] == [{"start_s": 0.0, "end_s": 0.5, "text": "w1"}]


def test_the_language_of_the_first_window_is_kept(model):
    task = Whisper(model)
    rows, record = walk(
        task, tone(1.5), [Said((FR, TRANSCRIBE, stamp(0), 1, stamp(0.4))), Said((stamp(0), 2))]
    )
    assert rows[1].extra.ids.tolist() == [START, FR, TRANSCRIBE]
    assert (record["language"], record["text"]) == ("fr", "w1w2")


def test_a_window_without_progress_ends(model):
    said = [Said((stamp(0), stamp(0), 1)), Said(())]
    rows, _ = walk(Whisper(model, language="en", timestamps=True), tone(1.5), said)
    assert [row.extra.sample.seek for row in rows] == [0, 100]


def test_silence_is_left_out(tmp_path):
    model = whisper_dir(tmp_path, window_s=1, no_speech_threshold=0.5, logprob_threshold=-1.0)
    task = Whisper(model, language="en")
    row = task.encode({"audio": tone(0.5)})
    assert row.extra.ids.tolist() == [START]
    logits = np.zeros(model.config["vocab_size"], np.float32)
    for score, loud, text in [(-50.0, 0.0, "w1"), (-50.0, 20.0, ""), (-0.1, 20.0, "w1")]:
        logits[NO_SPEECH] = loud
        row.extra.rule(np.array([], np.int64), logits)
        record = task.decode_completion([Said((EN, TRANSCRIBE, NO_TIMESTAMPS, 1), score=score)], row, 1)
        assert task.merge([record])["text"] == text


def test_a_failed_window_is_sampled_at_rising_temperatures(tmp_path):
    model = whisper_dir(tmp_path, window_s=1, compression_ratio_threshold=1.5, logprob_threshold=-1.0)
    task = Whisper(model, language="en", temperatures=(0.2, 0.4))
    repeated = Said((7,) * 40, score=-1.0)
    rows, record = walk(task, tone(0.5), [repeated, Said((1, 2), score=-9.0), Said((3,), score=-0.5)])
    assert record["text"] == "w3"
    assert record["new_tokens"] == 43
    shared = {"suppress_tokens": (), "begin_suppress_tokens": ()}
    assert [row.extra.options for row in rows] == [
        shared,
        {**shared, "do_sample": True, "temperature": 0.2, "num_beams": 1},
        {**shared, "do_sample": True, "temperature": 0.4, "num_beams": 1},
    ]
    assert walk(Whisper(model, language="en"), tone(0.5), [repeated])[1]["text"] == "w7" * 40


def test_one_transcript_a_recording(model):
    task = Whisper(model, language="en")
    with pytest.raises(UsageError, match="one transcript"):
        task.decode_completion([Said((1,)), Said((2,))], task.encode({"audio": tone(0.5)}), 1)


def test_audio_from_python_in_every_form(model, tmp_path):
    task = Whisper(model, language="en")
    samples = tone(0.4)
    halves = (samples * 32768).round().astype(np.int16)
    forms = [
        samples, samples.tolist(), (samples, RATE), {"array": samples, "sampling_rate": RATE},
        {"audio": {"array": samples, "sampling_rate": RATE, "path": None}},
        np.stack([samples, samples], axis=1), np.stack([samples, samples]),
    ]  # fmt: skip
    expected = task.encode({"audio": samples}).features["input_features"]
    for form in forms:
        np.testing.assert_allclose(
            task.encode(task.sample_of(form)).features["input_features"], expected, atol=1e-6
        )
    rounded = task.encode({"audio": halves}).features["input_features"]
    np.testing.assert_allclose(rounded, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"text": "a"}, r"there is no 'audio' \(columns: text\).*--column audio=THEIRS"),
        ({"audio": 3}, "audio must be a path or an array of samples"),
        ({"audio": np.zeros(0, np.float32)}, "not empty"),
        ({"audio": np.zeros((2, 2, 2))}, "shape \\[2, 2, 2\\]"),
        ({"audio": ["a"]}, "audio must be a path"),
        ({"audio": [[1.0], [1.0, 2.0]]}, "audio must be a path"),
        ({"audio": (tone(0.1), 0)}, "sampling rate must be a whole number"),
        ({"audio": (tone(0.1), "16k")}, "sampling rate must be a whole number"),
        ({"audio": np.array([0.0, np.nan])}, "NaN or infinite"),
        ({"audio": "none.wav"}, r"x\.jsonl:3: none\.wav: no such sound file"),
    ],
)
def test_samples_that_are_no_audio(model, sample, message):
    with pytest.raises(InputError, match=message):
        Whisper(model).encode(Located(sample, "x.jsonl:3"))


def test_what_the_files_must_hold(tmp_path):
    model = whisper_dir(tmp_path, window_s=1)
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "feature_size": 128}))
    with pytest.raises(InputError, match="makes 128 mel bands in 100 frames, the model takes 80 in 100"):
        Whisper(model)
    path.write_text(json.dumps({**settings, "feature_extractor_type": "OddExtractor"}))
    with pytest.raises(InputError, match="OddExtractor is none that onnxkit has"):
        Whisper(model)
    path.unlink()
    with pytest.raises(InputError, match=r"preprocessor_config\.json is missing; .*save_pretrained"):
        Whisper(model)
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": settings}))
    assert Whisper(model).log_mel.frames == 100
    (tmp_path / "generation_config.json").write_text('{"lang_to_id": 3}')
    with pytest.raises(InputError, match=r"generation_config\.json: not usable for whisper"):
        Whisper(model)


def test_options_reach_the_task_by_its_name(model):
    task = task_for(model, language="de", timestamps=True)
    assert isinstance(task, Whisper)
    with pytest.raises(UsageError, match="no option 'top_k'"):
        task_for(model, top_k=3)
    with pytest.raises(UsageError, match="no language 'germn'; did you mean german"):
        task_for(model, language="germn")


def test_word_errors_of_a_target(model):
    metric = Whisper(model).metric([{"text": "The cat."}], [{"target": "the hat"}])
    assert (metric.name, metric.value) == ("wer", 0.5)


def test_a_stream_says_no_segment_twice(model):
    task = Whisper(model, language="en")
    said = [
        Said((stamp(0), 1, stamp(0.3), stamp(0.3), 2, stamp(0.5), stamp(0.5), 9)),
        Said((stamp(0), 3, stamp(0.4), stamp(0.4), 4, stamp(0.8))),
        Said((stamp(0.1), 5)),
    ]
    rows, record = walk(task, tone(2.2), said)
    pieces = []
    for row, answer in zip(rows, said, strict=True):
        stream = task.stream(row)
        pieces.append([stream.text(token) for token in answer.tokens] + [stream.flush()])
    assert "".join(piece for window in pieces for piece in window) == record["text"] == "w1w2w3w4w5"
    assert pieces[0][3] == "w1"


def test_a_short_text_streams_token_by_token(model):
    task = Whisper(model, language="en")
    stream = task.stream(task.encode({"audio": tone(0.5)}))
    assert [stream.text(token) for token in (1, 2)] == ["w1", "w2"]
