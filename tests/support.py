"""Texts that exercise ragged batches: scripts, lengths from one token to many, equal lengths side by side."""

TEXTS = [
    "hello",
    "the capital of Russia is Moscow",
    "Столица России — Москва",
    "中国的首都在哪儿",
    "line one\nline two\n\tindented",
    "",
    "   ",
    "a",
    "b",
    "the the The THE",
    "what is the capital of China?",
    " ".join(["how to sort a list in python"] * 9),
    "emoji 🙂 and a NUL \x00 in the middle",
]
