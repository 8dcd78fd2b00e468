-- _trace_slices: what is drawn as a stack on a thread: ranges and CUDA calls.
-- requires: nvtx, cuda_api
-- grain:    one row per push/pop range of nvtx and per row of cuda_api
-- columns:
--   run     VARCHAR  label of the run
--   pid     INTEGER  process
--   tid     INTEGER  thread
--   track   VARCHAR  what ends in the order it began: `CUDA`, or `NVTX` and the
--                    domain
--   ts_ns   BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns  BIGINT   length, ns, >= 0; NULL: still open at the end of the run
--   depth   INTEGER  nesting within its track, 0 is outermost
CREATE VIEW _trace_slices AS
SELECT
  run, pid, tid,
  'NVTX' || coalesce(' ' || domain, '') AS track,
  ts_ns,
  CASE WHEN dur_ns < 0 THEN 0 ELSE dur_ns END AS dur_ns,
  depth
FROM nvtx
WHERE kind = 'push_pop'
UNION ALL
SELECT
  run, pid, tid,
  'CUDA' AS track,
  ts_ns,
  CASE WHEN dur_ns < 0 THEN 0 ELSE dur_ns END AS dur_ns,
  depth
FROM cuda_api;
