-- call_paths: crossings, and where in the program they were made.
-- requires: crossings, _nvtx_paths
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
  crossings.run, crossings.pid, crossings.tid, crossings.ts_ns,
  crossings.dur_ns, crossings."class", crossings.api, crossings.copy_kind,
  crossings.host_memory, crossings.size_bytes, crossings.stream,
  CASE WHEN paths.ts_ns IS NULL THEN '' ELSE paths.path END AS path,
  CASE
    WHEN crossings.size_bytes <= 64 THEN '<=64 B'
    WHEN crossings.size_bytes <= 4096 THEN '<=4 KiB'
    WHEN crossings.size_bytes <= 65536 THEN '<=64 KiB'
    WHEN crossings.size_bytes <= 1048576 THEN '<=1 MiB'
    WHEN crossings.size_bytes <= 16777216 THEN '<=16 MiB'
    WHEN crossings.size_bytes > 16777216 THEN '>16 MiB'
  END AS size_class
FROM crossings
ASOF LEFT JOIN _nvtx_paths AS paths
  ON crossings.run = paths.run
  AND crossings.pid = paths.pid
  AND crossings.tid = paths.tid
  AND crossings.ts_ns >= paths.ts_ns;
