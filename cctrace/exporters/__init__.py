"""A run in the formats of other tools: each module a pure function of runs."""
