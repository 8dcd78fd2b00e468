-- flame_wall: where the time of steps went, for a flamegraph by wall time.
-- requires: steps, _step_wall, _step_outside, _thread_names, _process_names
-- grain:    one row per driving thread, NVTX path, and kind of call or part of
--           the time outside of calls
-- columns:
--   run          VARCHAR  label of the run
--   pid          INTEGER  process
--   exe          VARCHAR  path of its program; NULL: not known
--   tid          INTEGER  thread that drives the steps
--   thread       VARCHAR  name of the thread; NULL: not known
--   path         VARCHAR  NVTX ranges around it, as in call_paths
--   part         VARCHAR  outside of calls: lock_wait, runnable, host_compute,
--                         unattributed, as in step_parts; launch: launches
--                         counted in the kernel; NULL: in a call
--   class        VARCHAR  call: as in cuda_api; NULL: no call
--   api          VARCHAR  call: function name; NULL: no call
--   copy_kind    VARCHAR  call: as in cuda_api
--   host_memory  VARCHAR  call: as in cuda_api
--   size_class   VARCHAR  call: as in call_paths
--   is_open      BOOLEAN  call: it never returned
--   stack_id     BIGINT   call or wait: joins stacks.stack_id; NULL: none taken
--   dur_ns       BIGINT   time, ns, > 0; they sum to the period_ns of these
--                         steps in step_parts, exactly
-- params:
--   phase       VARCHAR = NULL  only steps of this phase
--   first_step  BIGINT = NULL   only steps from this number on
--   last_step   BIGINT = NULL   only steps up to this number
--   thread      VARCHAR = NULL  only threads of this number or name
-- caveats:  a step of unknown length (the last one, or one before a pause) is
--           not here. See _driver_stretches for calls that never returned, and
--           _step_outside for launches that were counted.
WITH chosen AS (
  SELECT run, step_id
  FROM steps
  WHERE ($phase IS NULL OR phase = $phase)
    AND ($first_step IS NULL OR step_id >= $first_step)
    AND ($last_step IS NULL OR step_id <= $last_step)
),

found AS (
  SELECT
    run, pid, tid, step_id, path,
    NULL AS part,
    "class", api, copy_kind, host_memory, size_class, is_open, stack_id, dur_ns
  FROM _step_wall
  WHERE state = 'call'
  UNION ALL
  SELECT
    run, pid, tid, step_id, path, part,
    NULL AS "class",
    NULL AS api,
    NULL AS copy_kind,
    NULL AS host_memory,
    NULL AS size_class,
    NULL AS is_open,
    stack_id, dur_ns
  FROM _step_outside
),

summed AS (
  SELECT
    found.run, found.pid, found.tid, found.path, found.part, found."class",
    found.api, found.copy_kind, found.host_memory, found.size_class,
    found.is_open, found.stack_id,
    CAST(sum(found.dur_ns) AS BIGINT) AS dur_ns
  FROM found
  INNER JOIN chosen
    ON found.run = chosen.run
    AND found.step_id = chosen.step_id
  GROUP BY
    found.run, found.pid, found.tid, found.path, found.part, found."class",
    found.api, found.copy_kind, found.host_memory, found.size_class,
    found.is_open, found.stack_id
),

named AS (
  SELECT
    summed.run, summed.pid, processes.exe, summed.tid, threads.thread,
    summed.path, summed.part, summed."class", summed.api, summed.copy_kind,
    summed.host_memory, summed.size_class, summed.is_open, summed.stack_id,
    summed.dur_ns
  FROM summed
  LEFT JOIN _process_names AS processes
    ON summed.run = processes.run
    AND summed.pid = processes.pid
  LEFT JOIN _thread_names AS threads
    ON summed.run = threads.run
    AND summed.pid = threads.pid
    AND summed.tid = threads.tid
)

SELECT
  run,
  pid,
  exe,
  tid,
  thread,
  path,
  part,
  "class",
  api,
  copy_kind,
  host_memory,
  size_class,
  is_open,
  stack_id,
  dur_ns
FROM named
WHERE $thread IS NULL
  OR $thread IN (CAST(tid AS VARCHAR), thread)
ORDER BY ALL;
