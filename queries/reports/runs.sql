-- runs: what was recorded, when, and how it ended.
-- requires: runs, processes
-- grain:    one row per run, by start
-- columns:
--   run         VARCHAR    label of the run
--   command     VARCHAR    the target's arguments, shell-quoted
--   started     TIMESTAMP  start, UTC; NULL: out of range
--   dur_ns      BIGINT     length of the recording, ns; NULL: not over, or the
--                          recorder was killed
--   ended       VARCHAR    how it ended; see docs/run-format.md
--   exit_code   INTEGER    the target's status; NULL: not known
--   processes   BIGINT     processes seen
--   events      BIGINT     events recorded
--   lost        BIGINT     events lost; the report losses tells why
--   size_bytes  BIGINT     bytes on disk
--   tee         VARCHAR    none, tdx, sev-snp or unknown; NULL: not recorded
--   gpu_cc      VARCHAR    off, on, devtools or unknown; NULL: not recorded
SELECT
  runs.run,
  runs.command,
  runs.started,
  runs.stop_ns - runs.start_ns AS dur_ns,
  runs.ended,
  runs.exit_code,
  count(processes.pid) AS processes,
  runs.events,
  runs.lost,
  runs.size_bytes,
  runs.tee,
  runs.gpu_cc
FROM runs
LEFT JOIN processes ON runs.run = processes.run
GROUP BY ALL
ORDER BY runs.started, runs.run;
