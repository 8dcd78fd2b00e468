-- _gpu_spans: when a process's devices were seen to be busy.
-- requires: gpu_activity, _device_ops
-- grain:    one row per run, process, device and time without a gap; those of a
--           device do not overlap
-- materialize: yes
-- columns:
--   run             VARCHAR  label of the run
--   pid             INTEGER  process
--   device          INTEGER  device ordinal; NULL: unknown
--   ts_ns           BIGINT   start, ns of CLOCK_MONOTONIC
--   end_ns          BIGINT   end, ns
--   correlation_id  BIGINT   joins the call that gave the work it began with;
--                            NULL: none was told
-- caveats:  activities of no known process are those of the only process that
--           gave a device work, if there is one, else left out. Ordinals of
--           different processes need not mean the same device.
CREATE VIEW _gpu_spans AS
WITH sole AS (
  SELECT
    run,
    CASE WHEN min(pid) = max(pid) THEN min(pid) END AS pid
  FROM _device_ops
  GROUP BY run
),

activity AS (
  SELECT
    gpu_activity.run,
    coalesce(gpu_activity.pid, sole.pid) AS pid,
    gpu_activity.device, gpu_activity.ts_ns,
    gpu_activity.ts_ns + gpu_activity.dur_ns AS end_ns,
    gpu_activity.correlation_id
  FROM gpu_activity
  LEFT JOIN sole
    ON gpu_activity.run = sole.run
  WHERE gpu_activity.dur_ns > 0
    AND coalesce(gpu_activity.pid, sole.pid) IS NOT NULL
),

marked AS (
  SELECT
    run, pid, device, ts_ns, end_ns, correlation_id,
    CASE
      WHEN ts_ns <= max(end_ns) OVER (
        PARTITION BY run, pid, device
        ORDER BY ts_ns, end_ns
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
      ) THEN 0
      ELSE 1
    END AS begins
  FROM activity
),

numbered AS (
  SELECT
    run, pid, device, ts_ns, end_ns, correlation_id,
    sum(begins) OVER (
      PARTITION BY run, pid, device
      ORDER BY ts_ns, end_ns
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS island
  FROM marked
)

SELECT
  run, pid, device,
  min(ts_ns) AS ts_ns,
  max(end_ns) AS end_ns,
  arg_min(correlation_id, ts_ns) AS correlation_id
FROM numbered
GROUP BY run, pid, device, island;
