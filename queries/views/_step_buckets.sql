-- _step_buckets: which steps are in which bucket of time.
-- requires: steps, _step_tracks
-- grain:    one row per bucket and step that is in it for some time
-- materialize: yes
-- columns:
--   track    BIGINT  as in _step_tracks
--   bucket   BIGINT  number of the bucket within its track, from 0
--   step_id  BIGINT  as in steps
--   ts_ns    BIGINT  start of the step, ns of CLOCK_MONOTONIC
--   end_ns   BIGINT  its end, ns of CLOCK_MONOTONIC
CREATE VIEW _step_buckets AS
SELECT
  tracks.track,
  unnest(
    range(
      (steps.ts_ns - tracks.first_ns) // tracks.bucket_ns,
      (steps.ts_ns + steps.period_ns - tracks.first_ns) // tracks.bucket_ns + 1
    )
  ) AS bucket,
  steps.step_id, steps.ts_ns,
  steps.ts_ns + steps.period_ns AS end_ns
FROM steps
INNER JOIN _step_tracks AS tracks
  ON steps.run = tracks.run
  AND steps.engine = tracks.engine
  AND steps.pid = tracks.pid
  AND steps.tid = tracks.tid
WHERE steps.period_ns > 0;
