"""The inbound edge: all gRPC code. It contains no HTTP."""
