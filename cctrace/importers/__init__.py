"""Traces of other tools as run directories: one module for each format.

A file goes through one pass that stages rows (``staging``), and a finish that adds
what only the whole file tells (nesting, which call started which GPU activity).
What is in the file and did not become a row is counted (``accounting``).
"""
