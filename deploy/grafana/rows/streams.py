"""Streams: first chunk, pace, outcome, and backpressure of callers."""

from panel import QUANTILES, Panel, high
from queries import MODEL, MODEL_AND_UPSTREAM, SERVICE, quantile, quantiles, rate, share

TITLE = "Streams"

_FIRST = "gen_ai_client_operation_time_to_first_chunk_seconds"
_GAP = "gen_ai_client_operation_time_per_output_chunk_seconds"

PANELS = (
    Panel(
        "Time to first chunk, distribution",
        "Streams by time to their first chunk; brighter cells hold more streams.",
        "A second band above the first: some calls wait for a rate limit, a cold model or a retry.",
        "s",
        {"{{le}}": f"sum by (le) (increase({_FIRST}_bucket{{{MODEL_AND_UPSTREAM}}}[$__rate_interval]))"},
        kind="heatmap",
        width=12,
        none="no streams",
    ),
    Panel(
        "Time to first chunk",
        "From the start of a stream to its first chunk.",
        "p95 over 2.5 s, the target.",
        "s",
        quantiles(_FIRST, MODEL_AND_UPSTREAM),
        colours=QUANTILES,
        steps=high(1.5, 2.5),
        width=12,
        none="no streams",
    ),
    Panel(
        "Time to first chunk by model, p95",
        "95 % of the streams of a model have their first chunk within this time.",
        "One model over 2.5 s while the others are not.",
        "s",
        {"{{gen_ai_request_model}}": quantile(95, _FIRST, MODEL_AND_UPSTREAM, "gen_ai_request_model")},
        steps=high(1.5, 2.5),
        none="no streams",
    ),
    Panel(
        "Time between deliveries",
        "Wait for each delivery of chunks after the first. Chunks that arrive together are one delivery.",
        "p95 over 0.3 s: the text stutters.",
        "s",
        quantiles(_GAP, MODEL),
        colours=QUANTILES,
        steps=high(0.3, 1),
        none="no streams",
    ),
    Panel(
        "Streams by outcome",
        "Ended streams per second, by outcome.",
        "upstream_truncated, upstream_error, idle_timeout: the upstream. service_error, worker_exited: ours. deadline: "
        "callers' deadlines are too short. drain: the drain grace is too short. rejected: limits, invalid requests.",
        "reqps",
        {"{{outcome}}": f"{rate('chatrpc_streams_ended_total', by='outcome')} > 0"},
        kind="bars",
        colours={
            "complete": "green",
            "client_cancel": "blue",
            "deadline": "yellow",
            "idle_timeout": "orange",
            "upstream_error": "red",
            "upstream_truncated": "dark-red",
            "service_error|worker_exited": "purple",
            "drain|rejected": "light-blue",
        },
        none="no streams",
    ),
    Panel(
        "Chunks",
        "Chunks received per second, by model.",
        "A fall at the same number of streams: the model writes more slowly.",
        "cps",
        {"{{gen_ai_request_model}}": rate("chatrpc_stream_chunks_total", MODEL, "gen_ai_request_model")},
    ),
    Panel(
        "Bytes to callers",
        "Bytes per second of the messages sent in streams, by model.",
        "No value is bad by itself; compare it with the network's limits.",
        "Bps",
        {"{{gen_ai_request_model}}": rate("chatrpc_stream_bytes_total", MODEL, "gen_ai_request_model")},
    ),
    Panel(
        "Chunks per message",
        "Upstream chunks per message to a caller, because chunks that arrive together are merged.",
        "A rise: the upstream or a proxy before it sends in bursts, or the service is too busy to read at once.",
        "short",
        {
            "chunks": share(
                rate("chatrpc_stream_chunks_total"),
                rate("grpc_server_msg_sent_total", f'{SERVICE}, grpc_type="server_stream"'),
            )
        },
        none="no streams",
    ),
    Panel(
        "Backpressure",
        "Time that each stream waited to write to its caller.",
        "p95 over 1 s: callers, or the network to them, are slower than the model.",
        "s",
        quantiles("chatrpc_backpressure_wait_seconds"),
        colours=QUANTILES,
        steps=high(1, 5),
        none="no streams",
    ),
    Panel(
        "Messages",
        "Messages received from and sent to callers per second.",
        "Sent falls and received does not: responses are missing.",
        "cps",
        {
            "received": rate("grpc_server_msg_received_total"),
            "sent, unary": rate("grpc_server_msg_sent_total", f'{SERVICE}, grpc_type="unary"'),
            "sent, streams": rate("grpc_server_msg_sent_total", f'{SERVICE}, grpc_type="server_stream"'),
        },
        width=16,
    ),
)
