-- flame_wall_parts: where the time of steps went, with what the time in calls
--           was for.
-- requires: steps, _driver_stretches, _step_outside, crossing_costs,
--           _thread_names, _process_names
-- grain:    one row per driving thread, NVTX path, kind of call and part
-- columns:
--   run          VARCHAR  label of the run
--   pid          INTEGER  process
--   exe          VARCHAR  path of its program; NULL: not known
--   tid          INTEGER  thread that drives the steps
--   thread       VARCHAR  name of the thread; NULL: not known
--   path         VARCHAR  NVTX ranges around it, as in call_paths
--   part         VARCHAR  as in step_parts, each but its _ns
--   class        VARCHAR  call: as in cuda_api; NULL: no call
--   api          VARCHAR  call: function name; NULL: no call
--   copy_kind    VARCHAR  call: as in cuda_api
--   host_memory  VARCHAR  call: as in cuda_api
--   size_class   VARCHAR  call: as in call_paths
--   is_open      BOOLEAN  call: it never returned
--   stack_id     BIGINT   call or wait: joins stacks.stack_id; NULL: none taken
--   dur_ns       BIGINT   time, ns, > 0; they sum to the period_ns of these
--                         steps in step_parts, and part by part to its parts,
--                         exactly
-- params:
--   phase       VARCHAR = NULL  only steps of this phase
--   first_step  BIGINT = NULL   only steps from this number on
--   last_step   BIGINT = NULL   only steps up to this number
--   thread      VARCHAR = NULL  only threads of this number or name
-- caveats:  as those of flame_wall. A call that is cut in two has its parts in
--           the order without a CPU, wait, transfer, toll, probes, as in
--           step_parts. Where calls of one thread overlap, single parts differ
--           from step_parts. Needs the bridge model.
WITH chosen AS (
  SELECT run, step_id
  FROM steps
  WHERE ($phase IS NULL OR phase = $phase)
    AND ($first_step IS NULL OR step_id >= $first_step)
    AND ($last_step IS NULL OR step_id <= $last_step)
),

-- Offsets within the call at which its parts end. One call a moment: of several
-- that start then, all but the longest are empty.
costs AS (
  SELECT
    run, pid, tid, ts_ns,
    max(runnable_ns) AS to_ready,
    max(runnable_ns + queue_wait_ns + sync_wait_ns) AS to_wait,
    max(runnable_ns + queue_wait_ns + sync_wait_ns + transfer_ns)
      AS to_transfer,
    max(
      runnable_ns + queue_wait_ns + sync_wait_ns + transfer_ns + toll_ns
      + launch_ns + alloc_ns
    ) AS to_own
  FROM crossing_costs
  WHERE dur_ns IS NOT NULL
  GROUP BY run, pid, tid, ts_ns
),

called AS (
  SELECT
    stretches.run, stretches.pid, stretches.tid, stretches.path,
    stretches."class", stretches.api, stretches.copy_kind,
    stretches.host_memory, stretches.size_class, stretches.is_open,
    stretches.stack_id, stretches.dur_ns,
    stretches.ts_ns - stretches.call_ns AS first,
    stretches.ts_ns - stretches.call_ns + stretches.dur_ns AS last,
    coalesce(costs.to_ready, 0) AS to_ready,
    coalesce(costs.to_wait, 0) AS to_wait,
    coalesce(costs.to_transfer, 0) AS to_transfer,
    coalesce(costs.to_own, 0) AS to_own
  FROM _driver_stretches AS stretches
  INNER JOIN chosen
    ON stretches.run = chosen.run
    AND stretches.step_id = chosen.step_id
  LEFT JOIN costs
    ON stretches.run = costs.run
    AND stretches.pid = costs.pid
    AND stretches.tid = costs.tid
    AND stretches.call_ns = costs.ts_ns
    AND NOT stretches.is_open
  WHERE stretches.state = 'call'
),

cut AS (
  SELECT
    run, pid, tid, path, "class", api, copy_kind, host_memory, size_class,
    is_open, stack_id,
    sum(dur_ns) AS dur_ns,
    sum(greatest(least(to_ready, last) - first, 0)) AS runnable_ns,
    sum(greatest(least(to_wait, last) - greatest(to_ready, first), 0))
      AS wait_ns,
    sum(greatest(least(to_transfer, last) - greatest(to_wait, first), 0))
      AS transfer_ns,
    sum(greatest(least(to_own, last) - greatest(to_transfer, first), 0))
      AS own_ns
  FROM called
  GROUP BY
    run, pid, tid, path, "class", api, copy_kind, host_memory, size_class,
    is_open, stack_id
),

parts AS (
  SELECT
    run, pid, tid, path, "class", api, copy_kind, host_memory, size_class,
    is_open, stack_id,
    unnest([
      {'part': 'runnable', 'ns': runnable_ns},
      {
        'part': CASE "class" WHEN 'copy' THEN 'queue_wait' ELSE 'sync_wait' END,
        'ns': wait_ns
      },
      {'part': 'bridge_transfer', 'ns': transfer_ns},
      {
        'part': CASE
          WHEN "class" IN ('copy', 'sync') THEN 'bridge_toll'
          WHEN "class" IN ('alloc', 'free') THEN 'alloc'
          ELSE 'launch'
        END,
        'ns': own_ns
      },
      {
        'part': 'unattributed',
        'ns': dur_ns - runnable_ns - wait_ns - transfer_ns - own_ns
      }
    ]) AS piece
  FROM cut
),

found AS (
  SELECT
    run, pid, tid, path,
    piece['part'] AS part,
    "class", api, copy_kind, host_memory, size_class, is_open, stack_id,
    piece['ns'] AS dur_ns
  FROM parts
  WHERE piece['ns'] > 0
  UNION ALL
  SELECT
    outside.run, outside.pid, outside.tid, outside.path, outside.part,
    NULL AS "class",
    NULL AS api,
    NULL AS copy_kind,
    NULL AS host_memory,
    NULL AS size_class,
    NULL AS is_open,
    outside.stack_id, outside.dur_ns
  FROM _step_outside AS outside
  INNER JOIN chosen
    ON outside.run = chosen.run
    AND outside.step_id = chosen.step_id
),

summed AS (
  SELECT
    run, pid, tid, path, part, "class", api, copy_kind, host_memory,
    size_class, is_open, stack_id,
    CAST(sum(dur_ns) AS BIGINT) AS dur_ns
  FROM found
  GROUP BY
    run, pid, tid, path, part, "class", api, copy_kind, host_memory,
    size_class, is_open, stack_id
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
