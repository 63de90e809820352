"""The parent of context processes: it starts and reaps them, logs their output, and keeps processes ready between incarnations."""
