-- copies: what was copied over the bridge, by kind, host memory and size.
-- requires: crossings
-- grain:    one row per run, kind of copy, host memory and size class
-- columns:
--   run              VARCHAR  label of the run
--   copy_kind        VARCHAR  h2d, d2h, d2d, p2p, h2h or unknown
--   host_memory      VARCHAR  pinned, pageable, registered, managed or unknown;
--                             NULL: the copy does not touch the host, or its
--                             kind is not known
--   size_from_bytes  BIGINT   least size of the class: 0, 4 KiB, 64 KiB, 1 MiB,
--                             16 MiB or 256 MiB; NULL: size not told
--   calls            BIGINT   copies, open ones included
--   size_bytes       BIGINT   sum of their sizes; NULL: size not told
--   total_ns         BIGINT   sum of the host's time in them, ns; NULL: all are
--                             open
--   p50_ns           BIGINT   median of it, ns; NULL as total_ns
--   p99_ns           BIGINT   99th percentile of it, ns; NULL as total_ns
--   bytes_per_s      DOUBLE   bytes of those that returned over their time;
--                             NULL: size not told, or no time
-- params:
--   pid  INTEGER = NULL  only this process
-- caveats:  the time is what the host spends in the call: for one that returns
--           before the copy is made it says nothing about the copy, and for one
--           that waits for its stream it holds that wait. Copies replayed by a
--           graph make no call and are not here. Percentiles are lengths that
--           occurred, not interpolated.
WITH sized AS (
  SELECT
    run, copy_kind, host_memory, size_bytes, dur_ns,
    CASE
      WHEN size_bytes < 4096 THEN 0
      WHEN size_bytes < 65536 THEN 4096
      WHEN size_bytes < 1048576 THEN 65536
      WHEN size_bytes < 16777216 THEN 1048576
      WHEN size_bytes < 268435456 THEN 16777216
      WHEN size_bytes IS NOT NULL THEN 268435456
    END AS size_from_bytes
  FROM crossings
  WHERE "class" = 'copy'
    AND ($pid IS NULL OR pid = $pid)
),

summed AS (
  SELECT
    run, copy_kind, host_memory, size_from_bytes,
    count(*) AS calls,
    CAST(sum(size_bytes) AS HUGEINT) AS size_bytes,
    CAST(sum(size_bytes) FILTER (dur_ns IS NOT NULL) AS DOUBLE) AS timed_bytes,
    CAST(sum(dur_ns) AS BIGINT) AS total_ns,
    quantile_disc(dur_ns, [0.5, 0.99]) AS quantiles
  FROM sized
  GROUP BY run, copy_kind, host_memory, size_from_bytes
)

SELECT
  run,
  copy_kind,
  host_memory,
  CAST(size_from_bytes AS BIGINT) AS size_from_bytes,
  calls,
  -- As cuda_summary: sizes are the program's word.
  CASE
    WHEN size_bytes IS NOT NULL
      THEN CAST(least(size_bytes, 9223372036854775807) AS BIGINT)
  END AS size_bytes,
  total_ns,
  quantiles[1] AS p50_ns,
  quantiles[2] AS p99_ns,
  round(1e9 * timed_bytes / nullif(total_ns, 0)) AS bytes_per_s
FROM summed
ORDER BY run, copy_kind, host_memory NULLS LAST, size_from_bytes NULLS LAST;
