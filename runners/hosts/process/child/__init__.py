"""What runs in a context process, and in the fork server that it comes from. No Trio."""
