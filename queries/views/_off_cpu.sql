-- _off_cpu: times that threads were off the CPU, and which call that was in.
-- requires: sched, cuda_api
-- grain:    one row per row of sched that has a length
-- materialize: yes
-- columns:
--   run          VARCHAR  label of the run
--   pid          INTEGER  process
--   tid          INTEGER  thread
--   ts_ns        BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns       BIGINT   length, ns, > 0
--   is_runnable  BOOLEAN  it was ready to run; FALSE: blocked, or waiting for a
--                         disk
--   call_ns      BIGINT   start of the call of cuda_api at depth 0 within which
--                         it began; NULL: none
--   inside_ns    BIGINT   its time within that call, from ts_ns on, ns, >= 0
-- caveats:  calls that never returned are not looked at.
CREATE VIEW _off_cpu AS
WITH threads AS MATERIALIZED (
  SELECT
    run, pid, tid,
    row_number() OVER () AS thread
  FROM (
    SELECT DISTINCT run, pid, tid
    FROM sched
  ) AS slept
),

slept AS (
  SELECT
    threads.thread, sched.run, sched.pid, sched.tid, sched.ts_ns,
    sched.dur_ns,
    sched.state = 'runnable' AS is_runnable
  FROM sched
  INNER JOIN threads
    ON sched.run = threads.run
    AND sched.pid = threads.pid
    AND sched.tid = threads.tid
  WHERE sched.dur_ns > 0
),

calls AS (
  SELECT
    threads.thread, cuda_api.ts_ns,
    cuda_api.ts_ns + cuda_api.dur_ns AS end_ns
  FROM cuda_api
  INNER JOIN threads
    ON cuda_api.run = threads.run
    AND cuda_api.pid = threads.pid
    AND cuda_api.tid = threads.tid
  WHERE cuda_api.depth = 0
    AND cuda_api.dur_ns > 0
)

SELECT
  slept.run, slept.pid, slept.tid, slept.ts_ns, slept.dur_ns,
  slept.is_runnable,
  CASE WHEN slept.ts_ns < calls.end_ns THEN calls.ts_ns END AS call_ns,
  CASE
    WHEN slept.ts_ns < calls.end_ns
      THEN least(calls.end_ns - slept.ts_ns, slept.dur_ns)
    ELSE 0
  END AS inside_ns
FROM slept
ASOF LEFT JOIN calls
  ON slept.thread = calls.thread
  AND slept.ts_ns >= calls.ts_ns;
