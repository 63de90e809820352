"""What a tree does when the system refuses one of its calls for lack of descriptors, processes or memory."""
