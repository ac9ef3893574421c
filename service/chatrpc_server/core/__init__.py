"""The pure core: decisions and mappings. No grpc, no HTTP, no event loop, no clock, no environment in here."""
