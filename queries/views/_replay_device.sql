-- _replay_device: what the device was seen to do for each call.
-- requires: gpu_activity
-- grain:    one row per process and correlation_id of gpu_activity
-- columns:
--   run             VARCHAR  label of the run
--   pid             INTEGER  process
--   correlation_id  BIGINT   joins _replay_calls.correlation_id
--   ts_ns           BIGINT   start of the first piece of work, ns of
--                            CLOCK_MONOTONIC
--   dur_ns          BIGINT   until the end of the last one, ns
-- caveats:  the kernels of a graph have one correlation_id: dur_ns holds the
--           pauses between them as well.
CREATE VIEW _replay_device AS
SELECT
  run, pid, correlation_id,
  min(ts_ns) AS ts_ns,
  max(ts_ns + dur_ns) - min(ts_ns) AS dur_ns
FROM gpu_activity
WHERE correlation_id IS NOT NULL
  AND pid IS NOT NULL
  AND dur_ns IS NOT NULL
GROUP BY run, pid, correlation_id;
