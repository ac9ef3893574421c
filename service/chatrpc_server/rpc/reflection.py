"""gRPC reflection in its versions v1 and v1alpha, whose messages have the same bytes.

grpcio-reflection serves v1alpha only, and its lookup finds no methods; `grpcurl describe` and ghz look methods up.
"""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_ALPHA, _STABLE = "grpc.reflection.v1alpha", "grpc.reflection.v1"
_FILE = "grpc/reflection/v1/reflection.proto"
NAMES = (f"{_STABLE}.ServerReflection", reflection.SERVICE_NAME)
"""The full names of the reflection services."""


class _Pool:
    """The descriptors of this process. It also finds the files of methods, fields and other members."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> object:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802
        """Return the file that declares a symbol. Raises KeyError."""
        find_field: Any = self._pool.FindFieldByName  # because the stubs lack the field's file
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            pass
        try:
            return self._pool.FindMethodByName(symbol).containing_service.file
        except KeyError:
            return find_field(symbol).file


def add(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Serve reflection of these services, given by full name, and of itself."""
    _declare_v1()
    servicer = reflection.aio.ReflectionServicer((*services, *NAMES), pool=_Pool())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAMES[0], handlers),))
    server.add_registered_method_handlers(NAMES[0], handlers)  # as generated code does


def _declare_v1() -> None:
    """Add the file of v1 to the descriptors unless another package has, so that v1 itself can be described."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_FILE)
    except KeyError:
        alpha = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
        text = text_format.MessageToString(alpha).replace(_ALPHA, _STABLE)
        stable = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
        stable.name = _FILE
        pool.AddSerializedFile(stable.SerializeToString())
