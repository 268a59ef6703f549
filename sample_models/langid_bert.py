"""``langid-bert``: which language a short text is written in.

The text is what software shows its users: the sentences of Django's message catalogues and the names, lists
and dates of the Unicode CLDR as babel ships it.
"""

from __future__ import annotations

import datetime
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from babel import Locale
from babel.dates import format_date, format_timedelta
from babel.lists import format_list
from babel.messages.mofile import read_mo
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedTokenizerBase,
)

from sample_models.common import (
    SEED,
    Card,
    Result,
    Row,
    Side,
    Splits,
    batches,
    chunks,
    conclude,
    fit,
    side,
    store,
)

# Language code -> locale name in both CLDR and Django's catalogues.
CODES = "ar cs da de el en es fi fr he hi hu it ja ko nl pl pt ro ru sv tr uk zh"
LOCALES = {code: "zh_Hans" if code == "zh" else code for code in CODES.split(" ")}
LABELS = sorted(LOCALES)
POSITIONS = 128
VOCABULARY, ALPHABET = 4096, 1400
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
STEPS, BATCH, RATE = 4000, 64, 1e-3
CALIBRATION_PER_LANGUAGE, EVALUATION_PER_LANGUAGE = 8, 42
CALIBRATION_SHARE, EVALUATION_SHARE = 0.05, 0.12
MARKUP = re.compile(r"%\(\w+\)\s?[a-z]|%\s?[a-z%]|\{[^}]*\}|<[^>]*>|&\w+;|`[\s.:]*`|[“”]|\"\s*\"|«\s*»|„")

CARD = Card(
    name="langid-bert",
    summary=f"Text classification: which of {len(LABELS)} languages a short text is written in.",
    pipeline_tag="text-classification",
    licence="other",
    languages=LABELS,
    data="""Sentences from the message catalogues of Django (BSD-3-Clause), placeholders and markup
        removed, and from the Unicode CLDR as the package babel ships it (Unicode licence v3; babel itself
        BSD-3-Clause): names of territories, languages, currencies and units, alone and joined into lists
        by each language's own pattern, full dates, and relative times. A sentence, a name or a day
        belongs to one set only, whichever language it is from, and lists are joined within a set, so the
        evaluation set is of unseen sentences and names. It has as many samples of every language, half of
        them sentences. Texts that two languages share are left out.""",
    architecture=f"""`BertForSequenceClassification`, 4 layers of width 128, 4 heads, feed-forward 256,
        {POSITIONS} positions; uncased WordPiece with accents kept, {VOCABULARY} tokens, trained on the
        training set.""",
    training=f"""{STEPS} steps of batch {BATCH}, AdamW (peak rate {RATE:g}, cosine with warm-up), padded
        batches with an attention mask. Texts are cut to a few words at random, and a sentence comes up
        four times as often as a name.""",
    limits="""Languages outside the list are forced into it. A lone name or loan-word is often much the
        same in several languages, and most errors are such, or between neighbours (Spanish and
        Portuguese, Danish and Swedish). The text is that of user interfaces; long prose and slang are
        outside what was measured.""",
)


def _strings(value: object) -> Iterator[str]:
    """Flatten what a catalogue holds for one message: a string or the plural forms."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


@cache
def sentences(code: str) -> tuple[str, ...]:
    """Return Django's messages in one language; the English ones are the keys of the others."""
    spec = find_spec("django")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("training langid-bert needs the package django, for its message catalogues")
    locale = "de" if code == "en" else LOCALES[code]
    catalogues = sorted(Path(spec.origin).parent.glob(f"**/locale/{locale}/**/*.mo"))
    found = set()
    for path in catalogues:
        with path.open("rb") as stream:
            for message in read_mo(stream):
                for text in _strings(message.id if code == "en" else message.string) if message.id else ():
                    found.add(" ".join(MARKUP.sub(" ", text).split()))
    shortest = 6 if code in ("ja", "ko", "zh") else 12
    return tuple(sorted(text for text in found if sum(map(str.isalpha, text)) >= shortest))


@cache
def names(code: str) -> tuple[str, ...]:
    """Return CLDR's names of territories, languages, currencies and units in one language."""
    locale = Locale.parse(LOCALES[code])
    units = {unit["long"] for unit in locale.unit_display_names.values() if "long" in unit}
    found = {*locale.territories.values(), *locale.languages.values(), *locale.currencies.values(), *units}
    return tuple(sorted(name for name in found if sum(map(str.isalpha, name)) >= 3))


def _lists(code: str, atoms: Sequence[str], count: int) -> Iterator[str]:
    """Join names of one set into lists, with the language's "and" or "or"."""
    rng = random.Random(f"{SEED}{code}")
    for _ in range(count):
        chosen = rng.sample(atoms, rng.choice((2, 2, 3, 3, 4)))
        yield format_list(chosen, style=rng.choice(("standard", "or")), locale=LOCALES[code])


def _times(code: str, wanted: Side) -> Iterator[str]:
    """Write out the dates and the relative times of one set."""
    locale, rng = LOCALES[code], random.Random(f"{SEED}{code}")
    days = (datetime.date(1990, 1, 1) + datetime.timedelta(rng.randrange(14_000)) for _ in range(250))
    for day in (day for day in days if _side(day.isoformat()) == wanted):
        yield format_date(day, rng.choice(("full", "full", "long")), locale=locale)
    for seconds in (value * unit for unit in (1, 60, 3600, 86400, 604800) for value in range(2, 24)):
        if _side(str(seconds)) == wanted:
            yield format_timedelta(
                datetime.timedelta(seconds=rng.choice((1, -1)) * seconds),
                add_direction=True,
                threshold=30,
                locale=locale,
            )


def _side(key: str) -> Side:
    return side(key, CALIBRATION_SHARE, EVALUATION_SHARE)


def _texts(code: str, wanted: Side) -> dict[str, list[str]]:
    """Return the texts of one set in one language, by kind."""
    atoms = [name for name in names(code) if _side(name) == wanted]
    return {
        "sentences": [text for text in sentences(code) if _side(text) == wanted],
        "lists": list(_lists(code, atoms, len(atoms))),
        "names": atoms,
        "times": list(_times(code, wanted)),
    }


def _held_out(wanted: Side, per_language: int) -> list[Row]:
    """Draw a balanced set: half sentences, a few names and dates, lists for the rest."""
    texts = {code: _texts(code, wanted) for code in LABELS}
    shared = _shared(texts)
    rows = []
    for code, kinds in texts.items():
        rng = random.Random(f"{SEED}{code}{wanted}")
        chosen: list[str] = []
        for kind, share in (("sentences", 2), ("names", 8), ("times", 8), ("lists", 1)):
            unique = sorted({text for text in kinds[kind] if text.lower() not in shared})
            room = min(per_language // share, per_language - len(chosen), len(unique))
            chosen += rng.sample(unique, room)
        rows += [{"text": text, "label": code} for text in chosen]
    random.Random(SEED).shuffle(rows)
    return rows


def _shared(texts: Mapping[str, Mapping[str, Sequence[str]]]) -> set[str]:
    """Find the texts that are the same in several languages, which have no one right answer."""
    owners: Counter[str] = Counter()
    for kinds in texts.values():
        owners.update({text.lower() for kind in kinds.values() for text in kind})
    return {text for text, count in owners.items() if count > 1}


def splits() -> Splits:
    """Return the training, calibration and evaluation sets, the same ones on every call."""
    texts = {code: _texts(code, "train") for code in LABELS}
    shared = _shared(texts)
    labels: dict[str, str] = {}
    for code, kinds in texts.items():
        labels |= {text: code for kind in kinds.values() for text in kind if text.lower() not in shared}
    train = [{"text": text, "label": code} for text, code in sorted(labels.items())]
    return Splits(
        train,
        _held_out("calibration", CALIBRATION_PER_LANGUAGE),
        _held_out("evaluation", EVALUATION_PER_LANGUAGE),
    )


def build_tokenizer(texts: Sequence[str]) -> BertTokenizer:
    """Train an uncased WordPiece vocabulary; accents are kept, since they tell languages apart.

    The trainer is given the letters, because it would number them, and so break ties, in random order.
    """
    trainer = BertWordPieceTokenizer(lowercase=True, strip_accents=False)
    letters: Counter[str] = Counter()
    inner: set[str] = set()
    for text in texts:
        for word, _ in trainer.pre_tokenizer.pre_tokenize_str(trainer.normalizer.normalize_str(text)):
            letters.update(word)
            inner.update(word[1:])
    alphabet = sorted(letters, key=lambda letter: (-letters[letter], letter))[:ALPHABET]
    trainer.train_from_iterator(
        texts,
        vocab_size=VOCABULARY,
        limit_alphabet=ALPHABET,
        initial_alphabet=alphabet,
        special_tokens=[*SPECIAL, *(f"##{letter}" for letter in alphabet if letter in inner)],
        show_progress=False,
    )
    return BertTokenizer(
        vocab=trainer.get_vocab(), do_lower_case=True, strip_accents=False, model_max_length=POSITIONS
    )


def _encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Tokenize, pad and mask a batch."""
    texts = [row["text"] for row in rows]
    return dict(tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))


def _cut(rows: Sequence[Row], rng: random.Random) -> list[Row]:
    """Keep a few neighbouring words of each text, so that every part of it has to give its language away.

    It also keeps training quick; every tenth batch stays whole, for the later positions to be learnt.
    """
    if rng.random() < 0.1:
        return list(rows)
    kept = []
    for row in rows:
        joint, most = ("", 14) if row["label"] in ("ja", "zh") else (" ", 6)
        parts = row["text"].split(" ") if joint else list(row["text"])
        size = min(len(parts), rng.randint((most + 1) // 2, most))
        start = rng.randint(0, len(parts) - size)
        kept.append({"text": joint.join(parts[start : start + size]), "label": row["label"]})
    return kept


def _batches(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> Iterator[dict[str, Tensor]]:
    """Yield training batches, in which sentences, the harder and more useful kind, come up more often."""
    rng = random.Random(SEED)
    spoken = {(text, code) for code in LABELS for text in sentences(code)}
    weighted = [*rows, *(3 * [row for row in rows if (row["text"], row["label"]) in spoken])]
    for batch in batches(weighted, BATCH, key=lambda row: len(row["text"])):
        labels = torch.tensor([LABELS.index(row["label"]) for row in batch])
        yield {**_encode(tokenizer, _cut(batch, rng)), "labels": labels}


def train(directory: Path, splits: Splits) -> Result:
    """Train the tokenizer and the model, and store both with the measured accuracy."""
    tokenizer = build_tokenizer([row["text"] for row in splits.train])
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=POSITIONS,
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    seconds = fit(model, _batches(tokenizer, splits.train), STEPS, RATE)
    store(directory, model, tokenizer)
    return conclude(directory, model, splits, CARD, metric="accuracy", evaluate=evaluate, seconds=seconds)


def predict(directory: Path, rows: Sequence[Row]) -> list[str]:
    """Return the label that the stored model gives to each row."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    found: list[str] = []
    with torch.inference_mode():
        for batch in chunks(rows):
            best = model(**_encode(tokenizer, batch)).logits.argmax(-1)
            found += [model.config.id2label[index] for index in best.tolist()]
    return found


def evaluate(directory: Path, rows: Sequence[Row]) -> float:
    """Return the share of rows whose language the stored model finds."""
    found = predict(directory, rows)
    return sum(label == row["label"] for label, row in zip(found, rows, strict=True)) / len(rows)
