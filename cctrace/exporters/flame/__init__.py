"""Flamegraphs of a run: which frames there are, their weights, and the files of each format.

    select (SQL reports) -> frames -> graph -> folded, svg, speedscope

All is a pure function of the run and the selection: the same run gives the same bytes.
Weights are whole numbers throughout, and those of the leaves add up to what the table
has for the weight: to the nanosecond or the byte. docs/flamegraph.md has the definitions.
"""
