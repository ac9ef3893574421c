"""What this process owns: worker processes, signals, TCP ports."""
