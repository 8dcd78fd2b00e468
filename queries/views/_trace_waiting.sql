-- _trace_waiting: times threads were off the CPU, as a trace draws them.
-- requires: sched
-- grain:    one row per row of sched
-- columns:
--   run        VARCHAR  label of the run
--   pid        INTEGER  process
--   tid        INTEGER  thread
--   track      VARCHAR  track beside the thread's own: `off CPU`
--   ts_ns      BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns     BIGINT   length, ns, >= 0; NULL: still off at the end
--   name       VARCHAR  state, as in sched
--   category   VARCHAR  sched
--   stack_id   BIGINT   as in sched
--   waker_tid  INTEGER  as in sched
CREATE VIEW _trace_waiting AS
SELECT
  run, pid, tid,
  'off CPU' AS track,
  ts_ns,
  CASE WHEN dur_ns < 0 THEN 0 ELSE dur_ns END AS dur_ns,
  state AS name,
  'sched' AS category,
  stack_id, waker_tid
FROM sched;
