-- _trace_nested: slices of threads that nest on one track, or do not.
-- requires: _trace_slices, _trace_lost_ends
-- grain:    one row per row of _trace_slices that may cross another one
-- columns:
--   run     VARCHAR  label of the run
--   pid     INTEGER  process
--   tid     INTEGER  thread
--   track   VARCHAR  track, as in _trace_slices
--   ts_ns   BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns  BIGINT   length, ns, > 0; NULL: still open at the end
-- caveats:  slices of no length cross nothing, and those of _trace_lost_ends
--           are drawn elsewhere.
CREATE VIEW _trace_nested AS
SELECT
  slices.run, slices.pid, slices.tid, slices.track, slices.ts_ns, slices.dur_ns
FROM _trace_slices AS slices
LEFT JOIN _trace_lost_ends AS lost
  ON slices.run = lost.run
  AND slices.pid = lost.pid
  AND slices.tid = lost.tid
  AND slices.track = lost.track
  AND slices.ts_ns = lost.ts_ns
  AND slices.depth = lost.depth
  AND slices.dur_ns IS NULL
WHERE lost.pid IS NULL
  AND (slices.dur_ns IS NULL OR slices.dur_ns > 0);
