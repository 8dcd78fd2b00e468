-- _trace_counters: counters, queue depth and idle devices, as a trace draws
--                  them.
-- requires: counters, _outstanding, _gpu_spans, _device_spans
-- grain:    one row per row of counters, and per moment at which a derived
--           counter changes
-- columns:
--   run       VARCHAR  label of the run
--   pid       INTEGER  process; NULL: the whole machine
--   tid       INTEGER  thread; NULL: the whole process
--   section   VARCHAR  the device, as in _trace_device; NULL: of none
--   track     VARCHAR  name of the counter
--   unit      VARCHAR  unit of the value
--   category  VARCHAR  counters, queue depth or device idle
--   ts_ns     BIGINT   moment, ns of CLOCK_MONOTONIC
--   value     DOUBLE   value from then on
-- caveats:  queue depth counts calls, see _outstanding. A device is idle (1)
--           where gpu_activity shows no work, or, where it does not show the
--           process, by the best guess; see _device_spans.
CREATE VIEW _trace_counters AS
-- Within a moment ends come first, then begins.
WITH depths AS (
  SELECT
    run, pid, ts_ns,
    coalesce(max(CASE WHEN change = 1 THEN depth END), min(depth)) AS depth
  FROM _outstanding
  GROUP BY run, pid, ts_ns
),

seen AS (
  SELECT DISTINCT run, pid
  FROM _gpu_spans
),

busy AS (
  SELECT
    run, pid, device, ts_ns, end_ns,
    'device idle, observed' AS track
  FROM _gpu_spans
  UNION ALL
  SELECT
    spans.run, spans.pid,
    CAST(NULL AS INTEGER) AS device,
    spans.ts_ns, spans.end_ns,
    'device idle, estimate' AS track
  FROM _device_spans AS spans
  LEFT JOIN seen
    ON spans.run = seen.run
    AND spans.pid = seen.pid
  WHERE spans.kind = 'likely'
    AND spans.end_ns > spans.ts_ns
    AND seen.pid IS NULL
),

-- Work that follows at once leaves no time between.
changes AS (
  SELECT
    run, pid, device, track,
    ts_ns AS at_ns,
    0 AS value
  FROM busy
  UNION ALL
  SELECT
    run, pid, device, track,
    end_ns AS at_ns,
    1 AS value
  FROM busy
  WHERE end_ns < 9223372036854775807
)

SELECT
  run, pid, tid,
  NULL AS section,
  name AS track,
  unit,
  'counters' AS category,
  ts_ns, value
FROM counters
UNION ALL
SELECT
  run, pid,
  NULL AS tid,
  'GPU' AS section,
  'queue depth' AS track,
  'calls' AS unit,
  'queue depth' AS category,
  ts_ns,
  CAST(depth AS DOUBLE) AS value
FROM depths
UNION ALL
SELECT
  run, pid,
  NULL AS tid,
  'GPU' || coalesce(' ' || device, '') AS section,
  track,
  'idle' AS unit,
  'device idle' AS category,
  at_ns AS ts_ns,
  CAST(min(value) AS DOUBLE) AS value
FROM changes
GROUP BY run, pid, device, track, at_ns;
