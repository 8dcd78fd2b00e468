-- _call_runnable: time within calls that their thread waited for a CPU.
-- requires: _off_cpu
-- grain:    one row per call of cuda_api at depth 0 within which its thread was
--           ready and had no CPU
-- materialize: yes
-- columns:
--   run          VARCHAR  label of the run
--   pid          INTEGER  process
--   tid          INTEGER  thread
--   ts_ns        BIGINT   start of the call, ns of CLOCK_MONOTONIC
--   runnable_ns  BIGINT   time without a CPU, ns, > 0
-- caveats:  as those of _off_cpu.
CREATE VIEW _call_runnable AS
SELECT
  run, pid, tid,
  call_ns AS ts_ns,
  CAST(sum(inside_ns) AS BIGINT) AS runnable_ns
FROM _off_cpu
WHERE is_runnable
  AND inside_ns > 0
GROUP BY run, pid, tid, call_ns;
