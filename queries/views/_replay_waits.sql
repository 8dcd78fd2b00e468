-- _replay_waits: when threads could not go on, whichever CPU was free.
-- requires: sched
-- grain:    one row per row of sched that is a wait and has ended
-- columns:
--   run        VARCHAR  label of the run
--   pid        INTEGER  process
--   tid        INTEGER  thread
--   ts_ns      BIGINT   start, ns of CLOCK_MONOTONIC
--   dur_ns     BIGINT   until it was woken, ns
--   waker_tid  INTEGER  thread that woke it; NULL: not known
-- caveats:  waits inside CUDA calls are here as well. A timer that wakes a
--           thread does so in the name of whichever thread it interrupts.
CREATE VIEW _replay_waits AS
SELECT run, pid, tid, ts_ns, dur_ns, waker_tid
FROM sched
WHERE state IN ('blocked', 'io')
  AND dur_ns IS NOT NULL;
