"""The leaf that holds a device: a stable, addressable worker over a restartable context."""
