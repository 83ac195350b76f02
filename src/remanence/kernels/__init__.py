"""Kernels that are faster on a CPU: what `MemoryModel.optimize_for_cpu` puts into a decoder, and takes out again."""
