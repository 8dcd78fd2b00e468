"""BPF sources: what the kernel sees of the target, through BCC.

``probes`` compiles the programs of the families asked for and drains their ring;
each family (``sched``, ``swiotlb``, ``cuda/``...) attaches its programs and turns
its records into table rows. Nothing here runs per event.
"""
