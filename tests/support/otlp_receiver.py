"""A small OTLP/HTTP receiver that prints each span as a line of JSON. Run as a program, it serves on loopback.

It prints its address first, then for each span the JSON form of `Span`, the resource's attributes and the headers of
the request.
"""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Receiver(BaseHTTPRequestHandler):
    """Accepts `POST /v1/traces`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/v1/traces":
            self.send_error(404)
            return
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = {each.key: MessageToDict(each.value) for each in group.resource.attributes}
            for spans in group.scope_spans:
                for span in spans.spans:
                    line = {"resource": resource, "headers": dict(self.headers.items()), "span": MessageToDict(span)}
                    line["span"] |= {
                        "traceId": span.trace_id.hex(),
                        "spanId": span.span_id.hex(),
                        "parentSpanId": span.parent_span_id.hex(),
                    }
                    print(json.dumps(line), flush=True)
        response = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)

    def log_message(self, *_: object) -> None:
        """Print nothing but spans."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
