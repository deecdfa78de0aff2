"""What may stand in a log line: no control characters, no secrets, no endless values."""

from __future__ import annotations

import re

import msgspec

from serviceradar_poller.logic.jsontext import encodable

#: Longer values are cut; tracebacks of deep stacks are the longest that are legitimate.
VALUE_CHARS_MAX = 8_192
MASK = "***"

_SECRET_KEY = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|secret|token|credentials?|authorization|cookie|api_?key|private_?key)(?:_|$)",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"
    r"|(?P<name>\b(?:[\w-]*(?:password|passwd|passphrase|secret|api[_-]?key|access[_-]?token|auth[_-]?token)|token"
    r"|authorization)[\"']?\s*[=:]\s*)(?:(?:bearer|basic)\s+)?(?:\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)",
    re.IGNORECASE | re.DOTALL,
)
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_BUT_LINES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def secret_key(key: str) -> bool:
    """Whether a value of this name is to be hidden."""
    return _SECRET_KEY.search(key) is not None


def clean(text: str, *, lines: bool = False) -> str:
    """
    Return *text* fit for a line: cut to VALUE_CHARS_MAX, secrets masked, control characters escaped.

    Characters that end or reorder a line (separators, bidirectional overrides) count as control characters.
    With ``lines``, newlines and tabs stay, for values that the writer itself breaks into lines.
    """
    if len(text) > VALUE_CHARS_MAX:
        text = f"{text[:VALUE_CHARS_MAX]}… ({len(text) - VALUE_CHARS_MAX} more characters)"
    if "=" in text or ":" in text or "-----" in text:
        text = _SECRET_TEXT.sub(lambda m: (m.group("name") or "") + MASK, text)
    if text.isprintable():
        return text
    return (_UNSAFE_BUT_LINES if lines else _UNSAFE).sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    if short is not None:
        return short
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def json_bytes(value: object) -> bytes:
    """Return *value* as JSON; what UTF-8 can't carry, half a surrogate pair in somebody's text, as U+FFFD."""
    try:
        return msgspec.json.encode(value, enc_hook=str)
    except UnicodeEncodeError:
        return msgspec.json.encode(_encodable(msgspec.to_builtins(value, enc_hook=str)))


def _encodable(value: object) -> object:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value
