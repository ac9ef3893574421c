"""Envoy's two configurations: a plain HTTP/1.1 proxy, and one that speaks gRPC to callers and JSON to the upstream.

A configuration follows Envoy's own examples, without access log and admin port. It cannot abort or reject a call of the
benchmark: it has no route timeout, and no connection limit below the benchmark's connections.
"""

from __future__ import annotations

import base64
from typing import Any

from google.api import annotations_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from chatrpc.v1 import chat_service_pb2

Json = dict[str, Any]
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
_MOST_AT_ONCE = 65_536


def plain(port: int, upstream_port: int) -> Json:
    """HTTP/1.1 in and out."""
    return _bootstrap(port, upstream_port, {"codec_type": "HTTP1"})


def transcoder(port: int, upstream_port: int) -> Json:
    """gRPC in, JSON over HTTP/1.1 out. Only the unary RPC, because the filter rejects the streaming one."""
    filter_ = {
        "name": "transcoder",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.filters.http.grpc_json_reverse_transcoder.v3.GrpcJsonReverseTranscoder",
            "descriptor_binary": base64.b64encode(_descriptors()).decode(),
        },
    }
    return _bootstrap(port, upstream_port, {"codec_type": "HTTP2"}, filter_)


def _bootstrap(port: int, upstream_port: int, manager: Json, *filters: Json) -> Json:
    router = {"name": "router", "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"}}
    # Use the caller's deadline: Envoy's own limit for a call is 15 seconds, and it obeys grpc-timeout only on request.
    route = {"cluster": "upstream", "timeout": "0s", "max_stream_duration": {"grpc_timeout_header_max": "0s"}}
    connections = {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "chat",
        **manager,
        "http_filters": [*filters, router],
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]},
            ]
        },
    }
    listener = {
        "address": _address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": connections}]}],
    }
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(upstream_port)}}]}],
        },
        # By default a cluster rejects more than 1024.
        "circuit_breakers": {
            "thresholds": [dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), _MOST_AT_ONCE)]
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _descriptors() -> bytes:
    """Return the contract with the annotation that the transcoder requires: the upstream's method and path."""
    files = FileDescriptorSet()
    _add(files, annotations_pb2.DESCRIPTOR)
    _add(files, chat_service_pb2.DESCRIPTOR)
    unary = files.file[-1].service[0].method[0]
    assert unary.name == "CreateChatCompletion"
    rule = unary.options.Extensions[annotations_pb2.http]
    rule.post, rule.body = "/v1/chat/completions", "*"
    files.file[-1].dependency.append(annotations_pb2.DESCRIPTOR.name)
    return files.SerializeToString()


def _add(files: FileDescriptorSet, file: FileDescriptor) -> None:
    """Adds a file after those that it imports, each once."""
    for imported in file.dependencies:
        _add(files, imported)
    if all(known.name != file.name for known in files.file):
        file.CopyToProto(files.file.add())
