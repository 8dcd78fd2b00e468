-- step_breakdown: does crossing the bridge dominate the steps, and what else is
--           their time for?
-- requires: runs, step_parts, worker_steps
-- grain:    one row per run, engine, phase and part of a step; one row of a run
--           whose steps are not known
-- columns:
--   run       VARCHAR  label of the run
--   answer    VARCHAR  yes: the bridge takes more of the steps than either the
--                      waits for the device or the host's own time, even if
--                      all that is not known were theirs; no: one of them
--                      takes as much, even if it were the bridge's; unknown:
--                      neither, or too few steps, or worker processes make
--                      the CUDA calls
--   evidence  VARCHAR  the shares that decide, or what is lacking
--   engine    VARCHAR  as in the view steps; NULL: no steps
--   phase     VARCHAR  phase of the steps; NULL: not told
--   part      VARCHAR  queue_wait, bridge_toll, bridge_transfer, launch, alloc,
--                      sync_wait, lock_wait, runnable, host_compute or
--                      unattributed; NULL: no steps
--   steps     BIGINT   steps of that engine and phase; NULL: none
--   mean_ns   BIGINT   mean of the part per step, ns, rounded; NULL: no steps
--   p50_ns    BIGINT   median, ns; NULL: no steps
--   p99_ns    BIGINT   99th percentile, ns; NULL: no steps
--   share     DOUBLE   ratio, 0 to 1, of the time of those steps; NULL: they
--                      have no length
-- params:
--   min_steps  BIGINT = 10    fewer steps than this decide nothing
--   engine     VARCHAR = NULL  only this engine
--   phase      VARCHAR = NULL  only this phase
-- caveats:  the bridge is bridge_toll, bridge_transfer, launch and alloc;
--           waiting for the device queue_wait and sync_wait; the host's own
--           lock_wait, runnable and host_compute. A wait that a blocking copy
--           makes is for the device, and not counted to the bridge: what it
--           keeps the host from doing meanwhile is told by the report on
--           serialization points. The answer is of all the steps together.
WITH chosen AS (
  SELECT
    run, engine, phase, period_ns, queue_wait_ns, bridge_toll_ns,
    bridge_transfer_ns, launch_ns, alloc_ns, sync_wait_ns, lock_wait_ns,
    runnable_ns, host_compute_ns, unattributed_ns
  FROM step_parts
  WHERE ($engine IS NULL OR engine = $engine)
    AND ($phase IS NULL OR phase = $phase)
),

totals AS (
  SELECT
    run,
    count(*) AS steps,
    CAST($min_steps AS BIGINT) AS min_steps,
    sum(CAST(period_ns AS DOUBLE)) AS all_ns,
    sum(bridge_toll_ns + bridge_transfer_ns + launch_ns + alloc_ns)
    / all_ns AS bridge,
    sum(queue_wait_ns + sync_wait_ns) / all_ns AS device,
    sum(lock_wait_ns + runnable_ns + host_compute_ns) / all_ns AS host,
    sum(unattributed_ns) / all_ns AS not_known
  FROM chosen
  GROUP BY run
),

workers AS (
  SELECT run, count(DISTINCT pid) AS workers
  FROM worker_steps
  GROUP BY run
),

answers AS (
  SELECT
    runs.run,
    CASE
      WHEN workers.workers > 0 THEN 'unknown'
      WHEN coalesce(totals.steps < totals.min_steps OR totals.all_ns <= 0, TRUE)
        THEN 'unknown'
      WHEN totals.bridge > greatest(totals.device, totals.host)
        + totals.not_known
        THEN 'yes'
      WHEN totals.bridge + totals.not_known
        <= greatest(totals.device, totals.host)
        THEN 'no'
      ELSE 'unknown'
    END AS answer,
    CASE
      WHEN workers.workers > 0
        THEN format(
          'the thread that drives the loop makes no CUDA calls; the calls of {}'
          || ' worker processes are in cuda_api, their steps in worker_steps',
          workers.workers
        )
      WHEN totals.steps IS NULL
        THEN 'no steps with a known length were found'
      WHEN totals.steps < totals.min_steps OR totals.all_ns <= 0
        THEN format(
          'only {} steps with a known length were found; {} are needed',
          totals.steps,
          totals.min_steps
        )
      ELSE format(
        'of {} steps of {:.3f} ms on average the bridge takes {:.1f}%, waits'
        || ' for the device {:.1f}%, the host''s own time {:.1f}%; {:.1f}% is'
        || ' not known',
        totals.steps,
        totals.all_ns / totals.steps / 1e6,
        totals.bridge * 100,
        totals.device * 100,
        totals.host * 100,
        totals.not_known * 100
      )
    END AS evidence
  FROM runs
  LEFT JOIN totals
    ON runs.run = totals.run
  LEFT JOIN workers
    ON runs.run = workers.run
),

parts AS (
  SELECT
    run, engine, phase, period_ns,
    unnest(
      [
        'queue_wait', 'bridge_toll', 'bridge_transfer', 'launch', 'alloc',
        'sync_wait', 'lock_wait', 'runnable', 'host_compute', 'unattributed'
      ]
    ) AS part,
    unnest(range(1, 11)) AS place,
    unnest(
      [
        queue_wait_ns, bridge_toll_ns, bridge_transfer_ns, launch_ns,
        alloc_ns, sync_wait_ns, lock_wait_ns, runnable_ns, host_compute_ns,
        unattributed_ns
      ]
    ) AS part_ns
  FROM chosen
),

spread AS (
  SELECT
    run, engine, phase, part, place,
    count(*) AS steps,
    CAST(round(avg(part_ns)) AS BIGINT) AS mean_ns,
    quantile_disc(part_ns, [0.5, 0.99]) AS quantiles,
    CASE
      WHEN sum(period_ns) > 0
        THEN CAST(sum(part_ns) AS DOUBLE) / sum(period_ns)
    END AS "share"
  FROM parts
  GROUP BY run, engine, phase, part, place
)

SELECT
  answers.run,
  answers.answer,
  answers.evidence,
  spread.engine,
  spread.phase,
  spread.part,
  spread.steps,
  spread.mean_ns,
  spread.quantiles[1] AS p50_ns,
  spread.quantiles[2] AS p99_ns,
  spread."share"
FROM answers
LEFT JOIN spread
  ON answers.run = spread.run
ORDER BY answers.run, spread.engine, spread.phase NULLS LAST, spread.place;
