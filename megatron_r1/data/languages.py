"""Languages that a prompt may ask for, and the scripts they are written in."""

SCRIPTS = {
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "th": ("THAI",),
    "ar": ("ARABIC",),
    "fa": ("ARABIC",),
    "he": ("HEBREW",),
    "el": ("GREEK",),
    "hi": ("DEVANAGARI",),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "bg": ("CYRILLIC",),
    **dict.fromkeys("cs da de en es fi fr hu id it nl no pl pt ro sv tr vi".split(), ("LATIN",)),
}
"""Language (ISO 639-1) -> its scripts, as Unicode names characters."""
LANGUAGES = tuple(sorted(SCRIPTS))
