"""The inbound edge: everything that speaks gRPC, and nothing that speaks HTTP."""
