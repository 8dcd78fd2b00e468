"""Times Holistic Trace Analysis on a Kineto trace, and prints its idle figures as JSON.

Run by benchmarks/attribution.py with a Python that has HolisticTraceAnalysis; stands
alone, since that Python has no cctrace.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import resource
import sys
import time
import warnings
from importlib.metadata import version


def main() -> int:
    """Load the trace named on the command line, break it down, print one JSON line."""
    warnings.filterwarnings("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        library = importlib.import_module("hta.trace_analysis")
        imported = time.perf_counter()
        analysis = library.TraceAnalysis(
            trace_files={0: sys.argv[1]}, include_last_profiler_step=True
        )
        loaded = time.perf_counter()
        temporal = analysis.get_temporal_breakdown(visualize=False)
        idle, _ = analysis.get_idle_time_breakdown(ranks=[0], visualize=False)
        done = time.perf_counter()
    figures = {
        "version": version("HolisticTraceAnalysis"),
        "import_s": imported - began,
        "load_s": loaded - imported,
        "analyse_s": done - loaded,
        "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "idle_us": float(temporal["idle_time(us)"].iloc[0]),
        "span_us": float(temporal["kernel_time(us)"].iloc[0]),
        "idle_by_stream_us": {
            str(stream): float(rows["idle_time"].sum()) for stream, rows in idle.groupby("stream")
        },
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
