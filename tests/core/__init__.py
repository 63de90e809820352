"""The pure parts, without Trio."""
