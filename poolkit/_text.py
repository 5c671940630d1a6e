"""Text from outside: errors of drivers and servers, names, hosts, keys, addresses.

A server chooses the length and content of its message, a driver quotes the connection string in its errors, and a name
may come from a file or another process. All such text passes :func:`shown` (errors: :func:`said` or :func:`describe`)
before it enters a message, a log record, a metric or a screen. It is first cut to ``LONGEST`` characters, which bounds
the work below. Then secrets are masked, then characters that a terminal or a log would interpret are escaped. Text that
passes twice does not change again.

All functions take linear time in the length of the text. Each regular expression either starts where no other attempt
has scanned, or repeats over single characters that exclude each other, so that no characters are scanned twice.
``tests/security/test_text.py`` measures that.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ("LONGEST", "describe", "masked", "raw_text", "said", "shown", "shown_again", "without_quotes")

LONGEST = 4000
"""Characters of a text that are examined; the rest is dropped before anything else."""
_SHORT = 200  # characters that are shown of a name or of an error
_AGAIN = 1000  # characters of a text that is worth remembering
_CUT = "..."
_MASK = "***"


def raw_text(value: object) -> str:
    """At most ``LONGEST`` characters of ``str(value)``, for analysis only: nothing is masked or escaped.

    "" if ``__str__`` raises or returns no string: an error that cannot be printed must not cause another one.
    """
    try:
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, (bytes, bytearray)) else str(value)
    except Exception:  # noqa: BLE001 - __str__ is a library's or the application's
        return ""
    return _cut(str.__getitem__(text, slice(LONGEST + 1)), LONGEST)  # str's own method: the value may be of a subclass


def shown(value: object, most: int = _SHORT) -> str:
    """``value`` as one line of at most ``most`` characters, masked and escaped."""
    text = masked(raw_text(value))
    if not text.isprintable():
        text = "".join([one if one.isprintable() else ascii(one)[1:-1] for one in text])
    return text if len(text) <= most else text[: most - len(_CUT)] + _CUT


def shown_key(key: object) -> str:
    """The key of an endpoint as :func:`shown`; an HTTP origin (scheme, host, port) as a URL."""
    if type(key) is tuple and len(key) == 3 and isinstance(key[2], int):
        scheme, host = (one.decode("latin-1") if isinstance(one, bytes) else one for one in key[:2])
        if isinstance(scheme, str) and isinstance(host, str):
            return shown(f"{scheme}://{f'[{host}]' if ':' in host else host}:{key[2]}")
    return shown(key)


_remembered = lru_cache(2048)(shown)


def shown_again(text: str, most: int = _SHORT) -> str:
    """As :func:`shown`, cached: for names of threads and code locations, which are few and repeat in every snapshot of
    a pool. Searching them for secrets would cost more than the rest of the snapshot.
    """
    return _remembered(text, most) if type(text) is str and len(text) <= _AGAIN else shown(text, most)


def said(error: object, most: int = _SHORT) -> str:
    """The text of an error as :func:`shown` gives it, with each run of white space as one space."""
    return shown(" ".join(raw_text(error).split()), most)


def describe(error: BaseException | None, most: int = _SHORT) -> str:
    """A short description of an error: its class and text; for a group also the first three errors in it."""
    if error is None:
        return "none"
    text = _one(error, most)
    inner = getattr(error, "exceptions", None)
    if isinstance(inner, tuple) and hasattr(error, "derive"):
        text += "".join(f"; {_one(each, most // 3)}" for each in inner[:3])
    return text


def _one(error: BaseException, most: int) -> str:
    kind, text = shown(type(error).__name__), said(error, most)
    return f"{kind}: {text}" if text else kind


def without_quotes(error: object, most: int = _SHORT) -> str:
    """As :func:`said`, without the text between the first and the last quotation mark.

    For errors of parsers of URLs and connection strings: they quote the part that they did not understand. It may be a
    piece of a password, which :func:`masked` cannot recognise.
    """
    text = " ".join(raw_text(error).split())
    places = [place for place, one in enumerate(text) if one in "'\"`"]
    if len(places) > 1:
        text = text[: places[0] + 1] + _MASK + text[places[-1] :]
    return shown(text, most)


def masked(text: str) -> str:
    """``text`` with passwords, tokens and keys replaced by ``***``; at most about ``LONGEST`` characters of it.

    Understands URLs, ``user:password@host``, ``name=value`` and ``name: value`` as in connection strings, URLs, JSON,
    YAML, Python's repr, SQL and HTTP headers, Redis's AUTH, and well-known token formats. Where the end of a secret is
    uncertain, it masks too much rather than too little.
    """
    return _tokens(_named(_addresses(_cut(text, LONGEST))))


def _cut(text: str, most: int) -> str:
    """The first ``most`` characters, without a word that would be cut in two: half a URL may lack its ``@``."""
    if len(text) <= most:
        return text
    text = text[: most - len(_CUT)]
    space = text.rfind(" ", most - 300)
    return (text if space < 0 else text[: space + 1]) + _CUT


# behind a quotation mark or a bracket that ends a value, and is no part of it
_ENDS = r"(?=[)}\]>'\"`]{0,4}(?:$|[\s,;&:]|\.(?:\s|$)))"
_QUOTED = {one: re.compile(rf"(?:\\.|[^{one}\\]|\\$|{one}(?!{_ENDS}))*", re.DOTALL) for one in "'\"`"}
_QUOTED_URL = [
    re.compile(rf"({one}[a-z][a-z0-9+.-]*://)({rest.pattern})", re.DOTALL | re.IGNORECASE)
    for one, rest in _QUOTED.items()
]

# -- user:password@host -------------------------------------------------------------------------------------------

_SPACES = re.compile(r"(\s+)")
_PORT = re.compile(r"(?:\d{1,5}|port|%[sd]|\{\w*\})(?=$|[^\w%@!$^*~+=-])|(?=/|['\")\]},;]*$)", re.IGNORECASE)
_HOST = re.compile(r"(?:[\w%*][\w.%*-]*|\[[^\]]*\]|)(?=$|[:/?,;'\")\]}>`\\])")
_NO_USER = ("redis", "rediss", "valkey", "valkeys", "http", "https")  # user@ alone is meant as a password or token
_COLON = re.compile(r"(?:^|(?<=[\w.%+~-])):(?!['\"\s/]|$)")
_FAR = 8  # words: the greatest distance between the parts of a password with spaces


def _addresses(text: str) -> str:
    """Mask the passwords of URLs and of ``user:password@host``."""
    if "@" not in text and "://" not in text:
        return text
    for pattern in _QUOTED_URL:
        text = pattern.sub(_quoted_url, text)
    parts = _SPACES.split(text)  # words at even places, white space between them
    # a password with spaces: the word in which it begins, the text before it, the last word in which it may end
    begun, head, until = 0, "", -1
    for place in range(0, len(parts), 2):
        word = parts[place]
        if place <= until:
            if "@" in word and "://" not in word:
                parts[begun] = head + _MASK
                parts[begun + 1 : place] = [""] * (place - begun - 1)
                parts[place] = word[word.rfind("@") :]
                until = -1
                continue
            if "://" in word:
                until = -1
        if "://" in word:
            before, *rest = word.split("://")
            done = [before]
            for piece in rest:
                kept, opened = _authority(piece, before)
                done.append(kept)
                before = piece
            parts[place] = "://".join(done)
            if opened >= 0:
                words = 1 if kept == piece else _FAR  # a number may be a port: then only the next word is looked at
                begun, until = place, place + 2 * words
                head = "://".join([*done[:-1], piece[: opened + 1]])
        elif "@" in word:
            at = word.rfind("@")
            colon = _COLON.search(word, 0, at)
            if colon and not (word[colon.end() : at].isdigit() and word[at + 1 : at + 2].isdigit()):  # CLUSTER NODES
                parts[place] = word[: colon.end()] + _MASK + word[at:]
    return "".join(parts)


def _quoted_url(found: re.Match[str]) -> str:
    """A URL between quotation marks may have spaces in its password; it ends at the closing mark."""
    url = found[2]
    at, colon = url.rfind("@"), url.find(":")
    if not 0 <= colon < at or _SPACES.search(url) is None:
        return found[0]
    return f"{found[1]}{url[: colon + 1]}{_MASK}{url[at:]}"


def _authority(piece: str, scheme: str) -> tuple[str, int]:
    """The text after ``://``, masked, and the position of the colon after which a password may continue past a
    space.
    """
    at = piece.rfind("@")
    colon = piece.find(":", piece.find("]") if piece.startswith("[") else 0)
    if at >= 0:
        if 0 <= colon < at:
            if _HOST.match(piece, at + 1):
                return piece[: colon + 1] + _MASK + piece[at:], -1
            return piece[: colon + 1] + _MASK, colon  # this @ is in the password, the one before the host comes later
        if scheme.lower().endswith(_NO_USER) and not any(one in piece[:at] for one in "/?#"):
            return _MASK + piece[at:], -1
        return piece, -1
    if colon < 0 or any(one in piece[:colon] for one in "/?#"):
        return piece, -1
    port = _PORT.match(piece, colon + 1)
    if port:
        return piece, colon if port.end() == len(piece) else -1
    end = len(piece.rstrip("'\")]},;"))
    return piece[: colon + 1] + _MASK + piece[end:], colon


# -- name=value ---------------------------------------------------------------------------------------------------

_KEY = re.compile(
    r"passw(?:or)?d|passphrase|passcode|passwort|pwd|secret|token|credential|api[_-]?key|access[_-]?key|pin-value"
    r"|private[_-]?key|signature|authorization|cookie|pass(?![a-z0-9])|(?<![a-z0-9])(?:auth|pw|sig)(?![a-z0-9])"
    r"|masterauth|sslkey",
    re.IGNORECASE,
)
_REST = re.compile(r"[\w-]*")
_SEPARATOR = re.compile(r"\\*['\"`]?\]?\s*(?:=>|:=|==?|:|%3d)\s*|\\*['\"]\s*,\s*(?=\\*[bru]?['\"])", re.IGNORECASE)
_QUOTE_NEXT = re.compile(r"\s+(?=['\"])")
_WORD_NEXT = re.compile(r"\s+")
_TOKEN_NEXT = re.compile(r"\s+(?=[\w.~+/=-]*\d)(?=[\w.~+/=-]*[a-z])(?=[\w.~+/=-]{6})", re.IGNORECASE)  # no plain word
_PLACE = re.compile(r"['\"]?[^\s,;]*[/\\.:]")  # a path or the address of a key is no secret
_HARMLESS = re.compile(r"(?:yes|no|none|null|nil|true|false|on|off|is|not|must)(?![^\s,;&)}\]'\"])", re.IGNORECASE)
_SCHEME = re.compile(r"(?:bearer|basic|digest|token|negotiate|ntlm|apikey|aws4-hmac-sha256)\s+", re.IGNORECASE)
_OPEN = re.compile(r"[bru]{0,2}(\\*['\"`])", re.IGNORECASE)
_CALL = re.compile(r"[\w.]*\(")
_PLAIN = re.compile(
    r"(?:\\.|\\$|[^\s\\,;&)}\]'\"]"
    r"|[,;&](?!$|\s|[\w.-]+\s*=)"
    r"|[)}\]](?![)}\]>'\"]{0,4}(?:$|[\s,;]|\.(?:\s|$)))"
    rf"|['\"](?!{_ENDS}))+",
    re.DOTALL,
)
_TABLE = re.compile(r"\{\s*(?:$|\\*[bru]?['\"])", re.IGNORECASE)


def _named(text: str) -> str:
    """Mask the values of names such as password, secret and token."""
    done, kept, at = [], 0, 0
    while (key := _KEY.search(text, at)) is not None:
        at = _REST.match(text, key.end()).end()  # type: ignore[union-attr]
        separator = _SEPARATOR.match(text, at) or _by_space(text, key, at)
        if separator is None:
            continue
        at = separator.end()
        if text.startswith(_MASK, at) or _HARMLESS.match(text, at):  # masked before: what follows is not a part of it
            continue
        if key[0].lower() == "sslkey" and _PLACE.match(text, at):
            continue
        start, end = _value(text, at, key[0].lower(), "," in separator[0])
        if end > start:
            done += [text[kept:start], _MASK]
            kept = end
        at = max(at, end)
    return "".join([*done, text[kept:]])


def _by_space(text: str, key: re.Match[str], end: int) -> re.Match[str] | None:
    """SQL's ``PASSWORD 'secret'``, and Redis's ``requirepass secret``."""
    if text[key.start() - 7 : end].lower() == "requirepass" or key[0].lower() == "masterauth":
        return _WORD_NEXT.match(text, end)
    if key[0].lower() == "token":
        return _TOKEN_NEXT.match(text, end)
    return _QUOTE_NEXT.match(text, end) if key[0].lower().startswith("passw") else None


def _value(text: str, at: int, key: str, listed: bool) -> tuple[int, int]:
    """Start and end of the value that begins at ``at``, without its quotation marks."""
    if listed and key == "auth":  # a command of Redis as a list: ['AUTH', 'user', 'password']
        ends = [place for place in (text.find("]", at), text.find(")", at)) if place >= 0]
        return at, min(ends, default=len(text))
    if _TABLE.match(text, at):
        return at, at  # its own names are looked at
    quote = _OPEN.match(text, at)
    if quote is not None:
        start, mark = quote.end(), quote[1]
        if len(mark) > 1:  # a quoted text inside a quoted text
            end = text.find(mark, start)
            return start, len(text) if end < 0 else end
        end = _QUOTED[mark].match(text, start).end()  # type: ignore[union-attr]
        scheme = _SCHEME.match(text, start, end) if key == "authorization" else None
        return start if scheme is None else scheme.end(), end
    if text[at : at + 1] == "[" or _CALL.match(text, at):
        end = text.find("]" if text[at] == "[" else ")", at)
        if end >= 0:
            return at, end + 1
    if key == "authorization" and (scheme := _SCHEME.match(text, at)) is not None:
        at = scheme.end()
    found = _PLAIN.match(text, at)
    end = at if found is None else found.end()
    while key in ("authorization", "cookie") and text[end : end + 2] in ("; ", ", "):  # it has several parts
        found = _PLAIN.match(text, end + 2)
        if found is None:
            break
        end = found.end()
    return at, end


# -- what is recognised by itself ---------------------------------------------------------------------------------

_ITSELF = re.compile(
    r"(?P<keep>\b(?:Bearer|Basic)\s+(?=[\w.~+/=:-]{6})(?!auth|realm|scheme|token|error))[\w.~+/=:-]+"
    r"|(?P<sql>\bidentified\s+(?:with\s+\S+\s+)?(?:by|as)\s+['\"]?)[^\s'\"]+"
    r"|(?P<rest>\b(?:with args beginning with:|unexpected spaces found in|invalid percent-encoded token:))(?!\*).+"
    r"|(?<![\w-])(?:(?:AKIA|ASIA)[A-Z0-9]{12,}|eyJ[\w-]{6,}\.[\w-]+\.[\w-]*"
    r"|(?:gh[opsu]_|github_pat_|glpat-|xox[abp]-|sk_live_|hvs\.)[\w-]{10,})"
    r"|-----BEGIN [^-]*PRIVATE KEY-----.*?(?:-----END[^-]*-----|$)",
    re.IGNORECASE | re.DOTALL,
)
_AUTH = re.compile(
    r"(\bAUTH[ \t]+)(?!<|\*\*\*|(?:failed|required|command|called|is|was|error|with|mechanism|against|timeout|for)\b)"
    r"\S+(?:[ \t]+[^\s<]\S*)?"
)


def _tokens(text: str) -> str:
    """Mask Bearer and Basic credentials, arguments of AUTH and IDENTIFIED BY, JWTs, keys of AWS, PEM and so on."""
    text = _ITSELF.sub(lambda found: (found["keep"] or found["sql"] or found["rest"] or "") + _MASK, text)
    return _AUTH.sub(r"\1***", text) if "AUTH" in text else text
