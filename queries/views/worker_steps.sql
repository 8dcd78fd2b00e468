-- worker_steps: steps of worker processes, where the loop's own thread leaves
--           the device to them.
-- requires: steps, _pattern_steps, processes
-- grain:    one row per step and worker process
-- materialize: yes
-- columns:
--   run        VARCHAR  label of the run
--   step_id    BIGINT   step of the loop during which this one started; NULL:
--                       before the first one, or several processes drive steps
--                       and none of them is the worker's parent
--   pid        INTEGER  worker process
--   tid        INTEGER  its thread that submits
--   ts_ns      BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns     BIGINT   time to the return of its last call, ns; NULL: it never
--                       returned
--   period_ns  BIGINT   start of the worker's next step less this one's, ns;
--                       NULL: the last one, or it paused in between
--   phase      VARCHAR  of the loop's step; NULL: not told
-- caveats:  found from the pattern of the worker's calls, as in _pattern_steps;
--           none where the thread that drives the loop, or any of its process,
--           submits work itself
CREATE VIEW worker_steps AS
WITH loops AS (
  SELECT run, pid, count(*) OVER (PARTITION BY run) AS loops
  FROM steps
  GROUP BY run, pid
),

parents AS (
  SELECT run, pid, any_value(ppid) AS ppid
  FROM processes
  GROUP BY run, pid
),

found_processes AS (
  SELECT DISTINCT run, pid
  FROM _pattern_steps
  WHERE is_worker
),

-- A worker's loop is its parent's, or the only one there is.
workers AS (
  SELECT
    found.run, found.pid,
    max(
      CASE WHEN loops.pid = parents.ppid OR loops.loops = 1 THEN loops.pid END
    ) AS loop_pid
  FROM found_processes AS found
  INNER JOIN loops
    ON found.run = loops.run
  LEFT JOIN parents
    ON found.run = parents.run
    AND found.pid = parents.pid
  GROUP BY found.run, found.pid
)

SELECT
  found.run, steps.step_id, found.pid, found.tid, found.ts_ns, found.dur_ns,
  found.period_ns, steps.phase
FROM _pattern_steps AS found
INNER JOIN workers
  ON found.run = workers.run
  AND found.pid = workers.pid
ASOF LEFT JOIN steps
  ON found.run = steps.run
  AND workers.loop_pid = steps.pid
  AND found.ts_ns >= steps.ts_ns
WHERE found.is_worker;
