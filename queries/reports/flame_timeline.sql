-- flame_timeline: what threads that drive steps did, in the order they did it.
-- requires: steps, _step_tracks, _driver_stretches, _step_unknowns,
--           _thread_names, _process_names
-- grain:    one row per row of _driver_stretches
-- columns:
--   run          VARCHAR  label of the run
--   track        BIGINT   number of the engine and thread, as in _step_tracks
--   engine       VARCHAR  as in steps
--   pid          INTEGER  process
--   exe          VARCHAR  path of its program; NULL: not known
--   tid          INTEGER  thread that drives the steps
--   thread       VARCHAR  name of the thread; NULL: not known
--   step_id      BIGINT   as in steps
--   ts_ns        BIGINT   start, ns of CLOCK_MONOTONIC
--   path         VARCHAR  NVTX ranges around it, as in call_paths
--   part         VARCHAR  outside of calls: as in flame_wall; NULL: in a call
--   call_ns      BIGINT   call: its start, ns; NULL: no call
--   class        VARCHAR  call: as in cuda_api; NULL: no call
--   api          VARCHAR  call: function name; NULL: no call
--   copy_kind    VARCHAR  call: as in cuda_api
--   host_memory  VARCHAR  call: as in cuda_api
--   size_class   VARCHAR  call: as in call_paths
--   is_open      BOOLEAN  call: it never returned
--   stack_id     BIGINT   call or wait: joins stacks.stack_id; NULL: none taken
--   dur_ns       BIGINT   length, ns, > 0
-- params:
--   phase       VARCHAR = NULL   only steps of this phase
--   first_step  BIGINT = NULL    only steps from this number on
--   last_step   BIGINT = NULL    only steps up to this number
--   thread      VARCHAR = NULL   only threads of this number or name
--   most        BIGINT = 100000  no rows at all where there are more
-- caveats:  none where launches counted in the kernel are in these steps: when
--           each was made is not known.
WITH chosen AS (
  SELECT run, step_id
  FROM steps
  WHERE ($phase IS NULL OR phase = $phase)
    AND ($first_step IS NULL OR step_id >= $first_step)
    AND ($last_step IS NULL OR step_id <= $last_step)
),

facts AS (
  SELECT
    chosen.run, chosen.step_id, unknowns.is_known,
    coalesce(bool_or(unknowns.counted_ns > 0) OVER (), FALSE) AS has_counted
  FROM chosen
  INNER JOIN _step_unknowns AS unknowns
    ON chosen.run = unknowns.run
    AND chosen.step_id = unknowns.step_id
),

found AS (
  SELECT
    stretches.run, stretches.track, tracks.engine, stretches.pid,
    processes.exe, stretches.tid, threads.thread, stretches.step_id,
    stretches.ts_ns, stretches.path,
    CASE stretches.state
      WHEN 'off_cpu' THEN 'lock_wait'
      WHEN 'runnable' THEN 'runnable'
      WHEN 'on_cpu'
        THEN
          CASE WHEN facts.is_known THEN 'host_compute' ELSE 'unattributed' END
    END AS part,
    stretches.call_ns, stretches."class", stretches.api, stretches.copy_kind,
    stretches.host_memory, stretches.size_class, stretches.is_open,
    stretches.stack_id, stretches.dur_ns, facts.has_counted
  FROM _driver_stretches AS stretches
  INNER JOIN facts
    ON stretches.run = facts.run
    AND stretches.step_id = facts.step_id
  INNER JOIN _step_tracks AS tracks
    ON stretches.track = tracks.track
  LEFT JOIN _process_names AS processes
    ON stretches.run = processes.run
    AND stretches.pid = processes.pid
  LEFT JOIN _thread_names AS threads
    ON stretches.run = threads.run
    AND stretches.pid = threads.pid
    AND stretches.tid = threads.tid
),

kept AS (
  SELECT
    run, track, engine, pid, exe, tid, thread, step_id, ts_ns, path, part,
    call_ns, "class", api, copy_kind, host_memory, size_class, is_open,
    stack_id, dur_ns, has_counted,
    count(*) OVER () AS stretches
  FROM found
  WHERE $thread IS NULL
    OR $thread IN (CAST(tid AS VARCHAR), thread)
)

SELECT
  run,
  track,
  engine,
  pid,
  exe,
  tid,
  thread,
  step_id,
  ts_ns,
  path,
  part,
  call_ns,
  "class",
  api,
  copy_kind,
  host_memory,
  size_class,
  is_open,
  stack_id,
  dur_ns
FROM kept
WHERE NOT has_counted
  AND stretches <= $most
ORDER BY run, track, ts_ns;
