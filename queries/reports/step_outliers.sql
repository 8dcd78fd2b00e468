-- step_outliers: are some steps much slower than most, and what was different?
-- requires: runs, steps, step_parts, losses, nvtx
-- grain:    one row per slow step, the slowest first; one without a step where
--           a run has none
-- columns:
--   run             VARCHAR  label of the run
--   answer          VARCHAR  yes: the 99th percentile of the steps of some
--                            phase is more than max_ratio times their median;
--                            no; unknown
--   evidence        VARCHAR  what decided, in a sentence
--   step_id         BIGINT   a step longer than max_ratio times the median of
--                            its phase; NULL: there is none
--   engine          VARCHAR  as in steps
--   pid             INTEGER  process
--   tid             INTEGER  thread that drives the loop
--   phase           VARCHAR  phase of the step; NULL: not told
--   previous_phase  VARCHAR  phase of the step before, whose work may still
--                            have been waited for; NULL: none, or not told
--   ts_ns           BIGINT   start, ns of CLOCK_MONOTONIC
--   period_ns       BIGINT   length, ns
--   p50_ns          BIGINT   median length of the steps of its phase, ns
--   ratio           DOUBLE   period_ns over p50_ns
--   part            VARCHAR  part of a step that grew the most over its median
--                            in the phase; NULL: the parts are not known
--   part_ns         BIGINT   length of that part, ns
--   part_p50_ns     BIGINT   its median, ns
--   grown_ns        BIGINT   the difference, ns
--   crossings       BIGINT   crossings in the step
--   p50_crossings   BIGINT   their median
--   has_losses      BOOLEAN  events were lost while it ran
--   has_gc          BOOLEAN  an NVTX range that is called gc, gc.collect or
--                            garbage collection starts in it on its thread
-- params:
--   max_ratio  DOUBLE = 2.0    times the median from which a step is slow
--   min_steps  BIGINT = 20     steps of a phase that it takes to tell
--   most       BIGINT = 20     slow steps shown of a run
-- caveats:  steps are compared with those of the same engine and phase. A
--           median is a value that occurred.
WITH groups AS (
  SELECT
    run, engine, phase,
    count(*) AS steps,
    quantile_disc(period_ns, [0.5, 0.99]) AS quantiles
  FROM steps
  WHERE period_ns IS NOT NULL
  GROUP BY run, engine, phase
),

usual AS (
  SELECT
    run, engine, phase, steps,
    quantiles[1] AS p50_ns,
    quantiles[2] AS p99_ns,
    quantiles[2] / nullif(quantiles[1], 0) AS ratio,
    $max_ratio * quantiles[1] AS slow_ns,
    steps >= $min_steps AS is_enough
  FROM groups
),

followed AS (
  SELECT
    run, step_id, engine, pid, tid, ts_ns, period_ns, phase,
    lag(phase) OVER (PARTITION BY run, engine, pid, tid ORDER BY ts_ns)
      AS previous_phase
  FROM steps
),

all_slow AS (
  SELECT
    followed.run, followed.step_id, followed.engine, followed.pid,
    followed.tid, followed.ts_ns, followed.period_ns, followed.phase,
    followed.previous_phase, usual.p50_ns,
    followed.period_ns / usual.p50_ns AS ratio
  FROM followed
  INNER JOIN usual
    ON followed.run = usual.run
    AND followed.engine = usual.engine
    AND followed.phase IS NOT DISTINCT FROM usual.phase
  WHERE usual.is_enough
    AND followed.period_ns > usual.slow_ns
),

slow AS (
  SELECT
    run, step_id, engine, pid, tid, ts_ns, period_ns, phase, previous_phase,
    p50_ns, ratio
  FROM all_slow
  QUALIFY row_number() OVER (PARTITION BY run ORDER BY ratio DESC, step_id)
    <= $most
),

-- Of the threads that drive steps alone: those of workers have parts, too.
driven AS (
  SELECT
    split.run, split.step_id, split.engine, split.phase, split.crossings,
    split.queue_wait_ns, split.bridge_toll_ns, split.bridge_transfer_ns,
    split.launch_ns, split.alloc_ns, split.sync_wait_ns, split.lock_wait_ns,
    split.runnable_ns, split.host_compute_ns, split.unattributed_ns
  FROM step_parts AS split
  INNER JOIN steps
    ON split.run = steps.run
    AND split.step_id = steps.step_id
    AND split.pid = steps.pid
    AND split.tid = steps.tid
),

parts AS (
  UNPIVOT driven
  ON
    queue_wait_ns, bridge_toll_ns, bridge_transfer_ns, launch_ns, alloc_ns,
    sync_wait_ns, lock_wait_ns, runnable_ns, host_compute_ns, unattributed_ns
  INTO NAME part VALUE part_ns
),

usual_parts AS (
  SELECT
    run, engine, phase, part,
    quantile_disc(part_ns, 0.5) AS part_p50_ns
  FROM parts
  GROUP BY run, engine, phase, part
),

grown AS (
  SELECT
    parts.run, parts.step_id, replace(parts.part, '_ns', '') AS part,
    parts.part_ns, usual_parts.part_p50_ns,
    parts.part_ns - usual_parts.part_p50_ns AS grown_ns
  FROM parts
  INNER JOIN slow
    ON parts.run = slow.run
    AND parts.step_id = slow.step_id
  INNER JOIN usual_parts
    ON parts.run = usual_parts.run
    AND parts.engine = usual_parts.engine
    AND parts.phase IS NOT DISTINCT FROM usual_parts.phase
    AND parts.part = usual_parts.part
  QUALIFY row_number() OVER (
    PARTITION BY parts.run, parts.step_id
    ORDER BY parts.part_ns - usual_parts.part_p50_ns DESC, parts.part
  ) = 1
),

usual_crossings AS (
  SELECT
    run, engine, phase,
    quantile_disc(crossings, 0.5) AS p50_crossings
  FROM driven
  GROUP BY run, engine, phase
),

lossy AS (
  SELECT DISTINCT slow.run, slow.step_id
  FROM slow
  INNER JOIN losses
    ON slow.run = losses.run
    AND slow.ts_ns <= losses.last_ns
    AND slow.ts_ns + slow.period_ns >= losses.first_ns
),

collected AS (
  SELECT DISTINCT slow.run, slow.step_id
  FROM slow
  INNER JOIN nvtx
    ON slow.run = nvtx.run
    AND slow.pid = nvtx.pid
    AND slow.tid = nvtx.tid
    AND slow.ts_ns <= nvtx.ts_ns
    AND slow.ts_ns + slow.period_ns > nvtx.ts_ns
  WHERE lower(nvtx.name) IN ('gc', 'gc.collect', 'garbage collection')
),

described AS (
  SELECT
    slow.run, slow.step_id, slow.engine, slow.pid, slow.tid, slow.phase,
    slow.previous_phase, slow.ts_ns, slow.period_ns, slow.p50_ns, slow.ratio,
    grown.part, grown.part_ns, grown.part_p50_ns, grown.grown_ns,
    driven.crossings, usual_crossings.p50_crossings,
    lossy.run IS NOT NULL AS has_losses,
    collected.run IS NOT NULL AS has_gc
  FROM slow
  LEFT JOIN grown
    ON slow.run = grown.run
    AND slow.step_id = grown.step_id
  LEFT JOIN driven
    ON slow.run = driven.run
    AND slow.step_id = driven.step_id
  LEFT JOIN usual_crossings
    ON slow.run = usual_crossings.run
    AND slow.engine = usual_crossings.engine
    AND slow.phase IS NOT DISTINCT FROM usual_crossings.phase
  LEFT JOIN lossy
    ON slow.run = lossy.run
    AND slow.step_id = lossy.step_id
  LEFT JOIN collected
    ON slow.run = collected.run
    AND slow.step_id = collected.step_id
),

-- The phase that decides, and the slowest step of the run.
worst AS (
  SELECT
    run,
    max(steps) AS most_steps,
    $min_steps AS steps_needed,
    $max_ratio AS slow_ratio,
    arg_max(engine, ratio) FILTER (is_enough) AS engine,
    arg_max(coalesce(phase, 'untold'), ratio) FILTER (is_enough)
      AS phase,
    arg_max(steps, ratio) FILTER (is_enough) AS steps,
    arg_max(p50_ns, ratio) FILTER (is_enough) AS p50_ns,
    arg_max(p99_ns, ratio) FILTER (is_enough) AS p99_ns,
    max(ratio) FILTER (is_enough) AS ratio
  FROM usual
  GROUP BY run
),

slowest AS (
  SELECT
    run,
    arg_max(
      format('step {} took {:.3f} ms', step_id, period_ns / 1e6)
      || coalesce(
        format(', of which {} grew by {:.3f} ms', part, grown_ns / 1e6), ''
      ),
      ratio
    ) AS told
  FROM described
  GROUP BY run
),

answers AS (
  SELECT
    runs.run,
    CASE
      WHEN worst.ratio IS NULL THEN 'unknown'
      WHEN worst.ratio > worst.slow_ratio THEN 'yes'
      ELSE 'no'
    END AS answer,
    CASE
      WHEN worst.run IS NULL THEN 'no step has a known length'
      WHEN worst.ratio IS NULL
        THEN format(
          'at most {} steps of one phase have a known length, and it takes {}',
          worst.most_steps, worst.steps_needed
        )
      ELSE format(
        'the 99th percentile of {} steps of {} in phase {} is {:.3f} ms, '
        || '{:.2f} times their median of {:.3f} ms',
        worst.steps, worst.engine, worst.phase, worst.p99_ns / 1e6,
        worst.ratio, worst.p50_ns / 1e6
      ) || coalesce('; ' || slowest.told, '')
    END AS evidence
  FROM runs
  LEFT JOIN worst
    ON runs.run = worst.run
  LEFT JOIN slowest
    ON runs.run = slowest.run
)

SELECT
  answers.run,
  answers.answer,
  answers.evidence,
  described.step_id,
  described.engine,
  described.pid,
  described.tid,
  described.phase,
  described.previous_phase,
  described.ts_ns,
  described.period_ns,
  described.p50_ns,
  round(described.ratio, 4) AS ratio,
  described.part,
  described.part_ns,
  described.part_p50_ns,
  described.grown_ns,
  described.crossings,
  described.p50_crossings,
  coalesce(described.has_losses, FALSE) AS has_losses,
  coalesce(described.has_gc, FALSE) AS has_gc
FROM answers
LEFT JOIN described
  ON answers.run = described.run
ORDER BY answers.run, described.ratio DESC NULLS LAST, described.step_id;
