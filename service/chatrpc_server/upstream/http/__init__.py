"""HTTP to the upstream: the port `transport`, and two clients that implement it."""
