-- bubbles: times a device had nothing to do, and the calls around them.
-- requires: steps, cuda_api, losses, _device_ops, _drains, _device_spans,
--           _gpu_spans
-- grain:    one row per time for which the device of a process was idle and the
--           host had given it nothing
-- materialize: yes
-- columns:
--   run           VARCHAR  label of the run
--   pid           INTEGER  process whose device it is
--   device        INTEGER  device ordinal; NULL: not told
--   ts_ns         BIGINT   start, ns of CLOCK_MONOTONIC: inferred: the return
--                          that proved it; observed: the end of all work
--   dur_ns        BIGINT   length, ns: inferred: until the next call that gives
--                          work begins; observed: until work begins
--   before_api    VARCHAR  call whose return began it: function name; NULL:
--                          none was recorded
--   before_class  VARCHAR  its class; NULL as before_api
--   before_tid    INTEGER  its thread; NULL as before_api
--   after_api     VARCHAR  call that gave work again: function name; NULL: none
--                          was recorded
--   after_class   VARCHAR  its class; NULL as after_api
--   after_tid     INTEGER  its thread; NULL as after_api
--   step_id       BIGINT   step it began in, as in steps; NULL: none
--   source        VARCHAR  observed, or inferred where the process has no
--                          gpu_activity
-- caveats:  inferred ones are certain, and neither all nor whole: the device
--           was idle before the return and after the call as well. Where calls
--           were lost there are none. Observed gaps for which the host was not
--           late (the work after them had been given before they began) are
--           left out, and those of less than 10 us where that is not known. The
--           call before an observed one is the first return after it began that
--           proved work done, if that was before the next work was given. Steps
--           of several engines that run at the same time are not told apart.
CREATE VIEW bubbles AS
WITH seen AS (
  SELECT DISTINCT run, pid
  FROM _gpu_spans
),

proven AS (
  SELECT
    run, pid, end_ns AS ts_ns,
    lead(ts_ns) OVER (PARTITION BY run, pid ORDER BY ts_ns) AS until_ns
  FROM _device_spans
  WHERE kind = 'may'
),

idle AS (
  SELECT proven.run, proven.pid, proven.ts_ns, proven.until_ns
  FROM proven
  LEFT JOIN seen
    ON proven.run = seen.run
    AND proven.pid = seen.pid
  WHERE proven.until_ns > proven.ts_ns
    AND seen.pid IS NULL
),

lost AS (
  SELECT DISTINCT idle.run, idle.pid, idle.ts_ns
  FROM idle
  INNER JOIN losses
    ON idle.run = losses.run
    AND (losses.pid IS NULL OR idle.pid = losses.pid)
    AND coalesce(losses.first_ns, idle.ts_ns) < idle.until_ns
    AND coalesce(losses.last_ns, idle.ts_ns) >= idle.ts_ns
  WHERE losses.source = 'cuda'
    AND losses.reason NOT IN (
      'unreadable_argument', 'bad_argument', 'partial_size', 'ranges_full',
      'late_attach'
    )
),

-- A return can prove several streams done: the one it waited for tells.
returns AS (
  SELECT
    run, pid, end_ns,
    arg_min(api, (hops, tid)) AS api,
    arg_min("class", (hops, tid)) AS "class",
    arg_min(tid, (hops, tid)) AS tid
  FROM _drains
  WHERE is_done
  GROUP BY run, pid, end_ns
),

starts AS (
  SELECT
    ops.run, ops.pid, ops.ts_ns,
    arg_min(ops.api, ops.tid) AS api,
    arg_min(ops."class", ops.tid) AS "class",
    min(ops.tid) AS tid
  FROM _device_ops AS ops
  INNER JOIN idle
    ON ops.run = idle.run
    AND ops.pid = idle.pid
    AND ops.ts_ns = idle.until_ns
  GROUP BY ops.run, ops.pid, ops.ts_ns
),

inferred AS (
  SELECT
    idle.run, idle.pid,
    CAST(NULL AS INTEGER) AS device,
    idle.ts_ns, idle.until_ns,
    returns.api AS before_api,
    returns."class" AS before_class,
    returns.tid AS before_tid,
    starts.api AS after_api,
    starts."class" AS after_class,
    starts.tid AS after_tid,
    'inferred' AS source
  FROM idle
  LEFT JOIN lost
    ON idle.run = lost.run
    AND idle.pid = lost.pid
    AND idle.ts_ns = lost.ts_ns
  LEFT JOIN returns
    ON idle.run = returns.run
    AND idle.pid = returns.pid
    AND idle.ts_ns = returns.end_ns
  LEFT JOIN starts
    ON idle.run = starts.run
    AND idle.pid = starts.pid
    AND idle.until_ns = starts.ts_ns
  WHERE lost.pid IS NULL
),

gaps AS (
  SELECT
    run, pid, device, correlation_id,
    ts_ns AS until_ns,
    lag(end_ns) OVER (PARTITION BY run, pid, device ORDER BY ts_ns) AS ts_ns
  FROM _gpu_spans
),

given AS (
  SELECT
    run, pid, correlation_id,
    arg_min(api, depth) AS api,
    arg_min("class", depth) AS "class",
    arg_min(tid, depth) AS tid,
    arg_min(ts_ns, depth) AS ts_ns,
    arg_min(ts_ns + dur_ns, depth) AS end_ns
  FROM cuda_api
  WHERE correlation_id IS NOT NULL
  GROUP BY run, pid, correlation_id
),

late AS (
  SELECT
    gaps.run, gaps.pid, gaps.device, gaps.ts_ns, gaps.until_ns,
    given.api, given."class", given.tid,
    coalesce(given.ts_ns, gaps.until_ns) AS given_ns
  FROM gaps
  LEFT JOIN given
    ON gaps.run = given.run
    AND gaps.pid = given.pid
    AND gaps.correlation_id = given.correlation_id
  WHERE gaps.until_ns > gaps.ts_ns
    AND CASE
      WHEN given.end_ns IS NULL THEN gaps.until_ns - gaps.ts_ns >= 10000
      ELSE given.end_ns > gaps.ts_ns
    END
),

observed AS (
  SELECT
    late.run, late.pid, late.device, late.ts_ns, late.until_ns,
    CASE WHEN returns.end_ns <= late.given_ns THEN returns.api END
      AS before_api,
    CASE WHEN returns.end_ns <= late.given_ns THEN returns."class" END
      AS before_class,
    CASE WHEN returns.end_ns <= late.given_ns THEN returns.tid END
      AS before_tid,
    late.api AS after_api,
    late."class" AS after_class,
    late.tid AS after_tid,
    'observed' AS source
  FROM late
  ASOF LEFT JOIN returns
    ON late.run = returns.run
    AND late.pid = returns.pid
    AND late.ts_ns <= returns.end_ns
),

found AS (
  SELECT
    run, pid, device, ts_ns, until_ns, before_api, before_class, before_tid,
    after_api, after_class, after_tid, source
  FROM inferred
  UNION ALL
  SELECT
    run, pid, device, ts_ns, until_ns, before_api, before_class, before_tid,
    after_api, after_class, after_tid, source
  FROM observed
)

SELECT
  found.run, found.pid, found.device, found.ts_ns,
  found.until_ns - found.ts_ns AS dur_ns,
  found.before_api, found.before_class, found.before_tid, found.after_api,
  found.after_class, found.after_tid,
  CASE
    WHEN found.ts_ns < steps.ts_ns + coalesce(steps.period_ns, steps.dur_ns)
      THEN steps.step_id
  END AS step_id,
  found.source
FROM found
ASOF LEFT JOIN steps
  ON found.run = steps.run
  AND found.ts_ns >= steps.ts_ns;
