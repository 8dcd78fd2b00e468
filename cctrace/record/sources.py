"""The names of the sources, apart from the code that attaches them.

The command line needs the names before anything that starts threads is imported.
"""

from __future__ import annotations

from typing import Final

# In the order of the flow: the program, its CUDA calls, the kernel below.
SOURCES: Final = {
    "nvtx": "NVTX ranges and marks",
    "processes": "processes and threads of the target",
    "cuda": "CUDA runtime, driver and NCCL calls",
    "sched": "when threads were off the CPU, and why",
    "swiotlb": "bounces through the kernel's SWIOTLB buffers",
    "page_conversion": "pages converted between shared and private",
    "uvm_crypto": "encryption by nvidia-uvm",
    "user_crypto": "encryption by libcrypto under the CUDA driver (frequent)",
    "tdx": "exits of a TDX guest, by reason",
    "dma": "DMA mappings, by device and direction",
    "ioctl": "the request that tells that libcuda encrypts by itself",
}
# Frequent, and of use to few: recorded where asked for by name.
OPT_IN: Final = frozenset({"user_crypto", "dma"})
DEFAULT_SOURCES: Final = tuple(name for name in SOURCES if name not in OPT_IN)
# Recorded where the machine has what they watch; that it has not is no news.
WHERE_PRESENT: Final = frozenset(
    {"swiotlb", "page_conversion", "uvm_crypto", "tdx", "dma", "ioctl"}
)
LAUNCH_MODES: Final = ("auto", "full", "aggregate")
STACK_MODES: Final = ("none", "crossings", "all")
