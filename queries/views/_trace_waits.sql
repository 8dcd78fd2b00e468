-- _trace_waits: calls that proved work done, and the launch that came next.
-- requires: cuda_api, _drains
-- grain:    one row per call: a launch, and each such call of its thread since
--           the launch before
-- materialize: yes
-- columns:
--   run      VARCHAR  label of the run
--   pid      INTEGER  process
--   tid      INTEGER  thread
--   ts_ns    BIGINT   start of the call, at depth 0, ns of CLOCK_MONOTONIC
--   flow_id  BIGINT   the launch they lead to, an odd number
-- caveats:  next_launch_delay_ns of the report is from such a call's start to
--           that launch.
CREATE VIEW _trace_waits AS
WITH waits AS (
  SELECT DISTINCT run, pid, tid, ts_ns
  FROM _drains
  WHERE is_done
),

launches AS (
  SELECT DISTINCT run, pid, tid, ts_ns
  FROM cuda_api
  WHERE depth = 0
    AND "class" IN ('launch', 'graph')
),

led AS (
  SELECT
    waits.run, waits.pid, waits.tid, waits.ts_ns,
    launches.ts_ns AS launch_ns
  FROM waits
  ASOF INNER JOIN launches
    ON waits.run = launches.run
    AND waits.pid = launches.pid
    AND waits.tid = launches.tid
    AND waits.ts_ns < launches.ts_ns
),

numbered AS (
  SELECT
    run, pid, tid, launch_ns,
    2 * row_number() OVER (ORDER BY run, pid, tid, launch_ns) - 1 AS flow_id
  FROM (
    SELECT DISTINCT run, pid, tid, launch_ns
    FROM led
  ) AS ends
)

SELECT led.run, led.pid, led.tid, led.ts_ns, numbered.flow_id
FROM led
INNER JOIN numbered
  ON led.run = numbered.run
  AND led.pid = numbered.pid
  AND led.tid = numbered.tid
  AND led.launch_ns = numbered.launch_ns
UNION ALL
SELECT run, pid, tid, launch_ns AS ts_ns, flow_id
FROM numbered;
