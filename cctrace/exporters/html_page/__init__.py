"""The report as one HTML page that needs nothing else: no server, no network.

    data.py       what the page shows of the run as a whole, by SQL
    timelines.py  what it shows of some steps
    page.py       data, style and scripts into one file
    page.html     the frame; page.css, *.js   its style and what runs in it

Everything the traced program wrote goes into the page as JSON, and from there into the
document as text. A Content-Security-Policy lets only the page's own scripts run, and
nothing be fetched.
"""

from cctrace.exporters.html_page.data import BINS, chosen_steps, copy_tolls, step_lengths
from cctrace.exporters.html_page.page import render
from cctrace.exporters.html_page.timelines import step_timelines

__all__ = ["BINS", "chosen_steps", "copy_tolls", "render", "step_lengths", "step_timelines"]
