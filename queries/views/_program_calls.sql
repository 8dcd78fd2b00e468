-- _program_calls: CUDA calls that the program itself made, with the class of
--           their size.
-- requires: cuda_api
-- grain:    one row per call of cuda_api at depth 0
-- columns:
--   run             VARCHAR  label of the run
--   pid             INTEGER  process
--   tid             INTEGER  thread
--   ts_ns           BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns          BIGINT   time in the call on the host, ns; NULL: it never
--                            returned
--   class           VARCHAR  as in cuda_api
--   api             VARCHAR  function name without version suffix
--   copy_kind       VARCHAR  as in cuda_api; NULL: not a copy
--   host_memory     VARCHAR  as in cuda_api; NULL: neither a copy to or from
--                            the host nor an allocation
--   size_bytes      BIGINT   bytes; NULL: not told
--   size_class      VARCHAR  <=64 B, <=4 KiB, <=64 KiB, <=1 MiB, <=16 MiB or
--                            >16 MiB; NULL: no size was told
--   stream          BIGINT   stream handle, 0 is the default; NULL: none
--   event           BIGINT   event handle; NULL: none, or not told
--   result          INTEGER  CUDA status, 0 is success; NULL: not seen
--   correlation_id  BIGINT   joins gpu_activity.correlation_id within the
--                            process; NULL: none was told
--   stack_id        BIGINT   joins stacks.stack_id; NULL: no stack was taken
--   is_crossing     BOOLEAN  it is a row of crossings
CREATE VIEW _program_calls AS
SELECT
  run, pid, tid, ts_ns, dur_ns, "class", api, copy_kind, host_memory,
  size_bytes,
  CASE
    WHEN size_bytes <= 64 THEN '<=64 B'
    WHEN size_bytes <= 4096 THEN '<=4 KiB'
    WHEN size_bytes <= 65536 THEN '<=64 KiB'
    WHEN size_bytes <= 1048576 THEN '<=1 MiB'
    WHEN size_bytes <= 16777216 THEN '<=16 MiB'
    WHEN size_bytes > 16777216 THEN '>16 MiB'
  END AS size_class,
  stream, event, result, correlation_id, stack_id,
  "class" IN ('copy', 'launch', 'graph', 'sync', 'alloc', 'collective')
    AS is_crossing
FROM cuda_api
WHERE depth = 0;
