"""What may stand in a fact's texts, and where a space belongs between a prompt and what follows it."""

from __future__ import annotations

import re
import unicodedata

# Scripts that write no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Chinese and Japanese with their
# punctuation and full-width forms. Korean is not among them.
_SPACELESS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
    "\u2e80-\u2fdf\u3000-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff00-\uff9f\uffe0-\uffee\U00020000-\U000323af"
)
_BEGINS_SPACELESS = re.compile(f"[{_SPACELESS}]")

_FORBIDDEN_ANYWHERE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FORBIDDEN_IN_ONE_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# Punctuation that clings to the word before it, unless a word begins there (".NET", "!Kung"); and English enclitics.
_CLINGS = re.compile(r"[,.;:!?)\]}%…»”’](?!\w)|['’](?:s|t|d|m|re|ve|ll)\b")
# After white space, an opening bracket or an opening quotation mark nothing more is wanted.
_WANTS_NO_SPACE = re.compile(r"(?:\s|[(\[{«“‘„‹¿¡]|(?:^|[\s(\[{])[\"'])\Z")


def text_fault(text: str, *, several_lines: bool) -> str | None:
    """Return what is wrong with `text` as part of a fact ('is empty', 'holds …'), or None.

    Newlines, tabs and Unicode's line separators are allowed only with `several_lines`, that is in the prompts of an
    evaluation; other control characters and lone surrogates never are.
    """
    if not text:
        return "is empty"
    found = (_FORBIDDEN_ANYWHERE if several_lines else _FORBIDDEN_IN_ONE_LINE).search(text)
    if found:
        code = ord(found.group())
        if 0xD800 <= code <= 0xDFFF:
            return f"holds half of a surrogate pair, U+{code:04X}, which is no character"
        kind = "the line separator" if code >= 0x2028 else "the control character"
        return f"holds {kind} U+{code:04X} at character {found.start() + 1}"
    if text.isspace():
        return "holds only white space"
    return None


def is_whole_word(text: str, start: int, end: int) -> bool:
    """Return whether `text[start:end]` is not cut out of a longer word (in scripts without spaces it never is)."""
    return not _joined(text, start) and not _joined(text, end)


def _joined(text: str, position: int) -> bool:
    """Return whether the characters on both sides of `position` belong to one word."""
    return 0 < position < len(text) and _in_word(text[position - 1]) and _in_word(text[position])


def _in_word(character: str) -> bool:
    """Return whether a character is a letter, digit or underscore, or a mark that combines with the one before it."""
    if _BEGINS_SPACELESS.match(character):
        return False
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")


def with_space(target: str, prompt: str | None = None) -> str:
    """Return `target` as it continues `prompt`: with one leading space, or with none where none belongs.

    None belongs before punctuation that clings to the word before it; after white space, an opening bracket or an
    opening quotation mark; and after a prompt in a script without spaces (Chinese, Japanese, Thai …). Without the
    prompt, a target that begins in such a script gets no space. This is the only place that decides it.

    >>> with_space("Paris", "The capital is"), with_space("巴黎", "法国的首都是"), with_space(", Texas", "Paris")
    (' Paris', '巴黎', ', Texas')
    """
    target = target.lstrip()
    if _CLINGS.match(target):
        return target
    if prompt is None:
        return target if _BEGINS_SPACELESS.match(target) else " " + target
    if not prompt or _WANTS_NO_SPACE.search(prompt) or _BEGINS_SPACELESS.match(prompt, len(prompt) - 1):
        return target
    return " " + target
