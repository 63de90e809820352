"""The exit statuses of a context process after a failure. The guardian of another machine has the same numbers (D4)."""

FAILED = 70
"""EX_SOFTWARE: after any failure that is not settled, reported to the parent or not."""
SETTLED = 69
"""After a failure about which NVML need not be asked, such as a wrong path of a model."""
