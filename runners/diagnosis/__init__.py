"""What an exception means for a context (D4): judged by its type, CUDA's code, a probe of the device, or NVML; and network errors."""
