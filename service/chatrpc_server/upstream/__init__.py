"""The outbound edge: everything that speaks HTTP to an upstream, and nothing that speaks gRPC."""
