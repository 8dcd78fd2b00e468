-- _device_spans: when a process's device may, must and is likely to be busy.
-- requires: _device_ops, _device_batches, _device_waits, _device_groups,
--           _counted_launches
-- grain:    one row per run, process, kind and time without a gap; those of a
--           kind do not overlap
-- materialize: yes
-- columns:
--   run     VARCHAR  label of the run
--   pid     INTEGER  process
--   kind    VARCHAR  may: work had been given and was not proven done; sure: it
--                    was proven not done; likely: the best guess; open: where
--                    the guess could be wrong; counted: launches were counted
--                    in the kernel, and their times are not known
--   ts_ns   BIGINT   start, ns of CLOCK_MONOTONIC
--   end_ns  BIGINT   end, ns; the end of time where nothing proved it done
-- caveats:  see _device_groups for the guess. It could be wrong: around the
--           start and the end of all work; while it was being enqueued, unless
--           the device had more than twice as long to do after that; and all
--           the time where nobody waited in earnest.
CREATE VIEW _device_spans AS
WITH sure AS (
  SELECT run, pid, ready_ns AS ts_ns, busy_ns AS end_ns
  FROM _device_waits
  WHERE busy_ns > ready_ns
),

spans AS (
  SELECT
    run, pid, 'may' AS kind, first_ns AS ts_ns,
    coalesce(done_ns, 9223372036854775807) AS end_ns
  FROM _device_batches
  WHERE first_ns IS NOT NULL
  UNION ALL
  SELECT run, pid, 'sure' AS kind, ts_ns, end_ns
  FROM sure
  UNION ALL
  SELECT run, pid, 'likely' AS kind, ts_ns, end_ns
  FROM sure
  UNION ALL
  SELECT
    run, pid, 'likely' AS kind,
    CASE WHEN has_waited THEN end_ns - work_ns ELSE start_ns END AS ts_ns,
    CASE WHEN has_waited THEN end_ns ELSE start_ns + work_ns END AS end_ns
  FROM _device_groups
  UNION ALL
  SELECT
    run, pid, 'likely' AS kind,
    CASE
      WHEN guess_blocks THEN greatest(ts_ns, end_ns - work_ns)
      ELSE end_ns
    END AS ts_ns,
    CASE WHEN guess_blocks THEN end_ns ELSE end_ns + work_ns END AS end_ns
  FROM _device_ops
  WHERE work_ns IS NOT NULL
    AND end_ns IS NOT NULL
  UNION ALL
  SELECT
    run, pid, 'likely' AS kind, first_ready_ns AS ts_ns,
    9223372036854775807 AS end_ns
  FROM _device_batches
  WHERE done_ns IS NULL
    AND first_ready_ns IS NOT NULL
  UNION ALL
  SELECT
    run, pid, 'open' AS kind, start_ns AS ts_ns,
    CASE WHEN has_waited THEN least(last_ns, end_ns) ELSE end_ns END AS end_ns
  FROM _device_groups
  WHERE NOT (has_waited AND end_ns - last_ns >= 2 * (last_ns - start_ns))
  UNION ALL
  SELECT
    run, pid, 'open' AS kind,
    first_ready_ns - first_late_ns - 5000 AS ts_ns,
    first_ready_ns AS end_ns
  FROM _device_groups
  WHERE first_ready_ns > before_ns
  UNION ALL
  SELECT
    run, pid, 'open' AS kind,
    least(busy_ns, end_ns - 20000) AS ts_ns,
    end_ns
  FROM _device_waits
  WHERE likely_ns IS NOT NULL
  UNION ALL
  SELECT
    run, pid, 'counted' AS kind, ts_ns,
    ts_ns + represents_ns AS end_ns
  FROM _counted_launches
),

-- A span that begins after the end of all before it begins an island.
marked AS (
  SELECT
    run, pid, kind, ts_ns, end_ns,
    CASE
      WHEN ts_ns <= max(end_ns) OVER (
        PARTITION BY run, pid, kind
        ORDER BY ts_ns, end_ns
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
      ) THEN 0
      ELSE 1
    END AS begins
  FROM spans
  WHERE end_ns > ts_ns
),

numbered AS (
  SELECT
    run, pid, kind, ts_ns, end_ns,
    sum(begins) OVER (
      PARTITION BY run, pid, kind
      ORDER BY ts_ns, end_ns
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS island
  FROM marked
)

SELECT
  run, pid, kind,
  min(ts_ns) AS ts_ns,
  max(end_ns) AS end_ns
FROM numbered
GROUP BY run, pid, kind, island;
