-- _replay_calls: the program's own CUDA calls of all classes, and where in the
--           program they were made.
-- requires: _program_calls, _nvtx_paths
-- grain:    one row per call of cuda_api at depth 0 that has returned
-- columns:
--   run             VARCHAR  label of the run
--   pid             INTEGER  process
--   tid             INTEGER  thread
--   ts_ns           BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns          BIGINT   time in the call on the host, ns
--   class           VARCHAR  as in cuda_api
--   api             VARCHAR  function name without version suffix
--   copy_kind       VARCHAR  as in cuda_api; NULL: not a copy
--   host_memory     VARCHAR  as in cuda_api; NULL: neither a copy to or from
--                            the host nor an allocation
--   size_bytes      BIGINT   bytes; NULL: not told
--   stream          BIGINT   stream handle; 0: the default one, or none
--   event           BIGINT   event handle; NULL: none, or not told
--   path            VARCHAR  as in call_paths; empty also where it is not known
--   size_class      VARCHAR  as in call_paths; NULL: no size was told
--   stack_id        BIGINT   joins stacks.stack_id; NULL: no stack was taken
--   correlation_id  BIGINT   joins _replay_device; NULL: none was told
-- caveats:  calls that failed are left out.
CREATE VIEW _replay_calls AS
SELECT
  calls.run, calls.pid, calls.tid, calls.ts_ns, calls.dur_ns, calls."class",
  calls.api, calls.copy_kind, calls.host_memory, calls.size_bytes,
  coalesce(calls.stream, 0) AS stream,
  calls.event,
  coalesce(paths.path, '') AS path,
  calls.size_class, calls.stack_id, calls.correlation_id
FROM _program_calls AS calls
ASOF LEFT JOIN _nvtx_paths AS paths
  ON calls.run = paths.run
  AND calls.pid = paths.pid
  AND calls.tid = paths.tid
  AND calls.ts_ns >= paths.ts_ns
WHERE calls.dur_ns IS NOT NULL
  AND coalesce(calls.result, 0) = 0;
