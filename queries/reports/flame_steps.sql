-- flame_steps: how many steps a flamegraph is of.
-- requires: steps, _thread_names
-- grain:    one row per run, phase and driving thread
-- columns:
--   run           VARCHAR  label of the run
--   phase         VARCHAR  as in steps; NULL: not told
--   pid           INTEGER  process
--   tid           INTEGER  thread that drives the steps
--   thread        VARCHAR  name of the thread; NULL: not known
--   chosen_steps  BIGINT   steps in the range that was asked for
--   timed_steps   BIGINT   of these such that have a period
--   period_ns     BIGINT   sum of their periods, ns
--   first_step    BIGINT   least number of all its steps
--   last_step     BIGINT   greatest number of all its steps
-- params:
--   first_step  BIGINT = NULL  count steps from this number on
--   last_step   BIGINT = NULL  count steps up to this number
WITH ranged AS (
  SELECT
    run, phase, pid, tid, step_id, period_ns,
    ($first_step IS NULL OR step_id >= $first_step)
    AND ($last_step IS NULL OR step_id <= $last_step) AS is_chosen
  FROM steps
),

summed AS (
  SELECT
    run, phase, pid, tid,
    count(*) FILTER (WHERE is_chosen) AS chosen_steps,
    count(period_ns) FILTER (WHERE is_chosen) AS timed_steps,
    CAST(coalesce(sum(period_ns) FILTER (WHERE is_chosen), 0) AS BIGINT)
      AS period_ns,
    min(step_id) AS first_step,
    max(step_id) AS last_step
  FROM ranged
  GROUP BY run, phase, pid, tid
)

SELECT
  summed.run,
  summed.phase,
  summed.pid,
  summed.tid,
  threads.thread,
  summed.chosen_steps,
  summed.timed_steps,
  summed.period_ns,
  summed.first_step,
  summed.last_step
FROM summed
LEFT JOIN _thread_names AS threads
  ON summed.run = threads.run
  AND summed.pid = threads.pid
  AND summed.tid = threads.tid
ORDER BY summed.run, summed.phase NULLS LAST, summed.pid, summed.tid;
