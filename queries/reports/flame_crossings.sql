-- flame_crossings: calls that cross the bridge, summed for a flamegraph by time
--           in them, by bytes or by count.
-- requires: steps, _program_calls, _nvtx_paths, _counted_once, _thread_names,
--           _process_names
-- grain:    one row per thread, NVTX path and kind of crossing
-- columns:
--   run          VARCHAR  label of the run
--   pid          INTEGER  process
--   exe          VARCHAR  path of its program; NULL: not known
--   tid          INTEGER  thread
--   thread       VARCHAR  name of the thread; NULL: not known
--   path         VARCHAR  NVTX ranges around it, as in call_paths; empty also
--                         of launches counted in the kernel
--   class        VARCHAR  as in cuda_api
--   api          VARCHAR  function name
--   copy_kind    VARCHAR  as in cuda_api; NULL: not a copy
--   host_memory  VARCHAR  as in cuda_api
--   size_class   VARCHAR  as in call_paths; NULL: no size was told
--   is_counted   BOOLEAN  launches counted in the kernel
--   stack_id     BIGINT   joins stacks.stack_id; NULL: none was taken
--   calls        HUGEINT  crossings, > 0; they sum to the rows of crossings
--                         and calls in _counted_once
--   open_calls   BIGINT   of these such that never returned: without a length
--   sized_calls  BIGINT   copies whose size is known
--   dur_ns       HUGEINT  time in them, ns, >= 0; sums to dur_ns in crossings
--                         and total_ns of _counted_once
--   copied_bytes  HUGEINT  bytes copied, >= 0; they sum to size_bytes of the
--                          copies in crossings
-- params:
--   phase       VARCHAR = NULL  only what starts in steps of this phase
--   first_step  BIGINT = NULL   only what starts in steps from this number on
--   last_step   BIGINT = NULL   only what starts in steps up to this number
--   thread      VARCHAR = NULL  only threads of this number or name
-- caveats:  a step counts here, on all threads, from its start to the end of
--           its period or, where that is not known, of its own range; what
--           starts in steps of several engines counts once. Counted launches
--           are where their window starts, and only those seen where
--           they were sampled.
WITH chosen AS (
  SELECT
    -- Until when those that began so far last: what starts before that is in
    -- one of them, however they overlap.
    run, ts_ns,
    max(ts_ns + coalesce(period_ns, dur_ns))
      OVER (PARTITION BY run ORDER BY ts_ns) AS end_ns
  FROM steps
  WHERE ($phase IS NULL OR phase = $phase)
    AND ($first_step IS NULL OR step_id >= $first_step)
    AND ($last_step IS NULL OR step_id <= $last_step)
),

stepped AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls.dur_ns,
    calls."class", calls.api, calls.copy_kind, calls.host_memory,
    calls.size_class, calls.stack_id,
    CASE WHEN calls."class" = 'copy' THEN calls.size_bytes END AS copied_bytes,
    chosen.end_ns
  FROM _program_calls AS calls
  ASOF LEFT JOIN chosen
    ON calls.run = chosen.run
    AND calls.ts_ns >= chosen.ts_ns
  WHERE calls.is_crossing
),

kept AS (
  SELECT
    run, pid, tid, ts_ns, dur_ns, "class", api, copy_kind, host_memory,
    size_class, stack_id, copied_bytes
  FROM stepped
  WHERE ts_ns < end_ns
    OR ($phase IS NULL AND $first_step IS NULL AND $last_step IS NULL)
),

placed AS (
  SELECT
    kept.run, kept.pid, kept.tid, kept.dur_ns, kept."class", kept.api,
    kept.copy_kind, kept.host_memory, kept.size_class, kept.stack_id,
    kept.copied_bytes,
    CASE WHEN paths.ts_ns IS NULL THEN '' ELSE paths.path END AS path
  FROM kept
  ASOF LEFT JOIN _nvtx_paths AS paths
    ON kept.run = paths.run
    AND kept.pid = paths.pid
    AND kept.tid = paths.tid
    AND kept.ts_ns >= paths.ts_ns
),

-- Sums are HUGEINT: sizes and lengths are what programs say, however absurd.
recorded AS (
  SELECT
    run, pid, tid, path, "class", api, copy_kind, host_memory, size_class,
    FALSE AS is_counted,
    stack_id,
    count(*) AS calls,
    count(*) - count(dur_ns) AS open_calls,
    count(copied_bytes) AS sized_calls,
    coalesce(sum(dur_ns), 0) AS dur_ns,
    coalesce(sum(copied_bytes), 0) AS copied_bytes
  FROM placed
  GROUP BY
    run, pid, tid, path, "class", api, copy_kind, host_memory, size_class,
    stack_id
),

windows AS (
  SELECT
    counted.run, counted.pid, counted.tid, counted.ts_ns, counted."class",
    counted.api, counted.calls, counted.total_ns, chosen.end_ns
  FROM _counted_once AS counted
  ASOF LEFT JOIN chosen
    ON counted.run = chosen.run
    AND counted.ts_ns >= chosen.ts_ns
),

counted AS (
  SELECT
    run, pid, tid, "class", api,
    sum(calls) AS calls,
    sum(total_ns) AS dur_ns
  FROM windows
  WHERE ts_ns < end_ns
    OR ($phase IS NULL AND $first_step IS NULL AND $last_step IS NULL)
  GROUP BY run, pid, tid, "class", api
),

found AS (
  SELECT
    run, pid, tid, path, "class", api, copy_kind, host_memory, size_class,
    is_counted, stack_id, calls, open_calls, sized_calls, dur_ns, copied_bytes
  FROM recorded
  UNION ALL
  SELECT
    run, pid, tid,
    '' AS path,
    "class", api,
    NULL AS copy_kind,
    NULL AS host_memory,
    NULL AS size_class,
    TRUE AS is_counted,
    NULL AS stack_id,
    calls,
    0 AS open_calls,
    0 AS sized_calls,
    dur_ns,
    0 AS copied_bytes
  FROM counted
),

named AS (
  SELECT
    found.run, found.pid, processes.exe, found.tid, threads.thread, found.path,
    found."class", found.api, found.copy_kind, found.host_memory,
    found.size_class, found.is_counted, found.stack_id, found.calls,
    found.open_calls, found.sized_calls, found.dur_ns, found.copied_bytes
  FROM found
  LEFT JOIN _process_names AS processes
    ON found.run = processes.run
    AND found.pid = processes.pid
  LEFT JOIN _thread_names AS threads
    ON found.run = threads.run
    AND found.pid = threads.pid
    AND found.tid = threads.tid
)

SELECT
  run,
  pid,
  exe,
  tid,
  thread,
  path,
  "class",
  api,
  copy_kind,
  host_memory,
  size_class,
  is_counted,
  stack_id,
  calls,
  open_calls,
  sized_calls,
  dur_ns,
  copied_bytes
FROM named
WHERE $thread IS NULL
  OR $thread IN (CAST(tid AS VARCHAR), thread)
ORDER BY ALL;
