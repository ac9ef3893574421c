"""What Prometheus sees of the service: the instruments, their exporter, and how several processes share them."""
