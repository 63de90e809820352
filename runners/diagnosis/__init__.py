"""The classification of exceptions (D4): by type, by CUDA's code, by a probe of the device and by NVML; and network errors."""
