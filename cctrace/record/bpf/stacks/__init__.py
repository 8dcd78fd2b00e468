"""Stacks that BPF walked: taken out of the kernel, named, and made into rows."""
