-- crossings: CUDA calls that cross the bridge, none inside another call.
-- requires: cuda_api
-- grain:    one row per call of cuda_api at depth 0 that moves data, a command
--           or a synchronisation signal
-- columns:
--   run          VARCHAR  label of the run
--   pid          INTEGER  process
--   tid          INTEGER  thread
--   ts_ns        BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns       BIGINT   time in the call on the host, ns; NULL: it never
--                         returned
--   class        VARCHAR  copy, launch, graph, sync, alloc or collective
--   api          VARCHAR  function name without version suffix
--   layer        VARCHAR  runtime or driver, of the call the program made
--   copy_kind    VARCHAR  h2d, d2h, d2d, p2p, h2h or unknown; NULL: not a copy
--   host_memory  VARCHAR  pinned, pageable, registered, managed or unknown;
--                         NULL: neither copy to or from the host nor allocation
--   size_bytes   BIGINT   bytes; NULL: not told
--   stream       BIGINT   stream handle, 0 is the default; NULL: none
--   event        BIGINT   event handle; NULL: the call takes none, or unknown
--   result       INTEGER  CUDA status, 0 is success; NULL: not seen
--   correlation_id  BIGINT  joins gpu_activity.correlation_id within the
--                           process; NULL: none was told
-- caveats:  launches counted in the kernel are in cuda_launches instead. What a
--           call that is no crossing (a free, a memset) does inside is not
--           here.
CREATE VIEW crossings AS
SELECT
  run, pid, tid, ts_ns, dur_ns, "class", api, layer, copy_kind, host_memory,
  size_bytes, stream, event, result, correlation_id
FROM cuda_api
WHERE depth = 0
  AND "class" IN ('copy', 'launch', 'graph', 'sync', 'alloc', 'collective');
