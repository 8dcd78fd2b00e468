-- _trace_facts: losses, and how long processes lived, as a trace draws them.
-- requires: runs, losses, processes
-- grain:    one row per row of losses and per row of processes
-- columns:
--   run            VARCHAR  label of the run
--   pid            INTEGER  process; NULL: of none
--   track          VARCHAR  track of the process: `losses` or `process`
--   ts_ns          BIGINT   first loss, or when the process started, at the
--                           start of the run at the earliest, ns of
--                           CLOCK_MONOTONIC
--   dur_ns         BIGINT   until the last loss, or until the process ended,
--                           ns, >= 0; NULL: it still runs
--   is_instant     BOOLEAN  a loss at one moment
--   name           VARCHAR  reason for the loss, or the program
--   category       VARCHAR  losses or processes
--   source         VARCHAR  as in losses; NULL: a process
--   lost           BIGINT   count of losses
--   lost_tid       INTEGER  tid of losses
--   is_time_known  BOOLEAN  FALSE: when it was lost is not known, and it is
--                           drawn over the whole run; NULL: a process
--   start_ns       BIGINT   as in processes; NULL: a loss
--   end_ns         BIGINT   as in processes
--   ppid           INTEGER  as in processes
--   exit_code      INTEGER  as in processes
--   cmdline        VARCHAR  as in processes
CREATE VIEW _trace_facts AS
WITH lost AS (
  SELECT
    losses.run, losses.pid, losses.tid, losses.source, losses.reason,
    losses."count",
    coalesce(losses.first_ns, losses.last_ns, runs.start_ns) AS ts_ns,
    coalesce(
      losses.last_ns, losses.first_ns, runs.stop_ns, runs.start_ns
    ) AS last_ns,
    coalesce(losses.first_ns, losses.last_ns) IS NOT NULL AS is_time_known
  FROM losses
  INNER JOIN runs
    ON losses.run = runs.run
)

SELECT
  run, pid,
  'losses' AS track,
  ts_ns,
  greatest(last_ns - ts_ns, 0) AS dur_ns,
  last_ns <= ts_ns AS is_instant,
  reason AS name,
  'losses' AS category,
  source,
  "count" AS lost,
  tid AS lost_tid,
  is_time_known,
  CAST(NULL AS BIGINT) AS start_ns,
  CAST(NULL AS BIGINT) AS end_ns,
  CAST(NULL AS INTEGER) AS ppid,
  CAST(NULL AS INTEGER) AS exit_code,
  NULL AS cmdline
FROM lost
UNION ALL
SELECT
  processes.run, processes.pid,
  'process' AS track,
  greatest(processes.start_ns, runs.start_ns) AS ts_ns,
  CASE
    WHEN processes.end_ns IS NOT NULL THEN greatest(
      processes.end_ns - greatest(processes.start_ns, runs.start_ns), 0
    )
  END AS dur_ns,
  FALSE AS is_instant,
  processes.exe AS name,
  'processes' AS category,
  NULL AS source,
  CAST(NULL AS BIGINT) AS lost,
  CAST(NULL AS INTEGER) AS lost_tid,
  NULL AS is_time_known,
  processes.start_ns, processes.end_ns, processes.ppid, processes.exit_code,
  processes.cmdline
FROM processes
INNER JOIN runs
  ON processes.run = runs.run;
