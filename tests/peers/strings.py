"""Strings to tokenise: code, many scripts, emoji, digits, white space, special tokens, any code
points, and bytes that are no UTF-8."""
# SPDX-License-Identifier: Apache-2.0
import pathlib
import random
import sysconfig

SPACES = [chr(c) for c in (9, 10, 11, 12, 13, 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B),
                           0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0x200B, 0x180E, 0xFEFF)]
# Latin, Greek, Cyrillic, Armenian, Hebrew, Arabic, Devanagari, Bengali, Tamil, Thai, Tibetan,
# Georgian, Hangul, Ethiopic, Cherokee, Khmer, Mongolian, kana, Han, Yi, full width, Gothic, Adlam.
SCRIPTS = [(0x61, 0x7B), (0xC0, 0x250), (0x370, 0x400), (0x400, 0x530), (0x531, 0x590),
           (0x590, 0x5F5), (0x600, 0x700), (0x900, 0x980), (0x980, 0xA00), (0xB80, 0xC00),
           (0xE00, 0xE60), (0xF00, 0xFD0), (0x10A0, 0x1100), (0xAC00, 0xD7A4), (0x1200, 0x1380),
           (0x13A0, 0x1400), (0x1780, 0x1800), (0x1800, 0x18B0), (0x3040, 0x3100),
           (0x4E00, 0x9FA6), (0xA000, 0xA490), (0xFF00, 0xFFF0), (0x10330, 0x1034B),
           (0x1E900, 0x1E960), (0x20000, 0x20100)]
COMMON_HAN = ("\u7684\u4e00\u662f\u4e0d\u4e86\u4eba\u6211\u5728\u6709\u4ed6\u8fd9\u4e2d\u5927"
              "\u6765\u4e0a\u56fd\u4e2a\u5230\u8bf4\u4eec\u4e3a\u5b50\u548c\u4f60\u5730\u51fa")
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + [
    "\u3002", "\uff0c", "\u2014", "\u2026", "\u00bf", "\u2019", "\u20ac", "\u30fb", "\u00b7"]
WORDS = ("the of and to in is you that it he was for on are as with his they at be this have from "
         "don't I'll we've it's you're CamelCase snake_case kebab-case HTTPServer2 e.g. U.S.A. x1 "
         "naive na\u00efve caf\u00e9 cafe\u0301 Stra\u00dfe \u0130stanbul \ufb01nal co\u00f6perate").split()
DIGITS = ["0123456789", "\u0660\u0661\u0662\u0669", "\u0966\u096f", "\u00bd\u00b2\u2163\u2460",
          "\uff10\uff19", "\U0001d7d8\U0001d7ff"]
EMOJI = ["\U0001f600", "\U0001f44d\U0001f3fd", "\U0001f469\u200d\U0001f469\u200d\U0001f467",
         "\U0001f1eb\U0001f1f7", "1\ufe0f\u20e3", "\u2764\ufe0f", "\U0001f3f4\u200d\u2620\ufe0f",
         "\u00a9\ufe0f", "\U0001fae8", "\U0001f9d1\U0001f3fb\u200d\U0001f680"]


def code_lines():
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    names = ["argparse.py", "ast.py", "ctypes/__init__.py", "json/decoder.py", "tarfile.py"]
    return "".join((folder / name).read_text(encoding="utf-8") for name in names)


class Strings:
    def __init__(self, seed, specials):
        self.rng, self.specials, self.code = random.Random(seed), specials, code_lines()

    def some(self, draw, least, most, between=""):
        return between.join(draw() for _ in range(self.rng.randint(least, most)))

    def code_piece(self):
        at = self.rng.randrange(len(self.code) - 400)
        return self.code[at:at + self.rng.randint(1, 300)]

    def word_of_script(self):
        first, end = self.rng.choice(SCRIPTS)
        return self.some(lambda: chr(self.rng.randrange(first, end)), 1, 12)

    def script(self):
        return self.some(self.word_of_script, 1, 12, self.rng.choice([" ", "", "\u3000", ", "]))

    def han(self):
        return self.some(lambda: self.rng.choice(COMMON_HAN + "\uff0c\u3002"), 1, 120)

    def english(self):
        return self.some(lambda: self.rng.choice(WORDS), 1, 30, " ")

    def digits(self):
        def number():
            return self.some(lambda: self.rng.choice(self.rng.choice(DIGITS)), 1, 9)
        return self.some(number, 1, 8, self.rng.choice([" ", ",", ".", "", "-", "e", "\n"]))

    def spaces(self):
        return self.some(lambda: self.rng.choice(SPACES) * self.rng.choice((1, 1, 2, 5, 30)), 1, 6)

    def punctuation(self):
        return self.some(lambda: self.rng.choice(PUNCTUATION), 1, 12)

    def emoji(self):
        return self.some(lambda: self.rng.choice(EMOJI), 1, 8, self.rng.choice(["", " ", "a"]))

    def any_points(self):
        limit = self.rng.choice((0x80, 0x250, 0x3000, 0x10000, 0x110000))
        points = (self.rng.randrange(limit) for _ in range(self.rng.randint(1, 30)))
        return "".join(chr(c) for c in points if not 0xD800 <= c < 0xE000)

    def special(self):
        token = self.rng.choice(self.specials)
        return self.rng.choice([token, token, token[:-1], token[1:], token.lower(), token + token,
                                token.replace("\uff5c", "|"), token[:3], f" {token}\n"])

    def repeated(self):
        return self.rng.choice(["a", " a", "ab", "=", "\u4f60", "\U0001f600", "e\u0301", "0",
                                "\n\n", "\uac00"]) * self.rng.randint(2, 400)

    def mixed(self):
        return self.some(lambda: self.rng.choice(self.kinds())(), 2, 8)

    def kinds(self):
        return [self.code_piece, self.script, self.han, self.english, self.digits, self.spaces,
                self.punctuation, self.emoji, self.any_points, self.special, self.repeated]

    def broken(self):
        """Bytes with single ones lost, changed or added, so that they are hardly ever UTF-8."""
        data = bytearray(self.rng.choice(self.kinds())().encode())
        for _ in range(self.rng.randint(1, 6)):
            at = self.rng.randrange(len(data) + 1)
            data[at:at + self.rng.randint(0, 1)] = self.rng.choice(
                [b"", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90", b"\xe4\xbd", b"\x80",
                 bytes([self.rng.randrange(256)])])
        return bytes(data)

    def draw(self, count):
        """`count` strings; every kind about as often, mixtures and broken ones more so."""
        kinds = self.kinds() + [self.mixed] * 5 + [self.broken] * 2
        return ["", *(kinds[i % len(kinds)]() for i in range(count - 1))]


def every_code_point():
    """All of them, after a letter and between a blank and a digit."""
    for first in range(0, 0x110000, 256):
        if not 0xD800 <= first < 0xE000:
            yield "".join(f"a{c} {c}1" for c in map(chr, range(first, first + 256)))
