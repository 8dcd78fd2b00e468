-- _trace_lost_ends: open slices that ended all the same, unseen.
-- requires: _trace_slices
-- grain:    one row per place of an open slice after which its thread began
--           another one no further in
-- materialize: yes
-- columns:
--   run    VARCHAR  label of the run
--   pid    INTEGER  process
--   tid    INTEGER  thread
--   track  VARCHAR  track, as in _trace_slices
--   ts_ns  BIGINT   start, ns of CLOCK_MONOTONIC
--   depth  INTEGER  depth, as in _trace_slices
-- caveats:  a return that was lost, or a call that a jump left.
CREATE VIEW _trace_lost_ends AS
WITH last_starts AS (
  SELECT
    run, pid, tid, track, depth,
    max(ts_ns) AS ts_ns
  FROM _trace_slices
  GROUP BY run, pid, tid, track, depth
),

open_slices AS (
  SELECT DISTINCT run, pid, tid, track, ts_ns, depth
  FROM _trace_slices
  WHERE dur_ns IS NULL
)

SELECT DISTINCT
  open_slices.run, open_slices.pid, open_slices.tid, open_slices.track,
  open_slices.ts_ns, open_slices.depth
FROM open_slices
INNER JOIN last_starts
  ON open_slices.run = last_starts.run
  AND open_slices.pid = last_starts.pid
  AND open_slices.tid = last_starts.tid
  AND open_slices.track = last_starts.track
  AND open_slices.depth >= last_starts.depth
  AND open_slices.ts_ns < last_starts.ts_ns;
