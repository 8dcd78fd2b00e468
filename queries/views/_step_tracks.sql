-- _step_tracks: threads that drive steps, and lengths of time to look steps
--           up by.
-- requires: steps
-- grain:    one row per engine and thread with a step that has a period
-- materialize: yes
-- columns:
--   run        VARCHAR  label of the run
--   track      BIGINT   number of the row among all runs, from 1
--   engine     VARCHAR  as in steps
--   pid        INTEGER  process
--   tid        INTEGER  thread that drives the loop
--   first_ns   BIGINT   start of the first of these steps, ns of
--                       CLOCK_MONOTONIC
--   last_ns    BIGINT   end of the last one, ns of CLOCK_MONOTONIC
--   bucket_ns  BIGINT   length of a bucket, about that of a step, ns, > 0
CREATE VIEW _step_tracks AS
SELECT
  run,
  row_number() OVER (ORDER BY run, engine, pid, tid) AS track,
  engine, pid, tid,
  min(ts_ns) AS first_ns,
  max(ts_ns + period_ns) AS last_ns,
  greatest(
    CAST(median(period_ns) AS BIGINT), CAST(avg(period_ns) AS BIGINT) // 4, 1
  ) AS bucket_ns
FROM steps
WHERE period_ns IS NOT NULL
GROUP BY run, engine, pid, tid;
