-- _step_wall: what the time of each step went to, on the thread that drives it.
-- requires: _driver_stretches
-- grain:    one row per step that has a period, NVTX path, and kind of call or
--           state outside of calls
-- materialize: yes
-- columns:
--   run          VARCHAR  label of the run
--   track        BIGINT   as in _step_tracks
--   pid          INTEGER  process
--   tid          INTEGER  thread that drives the loop
--   step_id      BIGINT   as in steps
--   path         VARCHAR  as in _driver_stretches
--   state        VARCHAR  as in _driver_stretches
--   is_open      BOOLEAN  as in _driver_stretches
--   class        VARCHAR  as in _driver_stretches
--   api          VARCHAR  as in _driver_stretches
--   copy_kind    VARCHAR  as in _driver_stretches
--   host_memory  VARCHAR  as in _driver_stretches
--   size_class   VARCHAR  as in _driver_stretches
--   stack_id     BIGINT   as in _driver_stretches
--   dur_ns       BIGINT   time, ns, > 0; they sum to the step's period_ns
CREATE VIEW _step_wall AS
SELECT
  run, track, pid, tid, step_id, path, state, is_open, "class", api, copy_kind,
  host_memory, size_class, stack_id,
  CAST(sum(dur_ns) AS BIGINT) AS dur_ns
FROM _driver_stretches
GROUP BY
  run, track, pid, tid, step_id, path, state, is_open, "class", api, copy_kind,
  host_memory, size_class, stack_id;
