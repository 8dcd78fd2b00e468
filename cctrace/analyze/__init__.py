"""What a run means: where its steps lose time, what of it can be had back, and how.

Reads a run through the SQL library alone. Nothing here prints, and nothing writes a run.
"""
