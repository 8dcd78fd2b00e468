-- speculative_crossings: does a step go to the device and back more than once,
--           as speculative decoding does?
-- requires: runs, steps, crossings, _counted_launches
-- grain:    one row per run, engine and phase of the steps, most steps first;
--           one row for a run without steps
-- columns:
--   run              VARCHAR  label of the run
--   answer           VARCHAR  yes, no or unknown
--   evidence         VARCHAR  what decided, in a sentence
--   engine           VARCHAR  as in the view steps; NULL: no steps
--   phase            VARCHAR  phase of the steps; NULL: not told, or no steps
--   steps            BIGINT   steps with a crossing in their process
--   trips_p50        BIGINT   median of the round trips in a step; NULL: no
--                             steps
--   trips_mean       DOUBLE   their mean; NULL as trips_p50
--   trips_max        BIGINT   most in one step; NULL as trips_p50
--   readbacks        DOUBLE   mean of the copies to the host in a step; NULL as
--                             trips_p50
--   graphs           DOUBLE   mean of the graph launches in a step, as far as
--                             recorded one by one; NULL as trips_p50
--   launches         DOUBLE   mean of the kernel launches in a step, as far as
--                             recorded one by one; NULL as trips_p50
--   crossings        DOUBLE   mean of all crossings in a step; NULL as
--                             trips_p50
--   blocked_ns       DOUBLE   mean of the host's time in readbacks and waits in
--                             a step, ns; NULL as trips_p50
--   trip_ns          DOUBLE   the same for one round trip, ns; NULL: there is
--                             none
--   blocked_ratio    DOUBLE   blocked_ns over the mean period; threads that
--                             wait at once may add up to more than 1; NULL: no
--                             period is known
--   counted          BOOLEAN  launches were counted in the kernel, and are not
--                             among graphs, launches and crossings
-- params:
--   min_steps    BIGINT = 5      fewer steps say nothing
--   min_wait_ns  BIGINT = 30000  an asynchronous copy to the host that is
--                                shorter does not wait
-- caveats:  a round trip is work for the device (a launch or a collective;
--           where launches were counted in the kernel a copy to it, too) and
--           then a wait for it: a copy to the host or a synchronisation (no
--           query), on any thread of the process that has most of them. Several
--           waits with no work between them are one: with launches counted in
--           the kernel that is not known of several readbacks, and the answer
--           may be unknown. It is that of the phase with most steps, but for
--           prefill and train. A process without steps of its own (a worker)
--           belongs to the steps of the only process that has any. Each pass of
--           speculative decoding that reads back pays the toll of its crossings
--           again. Published: its overhead under CC is about 70%, where plain
--           decoding has 21 to 26% (Tinfoil, 2026-06-23).
WITH counted AS (
  SELECT run, sum(calls) AS calls
  FROM _counted_launches
  GROUP BY run
),

asked AS (
  SELECT
    runs.run,
    $min_steps AS least_steps,
    $min_wait_ns AS wait_ns,
    runs.run IN (SELECT counted.run FROM counted) AS is_counted
  FROM runs
),

loops AS (
  SELECT run, pid, tid, engine
  FROM steps
  WHERE coalesce(period_ns, dur_ns) IS NOT NULL
  GROUP BY run, pid, tid, engine
  QUALIFY row_number() OVER (
    PARTITION BY run, pid
    ORDER BY count(*) DESC, tid, engine
  ) = 1
),

bounded AS (
  SELECT
    steps.run, steps.step_id, steps.engine, steps.pid, steps.phase,
    steps.ts_ns, steps.period_ns,
    steps.ts_ns + coalesce(steps.period_ns, steps.dur_ns) AS end_ns
  FROM steps
  INNER JOIN loops
    ON steps.run = loops.run
    AND steps.pid = loops.pid
    AND steps.tid = loops.tid
    AND steps.engine = loops.engine
  WHERE coalesce(steps.period_ns, steps.dur_ns) IS NOT NULL
),

only_loops AS (
  SELECT run, min(pid) AS pid
  FROM loops
  GROUP BY run
  HAVING count(*) = 1
),

-- 1: work for the device; 2: a wait for it; 0: neither.
coded AS (
  SELECT
    calls.run, calls.pid, calls.tid, calls.ts_ns, calls.dur_ns,
    calls."class", calls.copy_kind,
    CASE
      WHEN calls."class" IN ('launch', 'graph', 'collective') THEN 1
      WHEN calls.copy_kind = 'h2d' AND asked.is_counted THEN 1
      WHEN calls.copy_kind = 'd2h' THEN CASE
        WHEN contains(calls.api, 'Async') AND calls.dur_ns < asked.wait_ns
          THEN 0
        ELSE 2
      END
      WHEN calls."class" = 'sync' AND NOT contains(calls.api, 'Query') THEN 2
      ELSE 0
    END AS code
  FROM crossings AS calls
  INNER JOIN asked
    ON calls.run = asked.run
),

waits AS (
  SELECT
    run, pid, tid, ts_ns, code,
    lag(code) OVER (
      PARTITION BY run, pid
      ORDER BY ts_ns, tid
    ) AS before
  FROM coded
  WHERE code > 0
),

trips AS (
  SELECT run, pid, tid, ts_ns
  FROM waits
  WHERE code = 2
    AND before = 1
),

marked AS (
  SELECT run, pid, ts_ns, 1 AS trips, 0 AS calls, 0 AS readbacks, 0 AS graphs,
    0 AS launches, 0 AS blocked_ns
  FROM trips
  UNION ALL
  SELECT
    run, pid, ts_ns,
    0 AS trips,
    1 AS calls,
    CASE WHEN copy_kind = 'd2h' THEN 1 ELSE 0 END AS readbacks,
    CASE WHEN "class" = 'graph' THEN 1 ELSE 0 END AS graphs,
    CASE WHEN "class" = 'launch' THEN 1 ELSE 0 END AS launches,
    CASE
      WHEN "class" = 'sync' OR copy_kind = 'd2h' THEN coalesce(dur_ns, 0)
      ELSE 0
    END AS blocked_ns
  FROM coded
),

owned AS (
  SELECT
    marked.run, marked.pid, marked.ts_ns, marked.trips, marked.calls,
    marked.readbacks, marked.graphs, marked.launches, marked.blocked_ns,
    coalesce(loops.pid, only_loops.pid) AS loop_pid
  FROM marked
  LEFT JOIN loops
    ON marked.run = loops.run
    AND marked.pid = loops.pid
  LEFT JOIN only_loops
    ON marked.run = only_loops.run
),

in_step AS (
  SELECT
    bounded.run, bounded.step_id, owned.pid,
    sum(owned.trips) AS trips,
    sum(owned.calls) AS calls,
    sum(owned.readbacks) AS readbacks,
    sum(owned.graphs) AS graphs,
    sum(owned.launches) AS launches,
    sum(owned.blocked_ns) AS blocked_ns
  FROM owned
  ASOF JOIN bounded
    ON owned.run = bounded.run
    AND owned.loop_pid = bounded.pid
    AND owned.ts_ns >= bounded.ts_ns
  WHERE owned.ts_ns < bounded.end_ns
  GROUP BY bounded.run, bounded.step_id, owned.pid
),

-- Of several workers the one that goes back and forth most.
busiest AS (
  SELECT
    run, step_id, pid, trips, calls, readbacks, graphs, launches, blocked_ns
  FROM in_step
  QUALIFY row_number() OVER (
    PARTITION BY run, step_id
    ORDER BY trips DESC, blocked_ns DESC, pid
  ) = 1
),

phases AS (
  SELECT
    bounded.run, bounded.engine, bounded.phase,
    count(*) AS steps,
    quantile_disc(busiest.trips, 0.5) AS trips_p50,
    avg(busiest.trips) AS trips_mean,
    max(busiest.trips) AS trips_max,
    avg(busiest.readbacks) AS readbacks,
    avg(busiest.graphs) AS graphs,
    avg(busiest.launches) AS launches,
    avg(busiest.calls) AS calls,
    avg(busiest.blocked_ns) AS blocked_ns,
    sum(busiest.blocked_ns) / nullif(sum(busiest.trips), 0) AS trip_ns,
    avg(bounded.period_ns) AS period_ns
  FROM bounded
  INNER JOIN busiest
    ON bounded.run = busiest.run
    AND bounded.step_id = busiest.step_id
  GROUP BY bounded.run, bounded.engine, bounded.phase
),

deciding AS (
  SELECT
    run, engine, phase, steps, trips_p50, trips_mean, readbacks, blocked_ns,
    period_ns
  FROM phases
  WHERE phase IS NULL
    OR phase NOT IN ('prefill', 'train', 'model_load', 'kv_restore')
  QUALIFY row_number() OVER (
    PARTITION BY run
    ORDER BY steps DESC, engine, phase
  ) = 1
),

stepped AS (
  SELECT run, count(*) AS steps
  FROM bounded
  GROUP BY run
),

crossed AS (
  SELECT run, count(*) AS calls
  FROM coded
  GROUP BY run
),

verdicts AS (
  SELECT
    asked.run,
    asked.is_counted,
    CASE
      WHEN deciding.steps IS NULL OR deciding.steps < asked.least_steps
        THEN 'unknown'
      WHEN deciding.trips_p50 >= 2 THEN 'yes'
      WHEN asked.is_counted AND deciding.readbacks >= 1.5 THEN 'unknown'
      ELSE 'no'
    END AS answer,
    CASE
      WHEN stepped.run IS NULL THEN 'no steps were found'
      WHEN crossed.run IS NULL THEN 'no crossings were recorded'
      WHEN deciding.run IS NULL
        THEN 'no step but of prefill, training or copies has crossings'
      WHEN deciding.steps < asked.least_steps THEN format(
        '{:,} steps with crossings were found, and {:,} are needed',
        deciding.steps, asked.least_steps
      )
      WHEN deciding.trips_p50 < 2
        AND asked.is_counted AND deciding.readbacks >= 1.5
        THEN format(
          'a {} step reads back {:.1f} times, but launches were counted in '
          'the kernel, so that it is not known which come between; record '
          'with --launches full',
          coalesce(deciding.phase, deciding.engine), deciding.readbacks
        )
      ELSE format(
        'a {} step waits for the device {} in the median ({:.2f} on average '
        'of {:,} steps), for {:.1f} us in all{}',
        coalesce(deciding.phase, deciding.engine),
        CASE
          WHEN deciding.trips_p50 = 1 THEN 'once'
          ELSE format('{:,} times', CAST(deciding.trips_p50 AS BIGINT))
        END,
        deciding.trips_mean, deciding.steps, deciding.blocked_ns / 1e3,
        CASE
          WHEN deciding.period_ns > 0 THEN format(
            ' of its {:.1f} us', deciding.period_ns / 1e3
          )
          ELSE ''
        END
      )
    END AS evidence
  FROM asked
  LEFT JOIN deciding
    ON asked.run = deciding.run
  LEFT JOIN stepped
    ON asked.run = stepped.run
  LEFT JOIN crossed
    ON asked.run = crossed.run
)

SELECT
  verdicts.run,
  verdicts.answer,
  verdicts.evidence,
  phases.engine,
  phases.phase,
  coalesce(phases.steps, 0) AS steps,
  CAST(phases.trips_p50 AS BIGINT) AS trips_p50,
  phases.trips_mean,
  CAST(phases.trips_max AS BIGINT) AS trips_max,
  phases.readbacks,
  phases.graphs,
  phases.launches,
  phases.calls AS crossings,
  phases.blocked_ns,
  CAST(phases.trip_ns AS DOUBLE) AS trip_ns,
  CAST(phases.blocked_ns / nullif(phases.period_ns, 0) AS DOUBLE)
    AS blocked_ratio,
  verdicts.is_counted AS counted
FROM verdicts
LEFT JOIN phases
  ON verdicts.run = phases.run
ORDER BY verdicts.run, steps DESC, phases.engine, phases.phase NULLS LAST;
