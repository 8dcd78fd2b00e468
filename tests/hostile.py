"""Names that try to break out of whatever file they are written to."""

from __future__ import annotations

from typing import Final

LONG: Final = "n" * 10_000

# By what each of them attacks.
NAMES: Final = {
    "markup": "<script>window.hit = 1</script><b onmouseover='hit()'>&amp;",
    "end_of_cdata": "]]><script>window.hit = 2</script><![CDATA[ --> %>",
    "end_of_title": "</title></svg><script>window.hit = 3</script>",
    "quotes": "\"'`\\",
    "fold": "a;b c;;d;",
    "weight": "iter 12",
    "weights": "iter 12 34.5",
    "lines": "one\ntwo\r\nthree\ttab\x0b\x0c",
    "controls": "nul\x00 bell\x07 escape\x1b[31m del\x7f csi\x9b31m",
    "right_to_left": "abc\u202edef\u2066ghi\u2069\u200f",
    "no_width": "a\u200bb\ufeffc\u2028d\u2029e",
    "not_seen": "a\xadb\u034fc\u115fd\u180ee\u206af\u3164g\ufff9h\U000e0041i\ufe0f",
    "not_xml": "\ufffe\uffff",
    "letters": "größe 日本語 🔥 e\u0301",
    "empty": "",
    "spaces": "   ",
    "long": LONG,
}

# As harmless() shows them: none may be in a file as it is.
FORBIDDEN: Final = [chr(c) for c in (*range(9), 11, 12, *range(14, 32), *range(127, 160))] + list(
    "\xad\u034f\u115f\u180e\u206a\u3164\ufff9\U000e0041"
    "\u200b\u200f\u2028\u2029\u202e\u2066\u2069\ufeff\ufffe\uffff"
)
