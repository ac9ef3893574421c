"""Tokens: how many, of which kind, for whom, and what they cost."""

from panel import Panel, high
from queries import MODEL, UPSTREAM, increase, quantile, rate, share

TITLE = "Tokens and cost"

PAID = 'gen_ai_token_type=~"input|output"'
"""The other kinds are part of these."""
_BY_MODEL = "gen_ai_request_model"
_TOKENS = "chatrpc_tokens_total"


def _of(kind: str) -> str:
    return rate(_TOKENS, f'{MODEL}, gen_ai_token_type="{kind}"', _BY_MODEL)


COST_BY_MODEL = (
    f"3600 / 1e6 * (({_of('input')} - {_of('cached_input')}) * $price_input"
    f" + {_of('cached_input')} * $price_cached + {_of('output')} * $price_output)"
)
"""An hour at the present rate. Prices are for a million tokens; reasoning is paid as output, of which it is part."""

PANELS = (
    Panel(
        "Tokens by kind",
        "Tokens a second as the upstreams report them. cached_input is part of input, reasoning is part of output.",
        "Input rises and calls do not: prompts have grown. Reasoning near output: little of it reaches callers.",
        "short",
        {"{{gen_ai_token_type}}": rate(_TOKENS, MODEL, "gen_ai_token_type")},
    ),
    Panel(
        "Tokens by model",
        "Input and output tokens a second. `other` are models without a label of their own (`models`).",
        "Much of `other`: name these models in the settings, to see what they cost.",
        "short",
        {"{{gen_ai_request_model}}": rate(_TOKENS, f"{MODEL}, {PAID}", _BY_MODEL)},
        kind="bars",
    ),
    Panel(
        "Cost an hour by model",
        "At the present rate and at the prices for a million tokens that are set above, which are examples until you "
        "set your own. They apply to all chosen models alike: choose one model for its own prices.",
        "More than you mean to spend.",
        "currencyUSD",
        {"{{gen_ai_request_model}}": COST_BY_MODEL},
        kind="bars",
    ),
    Panel(
        "Tokens by model and kind",
        "Tokens in the time range above.",
        "A model that nobody should use any more.",
        "short",
        {"": increase(_TOKENS, MODEL, "gen_ai_request_model, gen_ai_token_type")},
        kind="table",
        instant=True,
        columns={"gen_ai_request_model": "Model", "gen_ai_token_type": "Kind", "Value": "Tokens"},
    ),
    Panel(
        "Tokens of a call",
        "Input and output tokens of one call: the half and 95 % of the calls have at most as many.",
        "Input p95 near the model's context: calls will be refused or cut.",
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
        "Share of input tokens that the upstream had in its cache, which are cheaper.",
        "A fall: something near the start of the prompts has begun to change from call to call.",
        "percentunit",
        {"{{gen_ai_request_model}}": share(_of("cached_input"), _of("input"))},
        none="no tokens",
    ),
    Panel(
        "Abandoned tokens",
        "Tokens a second that were spent on calls whose caller had gone. Most of these calls end without any usage: "
        "see the chunks beside this.",
        "Over 10 % of all tokens: paid for, read by nobody.",
        "short",
        {"{{gen_ai_token_type}}": rate("chatrpc_abandoned_tokens_total", f"{MODEL}, {PAID}", "gen_ai_token_type")},
    ),
    Panel(
        "Abandoned chunks",
        "Chunks a second of streams whose caller had gone before their end, by model.",
        "A rise: callers give up; compare with 'Time to first chunk' and 'Deadlines of callers'.",
        "cps",
        {"{{gen_ai_request_model}}": rate("chatrpc_abandoned_chunks_total", MODEL, _BY_MODEL)},
    ),
    Panel(
        "Usage missing",
        "Share of calls with an answer for which the upstream reported no usage: all figures of tokens lack these.",
        "Over 5 %: the figures of tokens and cost are too low by about as much.",
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
        "Choices by why the model stopped.",
        "length: answers are cut at max_tokens. content_filter: the provider withheld them.",
        "cps",
        {"{{finish_reason}}": f"{rate('chatrpc_finish_reasons_total', MODEL, 'finish_reason')} > 0"},
        kind="bars",
        colours={"stop": "green", "call": "blue", "length": "orange", "content_filter": "red", "other": "purple"},
        width=24,
        height=7,
        none="no answers",
    ),
)
