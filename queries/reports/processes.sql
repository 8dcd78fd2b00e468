-- processes: the processes of the run, what each emitted and lost.
-- requires: processes, threads, nvtx, losses
-- grain:    one row per process, by start
-- columns:
--   run        VARCHAR  label of the run
--   pid        INTEGER  process
--   ppid       INTEGER  parent when first seen; NULL: unknown
--   start_ns   BIGINT   start, ns of CLOCK_MONOTONIC (10 ms grain)
--   dur_ns     BIGINT   length, ns; NULL: still running at the end
--   exit_code  INTEGER  exit status, 128 + n for signal n; NULL: still running
--                       or not observable
--   threads    BIGINT   threads seen
--   nvtx       BIGINT   NVTX ranges and marks
--   losses     BIGINT   what the process lost, all reasons together
--   exe        VARCHAR  path of the program; NULL: unknown
--   cmdline    VARCHAR  arguments, shell-quoted; NULL: unknown
-- caveats:  where a pid was used twice, threads, nvtx and losses are those of
--           both processes
WITH thread_counts AS (
  SELECT run, pid, count(*) AS threads
  FROM threads
  GROUP BY run, pid
),

nvtx_counts AS (
  SELECT run, pid, count(*) AS events
  FROM nvtx
  GROUP BY run, pid
),

loss_counts AS (
  SELECT run, pid, CAST(sum("count") AS BIGINT) AS losses
  FROM losses
  GROUP BY run, pid
)

SELECT
  p.run,
  p.pid,
  p.ppid,
  p.start_ns,
  p.end_ns - p.start_ns AS dur_ns,
  p.exit_code,
  coalesce(t.threads, 0) AS threads,
  coalesce(n.events, 0) AS nvtx,
  coalesce(l.losses, 0) AS losses,
  p.exe,
  p.cmdline
FROM processes AS p
LEFT JOIN thread_counts AS t ON p.run = t.run AND p.pid = t.pid
LEFT JOIN nvtx_counts AS n ON p.run = n.run AND p.pid = n.pid
LEFT JOIN loss_counts AS l ON p.run = l.run AND p.pid = l.pid
ORDER BY p.run, p.start_ns, p.ts_ns, p.pid;
