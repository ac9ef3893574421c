"""Resources of the operating system: worker processes, signals, TCP ports."""
