"""Whisper's languages: their names in English, and what else people call them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnxkit.errors import UsageError, suggestion

# ISO 639-1 (or -3) code and English name, as OpenAI's tokenizer lists them.
_NAMES = """
en english, zh chinese, de german, es spanish, ru russian, ko korean, fr french, ja japanese, pt portuguese,
tr turkish, pl polish, ca catalan, nl dutch, ar arabic, sv swedish, it italian, id indonesian, hi hindi,
fi finnish, vi vietnamese, he hebrew, uk ukrainian, el greek, ms malay, cs czech, ro romanian, da danish,
hu hungarian, ta tamil, no norwegian, th thai, ur urdu, hr croatian, bg bulgarian, lt lithuanian, la latin,
mi maori, ml malayalam, cy welsh, sk slovak, te telugu, fa persian, lv latvian, bn bengali, sr serbian,
az azerbaijani, sl slovenian, kn kannada, et estonian, mk macedonian, br breton, eu basque, is icelandic,
hy armenian, ne nepali, mn mongolian, bs bosnian, kk kazakh, sq albanian, sw swahili, gl galician,
mr marathi, pa punjabi, si sinhala, km khmer, sn shona, yo yoruba, so somali, af afrikaans, oc occitan,
ka georgian, be belarusian, tg tajik, sd sindhi, gu gujarati, am amharic, yi yiddish, lo lao, uz uzbek,
fo faroese, ht haitian creole, ps pashto, tk turkmen, nn nynorsk, mt maltese, sa sanskrit, lb luxembourgish,
my myanmar, bo tibetan, tl tagalog, mg malagasy, as assamese, tt tatar, haw hawaiian, ln lingala, ha hausa,
ba bashkir, jw javanese, su sundanese, yue cantonese
"""
_OTHER_NAMES = """
my burmese, ca valencian, nl flemish, ht haitian, lb letzeburgesch, ps pushto, pa panjabi, ro moldavian,
ro moldovan, si sinhalese, es castilian, zh mandarin, jw jv
"""


def _table(text: str) -> dict[str, str]:
    entries = (entry.split(maxsplit=1) for entry in text.replace("\n", " ").split(","))
    return {name.strip(): code for code, name in entries}


CODES: Mapping[str, str] = {**_table(_NAMES), **_table(_OTHER_NAMES)}
"""Name in lower case -> code."""


def language_code(wanted: str, known: Collection[str]) -> str:
    """Return the code, one of `known`, of a name ("German"), a code ("de", "<|de|>") or a locale ("de-DE").

    Raises:
        UsageError: no language of the model, with the nearest names.
    """
    asked = wanted.strip().lower().removeprefix("<|").removesuffix("|>").replace("_", "-")
    base = asked.split("-")[0]
    for code in (asked, CODES.get(asked), base, CODES.get(base)):
        if code is not None and code in known:
            return code
    names = {name: code for name, code in CODES.items() if code in known}
    raise UsageError(f"the model has no language {wanted!r}; {suggestion(asked, [*sorted(known), *names])}")
