-- call_paths: crossings, and where in the program they were made.
-- requires: _program_calls, _nvtx_paths
-- grain:    one row per row of crossings
-- materialize: yes
-- columns:
--   run          VARCHAR  label of the run
--   pid          INTEGER  process
--   tid          INTEGER  thread
--   ts_ns        BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns       BIGINT   time in the call on the host, ns; NULL: it never
--                         returned
--   class        VARCHAR  copy, launch, graph, sync, alloc or collective
--   api          VARCHAR  function name without version suffix
--   copy_kind    VARCHAR  h2d, d2h, d2d, p2p, h2h or unknown; NULL: not a copy
--   host_memory  VARCHAR  pinned, pageable, registered, managed or unknown;
--                         NULL: neither copy to or from the host nor allocation
--   size_bytes   BIGINT   bytes; NULL: not told
--   stream       BIGINT   stream handle, 0 is the default; NULL: none
--   path         VARCHAR  names of the thread's NVTX push/pop ranges that are
--                         open at the start of the call, outermost first, with
--                         `/` between; empty: none is; NULL: not known, ranges
--                         of different domains cross here
--   size_class   VARCHAR  <=64 B, <=4 KiB, <=64 KiB, <=1 MiB, <=16 MiB or
--                         >16 MiB; NULL: no size was told
-- caveats:  names are shortened, so that one call site has one path: a `/` is a
--           `|`, counters are a `*`, at most 16 names. See _nvtx_paths.
CREATE VIEW call_paths AS
SELECT
  calls.run, calls.pid, calls.tid, calls.ts_ns,
  calls.dur_ns, calls."class", calls.api, calls.copy_kind,
  calls.host_memory, calls.size_bytes, calls.stream,
  CASE WHEN paths.ts_ns IS NULL THEN '' ELSE paths.path END AS path,
  calls.size_class
FROM _program_calls AS calls
ASOF LEFT JOIN _nvtx_paths AS paths
  ON calls.run = paths.run
  AND calls.pid = paths.pid
  AND calls.tid = paths.tid
  AND calls.ts_ns >= paths.ts_ns
WHERE calls.is_crossing;
