"""What a tree does when the system refuses one of its calls, takes long over it, or stops the process at it."""
