"""HTTP towards the upstream: a port, `transport`, and two clients behind it."""
