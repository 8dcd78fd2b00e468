-- _trace_steps: steps of an engine's loop, as a trace draws them.
-- requires: steps
-- grain:    one row per row of steps
-- columns:
--   run        VARCHAR  label of the run
--   pid        INTEGER  process
--   track      VARCHAR  track of the process: `steps` and the engine
--   ts_ns      BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns     BIGINT   time to the next step, else length of the step's own
--                       range, ns; NULL: neither is known
--   name       VARCHAR  its phase; `step` where that is not told
--   category   VARCHAR  steps
--   step_id    BIGINT   as in steps
--   loop_tid   INTEGER  tid of steps
--   range_ns   BIGINT   dur_ns of steps
--   period_ns  BIGINT   as in steps
--   requests   BIGINT   as in steps
--   tokens     BIGINT   as in steps
--   found_by   VARCHAR  as in steps
CREATE VIEW _trace_steps AS
SELECT
  run, pid,
  'steps ' || engine AS track,
  ts_ns,
  coalesce(period_ns, dur_ns) AS dur_ns,
  coalesce(phase, 'step') AS name,
  'steps' AS category,
  step_id,
  tid AS loop_tid,
  dur_ns AS range_ns,
  period_ns, requests, tokens, found_by
FROM steps;
