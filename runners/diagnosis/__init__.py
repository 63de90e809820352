"""What an exception means for a context: by its type, by CUDA's code, by a probe of the device, by NVML, or as a network's failure."""
