"""Decides from the text of a statement whether it can leave anything behind in its session."""

from __future__ import annotations

import re

__all__ = ("leaves_nothing", "prepares")

_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\n\r\f\v]+|--[^\n\r]*)
    | (?P<comment>/\*)
    | (?P<dollar>\$(?:[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*)?\$)
    | (?P<string>(?:[eEbBxXnN]|[uU]&)?')
    | (?P<quoted>(?:[uU]&)?")
    | (?P<word>[A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*)
    | (?P<other>\$[0-9]+|[0-9][0-9._]*|.)
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
"""The tokens of PostgreSQL's ``scan.l``. Older versions allow a word directly behind a number (``1into``)."""
_READS = frozenset({"select", "values", "table", "show", "with"})
_TRANSACTION = frozenset({"begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release"})
_CHANGES = frozenset({"into", "insert", "update", "delete", "merge", "execute", "call", "do", "set", "create", "lock"})
_BEFORE_PARENTHESIS = frozenset({
    # reserved words
    "all", "and", "any", "array", "as", "asymmetric", "case", "cast", "distinct", "else", "end", "except", "for",
    "from", "group", "having", "in", "intersect", "lateral", "limit", "not", "offset", "on", "only", "or", "order",
    "returning", "select", "some", "symmetric", "then", "union", "using", "when", "where", "window", "with",
    # words that cannot be the names of functions
    "between", "bit", "char", "character", "decimal", "exists", "float", "grouping", "interval", "numeric", "row",
    "time", "timestamp", "values", "varchar",
})  # fmt: skip
"""Keywords that make no call before a parenthesis: no function has such a name without quotes."""
_AFTER: dict[str, frozenset[str]] = {
    "by": frozenset({"group", "order", "partition"}),
    "filter": frozenset({")"}),
    "first": frozenset({"fetch"}),
    "next": frozenset({"fetch"}),
    "over": frozenset({")"}),
    "sets": frozenset({"grouping"}),
    "timestamptz": frozenset({":"}),
    "timetz": frozenset({":"}),
    "varbit": frozenset({":"}),
    "varying": frozenset({"bit", "char", "character"}),
}
"""Other words, which may be the names of functions: what stands before them where they make no call."""
_EXPECT = _BEFORE_PARENTHESIS | _AFTER.keys() | {
    "analyse", "analyze", "both", "collate", "escape", "fetch", "groups", "ilike", "is", "join", "leading", "like",
    "local", "materialized", "of", "operator", "overlaps", "placing", "range", "recursive", "rows", "similar", "table",
    "to", "trailing", "uescape", "variadic", "zone",
}  # fmt: skip
"""Words after which an expression or a table may begin. ``join`` and ``like`` make a call there."""
_OPERANDS = frozenset({")", "]", "'", '"', "$"})
_PURE = frozenset({
    "abs", "age", "array_agg", "array_append", "array_cat", "array_length", "array_position", "array_prepend",
    "array_remove", "array_to_string", "avg", "bool_and", "bool_or", "btrim", "cardinality", "ceil", "ceiling",
    "char_length", "coalesce", "concat", "concat_ws", "count", "cume_dist", "current_database", "current_schema",
    "current_setting", "date_part", "date_trunc", "decode", "dense_rank", "encode", "every", "exp", "extract",
    "first_value", "floor", "format", "gen_random_uuid", "generate_series", "greatest", "initcap", "json_agg",
    "json_array_length", "json_build_array", "json_build_object", "json_each", "json_each_text",
    "json_extract_path", "json_extract_path_text", "json_object_agg", "jsonb_agg", "jsonb_array_elements",
    "jsonb_array_elements_text", "jsonb_array_length", "jsonb_build_array", "jsonb_build_object", "jsonb_each",
    "jsonb_each_text", "jsonb_extract_path", "jsonb_extract_path_text", "jsonb_object_agg", "jsonb_object_keys",
    "jsonb_path_exists", "jsonb_path_query", "jsonb_set", "jsonb_strip_nulls", "jsonb_typeof", "json_typeof",
    "lag", "last_value", "lead", "least", "left", "length", "ln", "lower", "lpad", "ltrim", "make_date",
    "make_interval", "make_timestamp", "md5", "max", "min", "mod", "now", "nth_value", "ntile", "nullif",
    "octet_length", "overlay", "percent_rank", "percentile_cont", "percentile_disc", "pg_backend_pid",
    "pg_is_in_recovery", "pg_sleep", "position", "power", "random", "rank", "regexp_match", "regexp_matches",
    "regexp_replace", "repeat", "replace", "reverse", "right", "round", "row_number", "row_to_json", "rpad",
    "rtrim", "sign", "split_part", "sqrt", "statement_timestamp", "stddev", "string_agg", "string_to_array",
    "strpos", "substr", "substring", "sum", "to_char", "to_date", "to_json", "to_jsonb", "to_number",
    "to_timestamp", "to_tsquery", "to_tsvector", "translate", "transaction_timestamp", "trim", "trunc", "unnest",
    "upper", "variance", "version", "websearch_to_tsquery", "width_bucket",
})  # fmt: skip
"""Functions of PostgreSQL that change nothing in the session."""

_PREPARE = re.compile(r"\bprepare\b", re.IGNORECASE)

_verdicts: dict[str, bool] = {}
_MOST, _LONGEST = 2000, 20_000


def leaves_nothing(text: object) -> bool:
    """Return whether a statement certainly leaves nothing behind: one read, or the begin or end of a transaction.

    A read calls only functions of PostgreSQL that are known to change nothing, as far as its text says. Any doubt is a
    False. What a view, an operator, a cast or a policy of row level security calls does not show in the text.
    """
    if type(text) is not str:
        return False
    found = _verdicts.get(text)
    if found is None:
        found = len(text) <= _LONGEST and _judge(text)
        if len(_verdicts) >= _MOST:
            _verdicts.clear()
        if len(text) <= _LONGEST:
            _verdicts[text] = found
    return found


def prepares(text: object) -> bool:
    """Return whether a text may create a prepared statement by SQL, which has no reset that spares the driver's own."""
    return not isinstance(text, str) or _PREPARE.search(text) is not None


def _judge(text: str) -> bool:
    words = _tokens(text)
    if words is None:
        return False
    while words and words[-1] == ";":
        words.pop()
    if not words:
        return True
    if ";" in words:
        return False
    first = words[0]
    if first in _TRANSACTION:
        return "prepared" not in words and "prepare" not in words  # two-phase commits outlive the session
    if first == "(":
        first = next((word for word in words if word != "("), "")
    return first in _READS and _only_reads(words)


def _only_reads(words: list[str]) -> bool:
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if word in _CHANGES:
            if not (word == "update" and before in ("for", "key")):  # locks that end with the transaction
                return False
        elif word == "(" and not _may_precede(words, place):
            return False
    return True


def _may_precede(words: list[str], place: int) -> bool:
    """Return whether what stands before a parenthesis makes no call, or a call that changes nothing."""
    if place == 0:
        return True
    name = words[place - 1]
    if name == '"':
        return False  # a quoted name
    if not _is_word(name):
        return True  # an operator, a comma, another parenthesis
    if place >= 2 and words[place - 2] == ".":
        return place >= 3 and words[place - 3] == "pg_catalog" and name in _PURE
    if name in _BEFORE_PARENTHESIS or name in _PURE:
        return True
    before = words[place - 2] if place >= 2 else ""
    if name in _AFTER:
        return before in _AFTER[name]
    if name in ("join", "like", "ilike"):  # between two operands
        return before in _OPERANDS or (_is_word(before) and before not in _EXPECT)
    if name in ("rollup", "cube"):
        return before == "by" and words[place - 3] == "group"
    if name == "materialized":
        return before == "as" or (before == "not" and words[place - 3] == "as")
    # WITH name (column, ...) AS, and an alias with columns: AS name (column, ...)
    return before in ("as", "with", "recursive")


def _is_word(token: str) -> bool:
    return token[:1].isalpha() or token[:1] == "_" or token[:1] > "\x7f"


def _tokens(text: str) -> list[str] | None:
    """Return the words in lower case, quoted names as ``"``, no strings and comments. None: the text has no end."""
    words: list[str] = []
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        assert match is not None
        kind, token = match.lastgroup, match.group()
        end: int | None = match.end()
        if kind == "comment":
            end = _end_of_comment(text, match.end())
        elif kind == "dollar":
            found = text.find(token, match.end())
            end = None if found < 0 else found + len(token)
            words.append("$")
        elif kind == "string":
            if "\\" in text:  # it may escape a quote, depending on a setting of the session
                return None
            end = _end_of_quote(text, match.end(), "'")
            words.append("'")
        elif kind == "quoted":
            end = _end_of_quote(text, match.end(), '"')
            words.append('"')
        elif kind != "space":
            words.append(token.lower() if token.isascii() else token)  # the Kelvin sign is no "k"
        if end is None:
            return None
        place = end
    return words


def _end_of_quote(text: str, place: int, quote: str) -> int | None:
    while True:
        place = text.find(quote, place)
        if place < 0:
            return None
        if text[place + 1 : place + 2] != quote:
            return place + 1
        place += 2


def _end_of_comment(text: str, place: int) -> int | None:
    depth = 1  # PostgreSQL's comments may be nested
    while depth:
        opened, closed = text.find("/*", place), text.find("*/", place)
        if closed < 0:
            return None
        if 0 <= opened < closed:
            depth, place = depth + 1, opened + 2
        else:
            depth, place = depth - 1, closed + 2
    return place
