"""Tokens by kind and model, and their cost."""

from panel import Panel, high
from queries import MODEL, UPSTREAM, increase, quantile, rate, share

TITLE = "Tokens and cost"

PAID = 'gen_ai_token_type=~"input|output"'
"""The kinds that have a price. The other kinds are part of these two."""
_BY_MODEL = "gen_ai_request_model"
_TOKENS = "chatrpc_tokens_total"


def _of(kind: str) -> str:
    return rate(_TOKENS, f'{MODEL}, gen_ai_token_type="{kind}"', _BY_MODEL)


COST_BY_MODEL = (
    f"3600 / 1e6 * (({_of('input')} - {_of('cached_input')}) * $price_input"
    f" + {_of('cached_input')} * $price_cached + {_of('output')} * $price_output)"
)
"""Cost of an hour at the present rate. Prices are per million tokens; reasoning is part of output."""

PANELS = (
    Panel(
        "Tokens by kind",
        "Tokens per second, as reported by the upstreams. cached_input is part of input, reasoning is part of output.",
        "Input rises and calls do not: longer prompts. Reasoning near output: callers receive little of the output.",
        "short",
        {"{{gen_ai_token_type}}": rate(_TOKENS, MODEL, "gen_ai_token_type")},
    ),
    Panel(
        "Tokens by model",
        "Input and output tokens per second. `other` are models without their own label (`models`).",
        "Much of `other`: name these models in the settings to see their cost.",
        "short",
        {"{{gen_ai_request_model}}": rate(_TOKENS, f"{MODEL}, {PAID}", _BY_MODEL)},
        kind="bars",
    ),
    Panel(
        "Cost per hour by model",
        "At the present rate and the prices of a million tokens that are set above. The prices are examples until you "
        "set your own. They apply to all selected models alike: select one model and set its own prices.",
        "More than your budget.",
        "currencyUSD",
        {"{{gen_ai_request_model}}": COST_BY_MODEL},
        kind="bars",
    ),
    Panel(
        "Tokens by model and kind",
        "Tokens in the time range above.",
        "A model that should not be in use any more.",
        "short",
        {"": increase(_TOKENS, MODEL, "gen_ai_request_model, gen_ai_token_type")},
        kind="table",
        instant=True,
        columns={"gen_ai_request_model": "Model", "gen_ai_token_type": "Kind", "Value": "Tokens"},
    ),
    Panel(
        "Tokens per call",
        "Input and output tokens of one call: p50 and p95.",
        "Input p95 near the model's context size: calls will be rejected or cut.",
        "short",
        {
            f"p{percent} {{{{gen_ai_token_type}}}}": quantile(
                percent, "gen_ai_client_token_usage", f"{MODEL}, {PAID}", "gen_ai_token_type"
            )
            for percent in (50, 95)
        },
        none="no calls",
    ),
    Panel(
        "Cached share of input",
        "Share of input tokens from the upstream's cache, which are cheaper.",
        "A fall: the start of the prompts now differs from call to call.",
        "percentunit",
        {"{{gen_ai_request_model}}": share(_of("cached_input"), _of("input"))},
        none="no tokens",
    ),
    Panel(
        "Abandoned tokens",
        "Tokens per second that were spent on calls whose caller had disconnected. Most of these calls end without "
        "usage, so see also 'Abandoned chunks'.",
        "Over 10 % of all tokens: they are paid for, and no caller reads them.",
        "short",
        {"{{gen_ai_token_type}}": rate("chatrpc_abandoned_tokens_total", f"{MODEL}, {PAID}", "gen_ai_token_type")},
    ),
    Panel(
        "Abandoned chunks",
        "Chunks per second of streams whose caller disconnected before their end, by model.",
        "A rise: callers give up; compare with 'Time to first chunk' and 'Caller deadlines'.",
        "cps",
        {"{{gen_ai_request_model}}": rate("chatrpc_abandoned_chunks_total", MODEL, _BY_MODEL)},
    ),
    Panel(
        "Usage missing",
        "Share of calls with a response but without usage from the upstream. All token figures lack these calls.",
        "Over 5 %: the token and cost figures are too low by about as much.",
        "percentunit",
        {
            "{{upstream}}": share(
                rate("chatrpc_usage_missing_total", UPSTREAM, "upstream"),
                rate("chatrpc_upstream_requests_total", f'{UPSTREAM}, code="200"', "upstream"),
            )
        },
        steps=high(0.01, 0.05),
        none="no requests",
    ),
    Panel(
        "Finish reasons",
        "Choices by finish reason.",
        "length: responses are cut at max_tokens. content_filter: the provider withheld text.",
        "cps",
        {"{{finish_reason}}": f"{rate('chatrpc_finish_reasons_total', MODEL, 'finish_reason')} > 0"},
        kind="bars",
        colours={"stop": "green", "call": "blue", "length": "orange", "content_filter": "red", "other": "purple"},
        width=24,
        height=7,
        none="no responses",
    ),
)
