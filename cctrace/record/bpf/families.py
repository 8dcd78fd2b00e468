"""Which families there are: one line makes a new one known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cctrace.record.bpf.cuda.source import Cuda, LaunchMode
from cctrace.record.bpf.dma import Dma
from cctrace.record.bpf.ioctl import Ioctl
from cctrace.record.bpf.kprobes import KernelFunctions, Kprobes
from cctrace.record.bpf.page_conversion import PageConversion
from cctrace.record.bpf.probes import Family
from cctrace.record.bpf.sched import Sched
from cctrace.record.bpf.stacks.collector import StackCollector
from cctrace.record.bpf.swiotlb import Swiotlb
from cctrace.record.bpf.tdx import Tdx
from cctrace.record.bpf.user_crypto import UserCrypto
from cctrace.record.bpf.uvm_crypto import UvmCrypto
from cctrace.record.losses import LossLedger


@dataclass(frozen=True)
class Wishes:
    """What is asked of the families.

    Attributes:
        launches: Of ``LAUNCH_MODES``.
        ledger: Takes losses.
        asked: Whether the user named the sources.
        stacks: Takes stacks; None: none are taken.
        kernel: The kernel's functions.
    """

    launches: LaunchMode
    ledger: LossLedger
    asked: bool = False
    stacks: StackCollector | None = None
    kernel: KernelFunctions = field(default_factory=KernelFunctions)

    @property
    def kprobes(self) -> Kprobes:
        """Kprobes for one family."""
        return Kprobes(self.kernel)


Maker = Callable[[Wishes], Family]

# By the name of the source.
FAMILIES: Final[Mapping[str, Maker]] = {
    "cuda": lambda wishes: Cuda(wishes.launches, wishes.ledger, wishes.stacks),
    "sched": lambda wishes: Sched(wishes.stacks),
    "swiotlb": lambda wishes: Swiotlb(wishes.ledger, wishes.kprobes),
    "page_conversion": lambda wishes: PageConversion(wishes.ledger, wishes.kprobes),
    "uvm_crypto": lambda wishes: UvmCrypto(wishes.ledger, wishes.kprobes),
    "user_crypto": lambda wishes: UserCrypto(wishes.ledger),
    "tdx": lambda wishes: Tdx(wishes.kprobes),
    "dma": lambda _: Dma(),
    "ioctl": lambda wishes: Ioctl(wishes.kprobes, asked=wishes.asked),
}


def make_families(sources: Sequence[str], wishes: Wishes) -> list[Family]:
    """The families of the sources asked for; names that are no family are left out."""
    return [make(wishes) for name, make in FAMILIES.items() if name in sources]
