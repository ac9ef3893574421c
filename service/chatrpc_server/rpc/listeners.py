"""Builds gRPC servers: options, ports, TLS."""

from collections.abc import Sequence

import grpc

from chatrpc_server.process import ports
from chatrpc_server.rpc import accept_loop
from chatrpc_server.settings import Address, LimitsSettings

_MIN_PING_INTERVAL_MILLISECONDS = 8_000
"""Clients ping every 10 s at most (gRPC for Go allows no less); the rest is jitter."""
_MIN_PENDING_CALLS = 20_000
"""Calls that gRPC holds at least while the event loop is busy: 15 KiB each. Admission rejects what it cannot take."""
_MAX_PENDING_SECONDS = 600
_MAX_METADATA_BYTES = (64 + 8) << 10
"""64 KiB of the caller's metadata. The rest is for gRPC's own headers, and HPACK counts 32 bytes for each entry."""


def server(
    limits: LimitsSettings,
    *,
    shares_port: bool,
    max_connections: int,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> grpc.aio.Server:
    """Return a server that does not listen yet. `shares_port`: see `listen`."""
    enough = min(2 * limits.max_in_flight, (1 << 31) - 1)  # the largest number of an option
    streams = limits.max_streams_per_connection or enough
    pending = max(_MIN_PENDING_CALLS, enough)
    options = [
        # grpc's default is on: a second server on the same port would start too and receive half of the connections.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        # Further connections are closed at once, because each occupies a file descriptor.
        ("grpc.max_allowed_incoming_connections", max_connections),
        # Calls above this value wait unseen in the client. Twice the limit, so that admission rejects with a reason.
        ("grpc.max_concurrent_streams", streams),
        # Streams that gRPC has not yet freed count too; above this value it refuses new ones with REFUSED_STREAM.
        ("grpc.http2.max_deallocating_streams", streams),
        # Above its defaults (1,000 calls, 30 s) gRPC cancels calls that wait to be accepted: without a reason, and by
        # chance if the two limits differ.
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", pending),
        ("grpc.server_max_unrequested_time_in_server", _MAX_PENDING_SECONDS),
        # Equal limits, because gRPC rejects by chance between the first (default 8 KiB) and the second.
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
        # Detect callers that vanished without closing. Allow pings from callers while a model thinks.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # No estimate of the bandwidth. On fast networks it raises the window of a stream to many MiB, which a caller
        # then sends before the message is read. While it is read, the window is as large as the message.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MILLISECONDS),
        # Bound the age, because long-lived connections never reach new replicas. Open calls continue beyond it.
        ("grpc.max_connection_age_ms", round(limits.max_connection_age_seconds * 1000)),
        ("grpc.max_connection_idle_ms", 900_000),
    ]
    return accept_loop.create(interceptors, options)


def listen(
    server: grpc.aio.Server,
    setting: str,
    address: Address,
    *,
    shares_port: bool,
    credentials: grpc.ServerCredentials | None = None,
) -> Address:
    """Bind the address to the server; return it with the actual port. Raises `StartError`.

    `shares_port`: other processes of this user can listen on it too; the kernel distributes the connections.
    """
    if not shares_port:
        ports.check_free(setting, address)
    try:
        if credentials:
            port = server.add_secure_port(str(address), credentials)
        else:
            port = server.add_insecure_port(str(address))
    except RuntimeError as error:
        raise ports.cannot_listen(setting, address, error) from None
    return Address(address.host, port)
