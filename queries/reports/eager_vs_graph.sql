-- eager_vs_graph: would launching graphs, rather than kernel by kernel, shorten
--           the engine's steps?
-- requires: runs, steps, crossings, crossing_costs, bridge_model, step_parts,
--           _counted_launches
-- grain:    one row per run, loop, phase and thread that launches; one row for
--           a run without steps or launches in them
-- columns:
--   run                 VARCHAR  label of the run
--   answer              VARCHAR  yes, no or unknown
--   evidence            VARCHAR  what decided, in a sentence
--   engine              VARCHAR  as in steps; NULL: no launches in steps
--   phase               VARCHAR  phase of the steps; NULL: not told
--   pid                 INTEGER  process that launches; NULL as engine
--   tid                 INTEGER  thread that launches; NULL as engine
--   steps               BIGINT   steps of that loop and phase
--   launches_per_step   DOUBLE   mean of kernels launched one by one
--   graphs_per_step     DOUBLE   mean of graphs launched
--   is_estimate         BOOLEAN  launches counted in the kernel are among them,
--                                spread evenly over the time of their window;
--                                NULL as engine
--   launch_ns_per_step  BIGINT   mean of the host's time in both per step, ns,
--                                less what the probes add; NULL as engine
--   wait_ns_per_step    BIGINT   mean of the thread's waits for the device and,
--                                of the driving thread, for other threads, per
--                                step, ns; NULL as engine
--   period_ns           BIGINT   mean length of a step, ns; NULL as engine
--   ratio               DOUBLE   launch_ns_per_step over period_ns, 0 to 1;
--                                NULL as engine
--   is_launch_bound     BOOLEAN  launches take at least launch_ratio of the
--                                step and the thread hardly waits; NULL as
--                                engine
--   saved_ns            BIGINT   estimate of what one graph instead of the
--                                kernels would save of each step at most, ns:
--                                their time less that of one launch; NULL as
--                                engine
-- params:
--   launch_ratio  DOUBLE = 0.25  launches take a large part of a step from here
--                                on
--   min_saving    DOUBLE = 0.05  a smaller part of a step is not worth the
--                                change
--   min_steps     BIGINT = 5     fewer steps say nothing
-- caveats:  graphs pay where they would save min_saving of a step and the
--           thread's waits are below a tenth of its launches: then the device
--           does its work faster than it gets it. Where the thread waits
--           longer, the device is behind, and launching is hidden by its work.
--           A launch that takes more than four times its toll in bridge_model
--           waits with the rest, for room in a full queue. The saving is an
--           upper bound: how long the device works, which a step cannot
--           undercut, is not seen from the host. Published: 25 to 35 points of
--           decode overhead more with eager launches than with graphs under CC
--           (Tinfoil, 2026-06-23), 2.41 against 1.04 times (arXiv 2608.26575).
--           A process without steps of its own, as a worker of a
--           tensor-parallel engine, is taken to belong to the loop with most
--           steps. Of counted launches those of the driver stand for all, or
--           those of the runtime where there are more of these.
WITH asked AS (
  SELECT
    run,
    $launch_ratio AS least_ratio,
    $min_saving AS least_saving,
    $min_steps AS least_steps
  FROM runs
),

bounded AS (
  SELECT
    run, step_id, engine, pid, tid, phase, ts_ns,
    coalesce(period_ns, dur_ns) AS period_ns
  FROM steps
  WHERE coalesce(period_ns, dur_ns) > 0
),

loops AS (
  SELECT
    run, pid, tid,
    row_number() OVER (
      PARTITION BY run
      ORDER BY count(*) DESC, pid, tid
    ) AS in_run,
    row_number() OVER (
      PARTITION BY run, pid
      ORDER BY count(*) DESC, tid
    ) AS in_process
  FROM bounded
  GROUP BY run, pid, tid
),

-- A thread's loop: its own, its process's, or the run's with most steps.
threads AS (
  SELECT DISTINCT run, pid, tid
  FROM crossings
  WHERE "class" IN ('launch', 'graph')
  UNION
  SELECT DISTINCT run, pid, tid
  FROM _counted_launches
),

driven AS (
  SELECT
    threads.run, threads.pid, threads.tid,
    coalesce(own.pid, inside.pid, main.pid) AS loop_pid,
    coalesce(own.tid, inside.tid, main.tid) AS loop_tid
  FROM threads
  LEFT JOIN loops AS own
    ON threads.run = own.run
    AND threads.pid = own.pid
    AND threads.tid = own.tid
  LEFT JOIN loops AS inside
    ON threads.run = inside.run
    AND threads.pid = inside.pid
    AND inside.in_process = 1
  INNER JOIN loops AS main
    ON threads.run = main.run
    AND main.in_run = 1
),

phases AS (
  SELECT
    run, engine, pid, tid, phase,
    count(*) AS steps,
    avg(period_ns) AS period_ns
  FROM bounded
  GROUP BY run, engine, pid, tid, phase
),

failed AS (
  SELECT run, pid, tid, ts_ns, api
  FROM crossings
  WHERE "class" IN ('launch', 'graph')
    AND result <> 0
),

calls AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls."class",
    driven.loop_pid, driven.loop_tid,
    -- What is far beyond the toll waits for room in a full queue.
    least(
      calls.launch_ns,
      coalesce(CAST(4 * model.toll_ns AS BIGINT), calls.launch_ns)
    ) AS launch_ns,
    calls.queue_wait_ns + calls.sync_wait_ns
    + greatest(
      calls.launch_ns
      - coalesce(CAST(4 * model.toll_ns AS BIGINT), calls.launch_ns),
      0
    ) AS wait_ns
  FROM crossing_costs AS calls
  INNER JOIN driven
    ON calls.run = driven.run
    AND calls.pid = driven.pid
    AND calls.tid = driven.tid
  LEFT JOIN bridge_model AS model
    ON calls.run = model.run
    AND calls."class" = model."class"
    AND calls.api = model.api
    AND model."class" IN ('launch', 'graph')
  WHERE calls."class" IN ('launch', 'graph', 'copy', 'sync')
    AND calls.dur_ns IS NOT NULL
    AND NOT contains(calls.api, 'HostFunc')
    AND NOT contains(calls.api, 'Upload')
    AND NOT EXISTS (
      SELECT 1
      FROM failed
      WHERE failed.run = calls.run
        AND failed.pid = calls.pid
        AND failed.tid = calls.tid
        AND failed.ts_ns = calls.ts_ns
        AND failed.api = calls.api
    )
),

recorded AS (
  SELECT
    calls.run, bounded.engine, bounded.phase, calls.pid, calls.tid,
    calls.loop_pid, calls.loop_tid,
    count(*) FILTER (calls."class" = 'launch') AS launches,
    count(*) FILTER (calls."class" = 'graph') AS graphs,
    sum(calls.launch_ns) AS launch_ns,
    sum(calls.wait_ns) AS wait_ns,
    FALSE AS is_estimate
  FROM calls
  ASOF INNER JOIN bounded
    ON calls.run = bounded.run
    AND calls.loop_pid = bounded.pid
    AND calls.loop_tid = bounded.tid
    AND calls.ts_ns >= bounded.ts_ns
  WHERE calls.ts_ns < bounded.ts_ns + bounded.period_ns
  GROUP BY ALL
),

layers AS (
  SELECT
    run, pid, tid, ts_ns, window_ns, represents_ns, "class", layer,
    sum(calls) AS calls,
    sum(total_ns) AS total_ns
  FROM _counted_launches
  WHERE NOT contains(api, 'HostFunc')
    AND NOT contains(api, 'Upload')
  GROUP BY ALL
),

windows AS (
  SELECT
    run, pid, tid, ts_ns, represents_ns, "class",
    max(calls) * (represents_ns / window_ns) AS calls,
    max(total_ns) * (represents_ns / window_ns) AS total_ns
  FROM layers
  GROUP BY run, pid, tid, ts_ns, window_ns, represents_ns, "class"
),

until_here AS (
  SELECT
    run, pid, tid, ts_ns, represents_ns, "class", calls, total_ns,
    coalesce(sum(calls) OVER before, 0) AS calls_before,
    coalesce(sum(total_ns) OVER before, 0) AS ns_before
  FROM windows
  WINDOW before AS (
    PARTITION BY run, pid, tid, "class"
    ORDER BY ts_ns
    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
  )
),

counting AS (
  SELECT DISTINCT run, pid, tid, "class"
  FROM windows
),

-- Both ends of each step, for each thread that has counted launches.
edges AS (
  SELECT
    bounded.run, bounded.engine, bounded.phase, counting.pid, counting.tid,
    driven.loop_pid, driven.loop_tid, counting."class",
    unnest([bounded.ts_ns, bounded.ts_ns + bounded.period_ns]) AS at_ns,
    unnest([-1, 1]) AS sign
  FROM bounded
  INNER JOIN driven
    ON bounded.run = driven.run
    AND bounded.pid = driven.loop_pid
    AND bounded.tid = driven.loop_tid
  INNER JOIN counting
    ON driven.run = counting.run
    AND driven.pid = counting.pid
    AND driven.tid = counting.tid
),

shares AS (
  SELECT
    edges.run, edges.engine, edges.phase, edges.pid, edges.tid,
    edges.loop_pid, edges.loop_tid, edges."class", edges.sign,
    least(
      (edges.at_ns - until_here.ts_ns) / until_here.represents_ns, 1
    ) AS gone,
    until_here.calls_before + gone * until_here.calls AS calls,
    until_here.ns_before + gone * until_here.total_ns AS total_ns
  FROM edges
  ASOF INNER JOIN until_here
    ON edges.run = until_here.run
    AND edges.pid = until_here.pid
    AND edges.tid = until_here.tid
    AND edges."class" = until_here."class"
    AND edges.at_ns >= until_here.ts_ns
),

counted AS (
  SELECT
    shares.run, shares.engine, shares.phase, shares.pid, shares.tid,
    shares.loop_pid, shares.loop_tid,
    sum(shares.sign * shares.calls)
      FILTER (shares."class" = 'launch') AS launches,
    sum(shares.sign * shares.calls)
      FILTER (shares."class" = 'graph') AS graphs,
    sum(
      shares.sign
      * (shares.total_ns - shares.calls * coalesce(runs.probe_ns, 0))
    ) AS launch_ns,
    0 AS wait_ns,
    TRUE AS is_estimate
  FROM shares
  INNER JOIN runs
    ON shares.run = runs.run
  GROUP BY ALL
),

parts AS (
  SELECT
    run, engine, phase, pid, tid, loop_pid, loop_tid, launches, graphs,
    launch_ns, wait_ns, is_estimate
  FROM recorded
  UNION ALL
  SELECT
    run, engine, phase, pid, tid, loop_pid, loop_tid, launches, graphs,
    launch_ns, wait_ns, is_estimate
  FROM counted
),

summed AS (
  SELECT
    run, engine, phase, pid, tid, loop_pid, loop_tid,
    coalesce(sum(launches), 0) AS launches,
    coalesce(sum(graphs), 0) AS graphs,
    greatest(coalesce(sum(launch_ns), 0), 0) AS launch_ns,
    coalesce(sum(wait_ns), 0) AS wait_ns,
    bool_or(is_estimate) AS is_estimate
  FROM parts
  GROUP BY run, engine, phase, pid, tid, loop_pid, loop_tid
  HAVING launches + graphs > 0
),

locks AS (
  SELECT run, engine, pid, tid, phase, avg(lock_wait_ns) AS lock_wait_ns
  FROM step_parts
  GROUP BY run, engine, pid, tid, phase
),

averaged AS (
  SELECT
    summed.run, summed.engine, summed.phase, summed.pid, summed.tid,
    phases.steps, phases.period_ns, summed.is_estimate,
    summed.launches / phases.steps AS launches_per_step,
    summed.graphs / phases.steps AS graphs_per_step,
    summed.launch_ns / phases.steps AS launch_ns,
    summed.wait_ns / phases.steps + coalesce(locks.lock_wait_ns, 0)
      AS wait_ns,
    summed.launch_ns / (summed.launches + summed.graphs) AS one_ns
  FROM summed
  INNER JOIN phases
    ON summed.run = phases.run
    AND summed.engine = phases.engine
    AND summed.loop_pid = phases.pid
    AND summed.loop_tid = phases.tid
    AND summed.phase IS NOT DISTINCT FROM phases.phase
  LEFT JOIN locks
    ON summed.run = locks.run
    AND summed.engine = locks.engine
    AND summed.pid = locks.pid
    AND summed.tid = locks.tid
    AND summed.phase IS NOT DISTINCT FROM locks.phase
),

kinds AS (
  SELECT
    averaged.run, averaged.engine, averaged.phase, averaged.pid,
    averaged.tid, averaged.steps, averaged.period_ns, averaged.is_estimate,
    averaged.launches_per_step, averaged.graphs_per_step,
    averaged.launch_ns, averaged.wait_ns,
    averaged.launch_ns / averaged.period_ns AS ratio,
    averaged.launch_ns >= asked.least_ratio * averaged.period_ns
    AND averaged.wait_ns < 0.1 * averaged.launch_ns AS is_launch_bound,
    greatest(
      (averaged.launches_per_step - 1) * averaged.one_ns, 0
    ) AS saved_ns,
    asked.least_saving, asked.least_steps
  FROM averaged
  INNER JOIN asked
    ON averaged.run = asked.run
),

-- The phase with most time in all, on the thread that launches most.
deciding AS (
  SELECT
    run, phase, steps, period_ns, is_estimate, launches_per_step,
    graphs_per_step, launch_ns, wait_ns, ratio, saved_ns,
    saved_ns >= least_saving * period_ns AS is_much,
    is_much AND wait_ns < 0.1 * launch_ns AS pays
  FROM kinds
  WHERE steps >= least_steps
  QUALIFY row_number() OVER (
    PARTITION BY run
    ORDER BY
      steps * period_ns DESC, launch_ns DESC, engine, phase, pid, tid
  ) = 1
),

stepped AS (
  SELECT run, count(*) AS steps
  FROM bounded
  GROUP BY run
),

launching AS (
  SELECT DISTINCT run
  FROM kinds
),

verdicts AS (
  SELECT
    asked.run,
    CASE
      WHEN deciding.run IS NULL THEN 'unknown'
      WHEN deciding.pays THEN 'yes'
      ELSE 'no'
    END AS answer,
    CASE
      WHEN stepped.run IS NULL THEN 'no steps were found'
      WHEN launching.run IS NULL
        THEN format('no launches in {:,} steps were recorded', stepped.steps)
      WHEN deciding.run IS NULL
        THEN format(
          '{:,} steps were found, and {:,} of one phase with launches are '
          'needed',
          stepped.steps, asked.least_steps
        )
      ELSE format(
        '{:,.1f} launches of kernels and {:,.1f} of graphs take {:,.1f} us '
        'or {:.0f}% of {}step ({:,.1f} us); {}',
        deciding.launches_per_step, deciding.graphs_per_step,
        deciding.launch_ns / 1e3, 100 * deciding.ratio,
        if(deciding.phase IS NULL, 'a ', 'a ' || deciding.phase || ' '),
        deciding.period_ns / 1e3,
        CASE
          WHEN deciding.pays
            THEN format(
              'the device keeps up with them, and one graph instead would '
              'save up to {:,.1f} us',
              deciding.saved_ns / 1e3
            )
          WHEN deciding.is_much
            THEN format(
              'the device does not keep up: the thread waits {:,.1f} us of '
              'a step for it, so that a graph would save little',
              deciding.wait_ns / 1e3
            )
          ELSE format(
            'one graph instead would save {:,.1f} us at most',
            deciding.saved_ns / 1e3
          )
        END
      )
    END AS evidence
  FROM asked
  LEFT JOIN stepped
    ON asked.run = stepped.run
  LEFT JOIN launching
    ON asked.run = launching.run
  LEFT JOIN deciding
    ON asked.run = deciding.run
)

SELECT
  v.run,
  v.answer,
  v.evidence,
  k.engine,
  k.phase,
  k.pid,
  k.tid,
  coalesce(k.steps, 0) AS steps,
  CAST(coalesce(k.launches_per_step, 0) AS DOUBLE) AS launches_per_step,
  CAST(coalesce(k.graphs_per_step, 0) AS DOUBLE) AS graphs_per_step,
  k.is_estimate,
  CAST(round(k.launch_ns) AS BIGINT) AS launch_ns_per_step,
  CAST(round(k.wait_ns) AS BIGINT) AS wait_ns_per_step,
  CAST(round(k.period_ns) AS BIGINT) AS period_ns,
  CAST(k.ratio AS DOUBLE) AS ratio,
  k.is_launch_bound,
  CAST(round(k.saved_ns) AS BIGINT) AS saved_ns
FROM verdicts AS v
LEFT JOIN kinds AS k
  ON v.run = k.run
ORDER BY v.run, k.steps DESC, k.launch_ns DESC, k.phase, k.pid, k.tid;
