"""The words of error messages: their meaning, if no code has one, and the waiting times that they name.

A message can quote the request, so quoted text does not count, and a pattern is a phrase that states the error. A
phrase counts only beside the HTTP statuses that fit it.
"""

import re

from chatrpc_server.core.openai.error_codes import BY_STATUS, Meaning

_EXAMINED_CHARACTERS = 2000
_IN_SUCCESS = 0
"""Stands for the status of an error that names none."""

_PATTERNS: tuple[tuple[Meaning, frozenset[int], str], ...] = (
    # meaning, statuses beside which the words count, patterns
    (
        Meaning.CONTEXT_LENGTH,
        frozenset({_IN_SUCCESS, 400, 413, 422, 500, 502}),
        r"maximum (context|prompt) (length|window)|max(imum)? (model|sequence) (length|len)\b"
        r"|context (length|window|size) (of|is|limit)"
        r"|exceed\w* (the |this |its |your )?(\w+'?s? )?(available |maximum |max |model'?s? |configured )*context"
        r"|context[ _](length|window|size)[ _]exceed|context (length|window|size) (has been )?exceeded"
        r"|(prompt|input|length of all messages) is too long|prompt tokens? too long|prompt too long"
        r"|(prompt|input|message)s? (\w+ )?(\([^)]*\) )?exceeds? (the )?(max|model|context|token limit)"
        r"|too many (input |prompt )?tokens|reduce the length of (the|your) (messages|prompt|input)"
        r"|tokens? (count )?\(?[\d,]+\)? exceeds? the max|range of input length should be"
        r"|tokens \+ .{0,40}must be <=|must have less than \d+ tokens|token count (of )?.{0,30}exceeds"
        r"|input token count is .{0,30} but|exceed\w* (the )?(model )?token limit|exceeds? max message tokens"
        r"|(longer|greater) than the (model's |maximum )?(context|model)|context (window|length) exceeds"
        r"|more tokens than the context|cannot truncate prompt",
    ),
    (
        Meaning.CONTENT_FILTER,
        frozenset({_IN_SUCCESS, 400, 403, 422}),
        r"inappropriate content|content management policy"
        r"|content (filter|policy|moderation)\w* (violation|triggered|blocked)"
        r"|(unsafe|sensitive|risky|prohibited) (or \w+ )?(content|words)|content exists risk|considered high.risk"
        r"|(flagged|blocked|rejected) (by|as) .{0,40}(safety|moderation|content|usage polic)"
        r"|violat\w+ .{0,40}((usage|content) polic|guidelines)|content .{0,40}is blocked"
        r"|requires moderation|input new_sensitive|output new_sensitive|不安全|敏感",
    ),
    (
        Meaning.NO_MONEY,
        frozenset({_IN_SUCCESS, 400, 403, 429, 500, 503}),
        r"exceeded (today's|your (current|daily|monthly|weekly|free)) (\w+ )?quota|credits are depleted|depleted your"
        r"|(reached|exceeded|hit) your .{0,30}(usage|monthly|weekly|daily|spend\w*) (limit|quota|budget)"
        r"|(insufficient|not enough|low|no|negative)( account)? (balance|credits?|funds|quota)\b"
        r"|balance is (insufficient|too low|not enough|negative)|(credit|account) balance (is )?(too low|insufficient)"
        r"|(run|ran) out of (credits?|funds|balance)|(out of|no more|not enough|requires more) credits"
        r"|(check|update) your (plan and )?billing|account is not active|(is|are) in arrears|overdue (payment|balance)"
        r"|account .{0,30}(in good standing|suspended due to)|budget has been exceeded"
        r"|spend(ing)? limit (reached|exceeded)"
        r"|(monthly|daily|weekly) (spending|usage|included) (limit|credits|quota)|please (recharge|top up)"
        r"|余额不足|欠费|额度不足|额度已用尽|请充值",
    ),
    (
        Meaning.RATE_LIMIT,
        frozenset({_IN_SUCCESS, 403, 500, 502, 503}),
        r"(rate|request|qps|tpm|rpm|concurrency|call)s?[ -]limit\w* (\w+ ){0,3}(reached|exceeded|hit|exceed)"
        r"|(reached|exceed\w*|hit|over) (\w+ ){0,3}(rate|request|qps|tpm|rpm|concurrency|call)s?[ -]limit"
        r"|rate[ -]limited"
        r"|request limit reached|too many (requests|concurrent)|requests? (are |is )?too frequent|throttl(ed|ing)\b"
        r"|请求过于频繁|速率限制|并发",
    ),
    (
        Meaning.OVERLOAD,
        frozenset({_IN_SUCCESS, 429, 500, 502, 503}),
        r"(is|are|currently|temporarily|been|engine|server|model|service|system) overloaded|capacity exceeded"
        r"|(at|over) capacity"
        r"|(server|system|service|engine|model)s? (is |are )?(currently |temporarily |too )*busy"
        r"|high (demand|load|traffic)\b"
        r"|no capacity|繁忙|过载|负载",
    ),
    (
        Meaning.MODEL,
        frozenset({_IN_SUCCESS, 400, 404, 422, 503}),
        r"\bmodel\b(?:[^.!?;]|\.(?=\w)){0,80}?(does not exist|doesn't exist|not exists?\b|not found|is not available"
        r"|is not loaded|has been (deprecated|decommissioned|retired)|is not enabled|is not served)"
        r"|\bmodel +(is )?not support(ed)?\b|\bmodels?/\S+ is not found|no endpoints found for|^\s*model: \S+\s*$"
        r"|(unknown|invalid|unsupported|no such|non-existent) model\b|not a valid model"
        r"|no models? (loaded|found|available)"
        r"|could not find model|unable to access model|no (available )?channels? .{0,20}for model"
        r"|model .{0,40}(不存在|无可用渠道)|模型.{0,80}(不存在|无可用渠道)|无可用渠道",
    ),
    (
        Meaning.KEY,
        frozenset({_IN_SUCCESS, 400, 403, 500}),
        r"(incorrect|invalid|expired|missing|wrong) (api[ -]?key|access token|authentication token|credentials)"
        r"|api[ -]?key (is )?(not valid|invalid|incorrect|expired|missing|required)|not authorized / token",
    ),
    (
        Meaning.UNAVAILABLE,
        frozenset({_IN_SUCCESS}),
        r"model is (currently )?loading|loading model|service (is )?(temporarily )?unavailable|temporarily unavailable",
    ),
    (Meaning.TIMEOUT, frozenset({_IN_SUCCESS}), r"timed out|request timeout|time-?out exceeded"),
)
_COMPILED = tuple((meaning, statuses, re.compile(pattern, re.IGNORECASE)) for meaning, statuses, pattern in _PATTERNS)
_QUOTED = re.compile(r""""[^"]*"|`[^`]*`|“[^”]*”|「[^」]*」|«[^»]*»|(?<!\w)'(?:[^']|(?<=\w)'(?=\w))*'(?!\w)""")
_QUOTED_MESSAGE = re.compile(r"""\{.{0,200}?(['"])(?:message|error|detail|msg)\1\s*:\s*(['"])(.*)""", re.DOTALL)
"""The message inside of JSON or of a Python dictionary, which LiteLLM puts into messages."""
_WAIT = re.compile(
    r"\b(?:again|retry|wait|reset)\w*(?: after| in| for| within)* +(?:about |approximately )?"
    r"((?:\d+(?:\.\d+)? *(?:ms|milliseconds?|s|sec|secs|seconds?|m|min|mins|minutes?|h|hours?|d|days?)\b *,?(?:and )?)+"
    r"|(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+)",
    re.IGNORECASE,
)
"""OpenAI and Groq: "try again in 6m0s", "1.5s", "20ms"; Azure: "retry after 26 seconds"; Gemini: "retry in 2.5s"."""
_HTTP_STATUS = re.compile(
    r"(?:^|\b(?:error|status|status code|http|code)[: ]+)([45]\d\d)(?=$|[ :,.-]+\D)", re.IGNORECASE
)
"""An HTTP status in words: "Error code: 429 - ...", "502 Bad Gateway"."""
_PART = re.compile(r"(\d+(?:\.\d+)?) *(ms|milli|s|m|h|d)", re.IGNORECASE)
_UNITS = {"ms": 0.001, "milli": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def statement(message: str) -> str:
    """Return the message without the texts that it quotes, because they can be those of a user."""
    message = message[:_EXAMINED_CHARACTERS]
    inner = _QUOTED_MESSAGE.search(message)
    if inner:
        message = message[: inner.start()] + " " + inner[3].rpartition(inner[2])[0]
        message = re.split(rf"(?<!\\){inner[2]}\s*[,}}]", message)[0]
    return _QUOTED.sub(" ", message)


def meaning(text: str, status: int | None) -> Meaning | None:
    """Return the meaning of a `statement` beside this HTTP status. None stands for no known status."""
    place = status if status in BY_STATUS else _IN_SUCCESS
    for found, statuses, pattern in _COMPILED:
        if place in statuses and pattern.search(text):
            return found
    return None


def http_status(text: str) -> int | None:
    """Return the HTTP status that a `statement` names, or None."""
    found = _HTTP_STATUS.search(text)
    return int(found[1]) if found else None


def waiting_seconds(text: str) -> float | None:
    """Return the time to wait that a `statement` names, or None."""
    found = _WAIT.search(text)
    return duration(found[1]) if found else None


def duration(text: str) -> float | None:
    """Return the seconds of a duration such as `34s`, `20ms` or `1m2.5s`, or None if the text is none."""
    parts = _PART.findall(text)
    return sum(float(number) * _UNITS[unit.lower()] for number, unit in parts) if parts else None
