-- flame_bubbles: time a device had nothing to do, by the call whose return
--           began it, for a flamegraph.
-- requires: bubbles, steps, _program_calls, _nvtx_paths, _thread_names,
--           _process_names
-- grain:    one row per process, thread, NVTX path and kind of call whose
--           return began bubbles
-- columns:
--   run          VARCHAR  label of the run
--   pid          INTEGER  process whose device it is
--   exe          VARCHAR  path of its program; NULL: not known
--   tid          INTEGER  thread of the call; NULL: no call was recorded
--   thread       VARCHAR  name of the thread; NULL: not known
--   path         VARCHAR  NVTX ranges around the call, as in call_paths
--   class        VARCHAR  call: as in cuda_api; NULL as tid
--   api          VARCHAR  call: function name; NULL as tid
--   copy_kind    VARCHAR  call: as in cuda_api
--   host_memory  VARCHAR  call: as in cuda_api
--   size_class   VARCHAR  call: as in call_paths
--   stack_id     BIGINT   call: joins stacks.stack_id; NULL: none was taken
--   bubbles      BIGINT   bubbles, > 0
--   dur_ns       BIGINT   their time, ns, > 0; it sums to dur_ns in bubbles
-- params:
--   phase       VARCHAR = NULL  only bubbles that begin in steps of this phase
--   first_step  BIGINT = NULL   only those in steps from this number on
--   last_step   BIGINT = NULL   only those in steps up to this number
--   thread      VARCHAR = NULL  only calls of threads of this number or name
-- caveats:  as those of bubbles. The time of several devices of one process is
--           added up.
WITH chosen AS (
  SELECT
    bubbles.run, bubbles.pid, bubbles.ts_ns, bubbles.dur_ns,
    bubbles.before_api, bubbles.before_class, bubbles.before_tid,
    steps.step_id, steps.phase
  FROM bubbles
  LEFT JOIN steps
    ON bubbles.run = steps.run
    AND bubbles.step_id = steps.step_id
),

kept AS (
  SELECT run, pid, ts_ns, dur_ns, before_api, before_class, before_tid
  FROM chosen
  WHERE ($phase IS NULL OR phase = $phase)
    AND ($first_step IS NULL OR step_id >= $first_step)
    AND ($last_step IS NULL OR step_id <= $last_step)
),

returned AS (
  SELECT
    run, pid, tid, api, ts_ns, copy_kind, host_memory, size_class, stack_id,
    ts_ns + dur_ns AS end_ns
  FROM _program_calls
  WHERE dur_ns IS NOT NULL
),

-- The first return of that function on that thread: an observed bubble began
-- somewhat before it.
called AS (
  SELECT
    kept.run, kept.pid, kept.before_tid AS tid, kept.before_api AS api,
    kept.before_class AS "class", kept.dur_ns, returned.ts_ns AS call_ns,
    returned.copy_kind, returned.host_memory, returned.size_class,
    returned.stack_id
  FROM kept
  ASOF LEFT JOIN returned
    ON kept.run = returned.run
    AND kept.pid = returned.pid
    AND kept.before_tid = returned.tid
    AND kept.before_api = returned.api
    AND kept.ts_ns <= returned.end_ns
),

summed AS (
  SELECT
    called.run, called.pid, called.tid,
    CASE
      WHEN called.call_ns IS NULL OR paths.ts_ns IS NULL THEN ''
      ELSE paths.path
    END AS path,
    called."class", called.api, called.copy_kind, called.host_memory,
    called.size_class, called.stack_id,
    count(*) AS bubbles,
    CAST(sum(called.dur_ns) AS BIGINT) AS dur_ns
  FROM called
  ASOF LEFT JOIN _nvtx_paths AS paths
    ON called.run = paths.run
    AND called.pid = paths.pid
    AND called.tid = paths.tid
    AND called.call_ns >= paths.ts_ns
  GROUP BY ALL
),

named AS (
  SELECT
    summed.run, summed.pid, processes.exe, summed.tid, threads.thread,
    summed.path, summed."class", summed.api, summed.copy_kind,
    summed.host_memory, summed.size_class, summed.stack_id, summed.bubbles,
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
  "class",
  api,
  copy_kind,
  host_memory,
  size_class,
  stack_id,
  bubbles,
  dur_ns
FROM named
WHERE $thread IS NULL
  OR $thread IN (CAST(tid AS VARCHAR), thread)
ORDER BY ALL;
