"""What an exception means: by its type, its code, a probe of the device, and what NVML says of it; and of a network's failures."""
