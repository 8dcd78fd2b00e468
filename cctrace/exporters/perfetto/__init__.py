"""A run as a Perfetto trace."""

from cctrace.exporters.perfetto.trace import write_perfetto

__all__ = ["write_perfetto"]
