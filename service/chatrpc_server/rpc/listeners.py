"""Builds gRPC servers: options, ports, TLS."""

from collections.abc import Sequence

import grpc

from chatrpc_server.process import ports
from chatrpc_server.rpc import accept_loop
from chatrpc_server.settings import Address, LimitsSettings


def server(
    limits: LimitsSettings, *, shares_port: bool, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
) -> grpc.aio.Server:
    """Return a server that does not listen yet. `shares_port`: see `listen`."""
    options = [
        # grpc's default is on: a second server on the same port would start too and receive half of the connections.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        # Calls above this value wait unseen in the client. Twice the limit, so that admission rejects with a reason.
        ("grpc.max_concurrent_streams", 2 * limits.max_in_flight),
        # Detect callers that vanished without closing. Allow pings from callers while a model thinks.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients ping every 10 s at most (gRPC for Go allows no less); the rest is jitter.
        ("grpc.http2.min_ping_interval_without_data_ms", 8_000),
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
