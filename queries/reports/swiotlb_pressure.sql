-- swiotlb_pressure: does the kernel's bounce-buffer pool run short?
-- requires: runs, swiotlb, counters
-- grain:    one row per run
-- columns:
--   run             VARCHAR  label of the run
--   answer          VARCHAR  yes, no or unknown
--   evidence        VARCHAR  what decided, in a sentence
--   full            BIGINT   mappings refused because the pool had no room;
--                            NULL: not known, since nothing was recorded, or
--                            by the tracepoint alone
--   over_size       BIGINT   mappings refused because they exceed 256 KiB, the
--                            most one can have: a bigger pool does not help;
--                            NULL as full
--   capacity_bytes  BIGINT   size of the pool, at its largest; NULL: not known
--   used_bytes      BIGINT   most that was mapped in a sample; NULL: not known
--   hiwater_bytes   BIGINT   most that was ever mapped, if that was during the
--                            run; NULL: not known, or before
--   used_ratio      DOUBLE   the larger of the two over capacity_bytes; NULL:
--                            not known
--   maps            BIGINT   mappings; NULL: not recorded
--   mapped_bytes    BIGINT   bytes they cover: what devices were to move; NULL
--                            as maps
--   bounced_bytes   BIGINT   bytes copied; NULL as full
--   bounced_per_s   DOUBLE   bounced_bytes a second of the run; NULL as full,
--                            or the run's end is not known
--   map_ns          BIGINT   sum of the lengths of the maps, with the copies
--                            they make, ns; NULL: not known
--   bounce_ns       BIGINT   sum of the lengths of the copies, ns; NULL: not
--                            known
--   map_p50_ns      BIGINT   median length of a map, ns; NULL: not known
--   map_max_ns      BIGINT   longest map, ns; NULL: not known
--   devices         BIGINT   devices that mapped; NULL as maps
--   first_full_ns   BIGINT   first mapping refused for want of room, ns of
--                            CLOCK_MONOTONIC; NULL: none, or not known
-- params:
--   min_ratio  DOUBLE = 0.9  yes from this used_ratio on
-- caveats:  of the whole machine. Mapped and bounced bytes are never to be
--           added: a read is mapped once and copied twice. GPUs in CC mode do
--           not pass here: see bounce_paths. By the tracepoint alone refused
--           mappings count as maps. A pool may have been fuller between two
--           samples, but for the high-water mark, which kernels have from 6.4
--           on and which counts from the boot: it is taken if it rose during
--           the run. The border of 0.9 is this report's own.
WITH asked AS (
  SELECT run, $min_ratio AS ratio
  FROM runs
),

operations AS (
  SELECT
    run,
    bool_or(op <> 'map' OR dur_ns IS NOT NULL) AS by_function,
    count(*) FILTER (op = 'full' AND size_bytes <= 262144) AS "full",
    count(*) FILTER (op = 'full' AND size_bytes > 262144) AS over_size,
    min(ts_ns) FILTER (op = 'full' AND size_bytes <= 262144) AS first_full_ns,
    count(*) FILTER (op = 'map') AS maps,
    sum(size_bytes) FILTER (op = 'map') AS mapped_bytes,
    sum(size_bytes) FILTER (op = 'bounce') AS bounced_bytes,
    sum(dur_ns) FILTER (op = 'map') AS map_ns,
    sum(dur_ns) FILTER (op = 'bounce') AS bounce_ns,
    quantile_disc(dur_ns, 0.5) FILTER (op = 'map') AS map_p50_ns,
    max(dur_ns) FILTER (op = 'map') AS map_max_ns,
    count(DISTINCT device) FILTER (op = 'map') AS devices
  FROM swiotlb
  GROUP BY run
),

pools AS (
  SELECT
    run,
    max("value") FILTER (name = 'swiotlb.capacity') AS capacity,
    max("value") FILTER (name = 'swiotlb.used') AS used,
    min("value") FILTER (name = 'swiotlb.used_hiwater') AS hiwater_before,
    max("value") FILTER (name = 'swiotlb.used_hiwater') AS hiwater
  FROM counters
  WHERE starts_with(name, 'swiotlb.')
  GROUP BY run
),

-- Where nothing was bounced it does not matter how that was looked for.
looked AS (
  SELECT
    runs.run,
    operations.run IS NOT NULL
    OR contains(',' || runs.attached || ',', ',swiotlb,') AS is_recorded,
    CASE
      WHEN operations.run IS NOT NULL THEN operations.by_function
      ELSE contains(',' || runs.attached || ',', ',swiotlb,')
    END AS tells_refusals
  FROM runs
  LEFT JOIN operations
    ON runs.run = operations.run
),

figures AS (
  SELECT
    runs.run,
    looked.is_recorded,
    CASE
      WHEN looked.tells_refusals
        THEN coalesce(operations."full", 0)
    END AS "full",
    CASE
      WHEN looked.tells_refusals
        THEN coalesce(operations.over_size, 0)
    END AS over_size,
    pools.capacity,
    pools.used,
    CASE WHEN pools.hiwater > pools.hiwater_before THEN pools.hiwater END
      AS hiwater,
    pools.hiwater AS hiwater_ever,
    CASE WHEN looked.is_recorded THEN coalesce(operations.maps, 0) END
      AS maps,
    CASE WHEN looked.is_recorded THEN coalesce(operations.mapped_bytes, 0) END
      AS mapped_bytes,
    CASE
      WHEN looked.tells_refusals
        THEN coalesce(operations.bounced_bytes, 0)
    END AS bounced_bytes,
    runs.stop_ns - runs.start_ns AS run_ns,
    operations.map_ns,
    operations.bounce_ns,
    operations.map_p50_ns,
    operations.map_max_ns,
    CASE WHEN looked.is_recorded THEN coalesce(operations.devices, 0) END
      AS devices,
    operations.first_full_ns
  FROM runs
  INNER JOIN looked
    ON runs.run = looked.run
  LEFT JOIN operations
    ON runs.run = operations.run
  LEFT JOIN pools
    ON runs.run = pools.run
),

judged AS (
  SELECT
    figures.run, figures.is_recorded, figures."full", figures.over_size,
    figures.capacity, figures.used, figures.hiwater, figures.maps,
    figures.mapped_bytes,
    figures.bounced_bytes, figures.run_ns, figures.map_ns, figures.bounce_ns,
    figures.map_p50_ns, figures.map_max_ns, figures.devices,
    figures.first_full_ns,
    asked.ratio,
    -- No sample can have missed a fuller pool.
    coalesce(
      figures.hiwater IS NOT NULL
      OR figures.hiwater_ever < asked.ratio * figures.capacity,
      FALSE
    ) AS is_bounded,
    greatest(figures.used, figures.hiwater) / nullif(figures.capacity, 0)
      AS used_ratio
  FROM figures
  INNER JOIN asked
    ON figures.run = asked.run
)

SELECT
  run,
  CASE
    WHEN "full" > 0 OR used_ratio >= ratio THEN 'yes'
    WHEN NOT is_recorded AND used_ratio IS NULL THEN 'unknown'
    WHEN "full" IS NULL AND NOT is_bounded THEN 'unknown'
    WHEN NOT is_recorded AND NOT is_bounded THEN 'unknown'
    ELSE 'no'
  END AS answer,
  CASE
    WHEN NOT is_recorded AND used_ratio IS NULL
      THEN 'bounce buffers were not recorded'
    WHEN NOT is_recorded OR maps + coalesce("full" + over_size, 0) = 0
      THEN CASE
        WHEN is_recorded THEN 'nothing was bounced'
        ELSE 'bounces were not recorded'
      END
    WHEN "full" IS NULL THEN format(
      '{:,} mapping(s) of {:.1f} MB were seen by the tracepoint, which does '
      'not tell those that were refused',
      maps, mapped_bytes / 1e6
    )
    WHEN "full" > 0 THEN format(
      '{:,} mapping(s) were refused for want of room, of {:,}',
      "full", maps + "full" + over_size
    )
    ELSE format(
      '{:,} mapping(s) of {:.1f} MB found room',
      maps, mapped_bytes / 1e6
    )
  END
  || CASE
    WHEN over_size > 0 THEN format(
      '; {:,} were refused because they exceed 256 KiB, which no pool holds',
      over_size
    )
    ELSE ''
  END
  || CASE
    WHEN used_ratio IS NOT NULL THEN format(
      '; at most {:.1f} of {:.1f} MB were in use ({:.0f}%{})',
      greatest(used, hiwater) / 1e6, capacity / 1e6, 100 * used_ratio,
      CASE
        WHEN is_bounded THEN ''
        ELSE ', as far as sampled'
      END
    )
    ELSE ''
  END AS evidence,
  "full",
  over_size,
  CAST(capacity AS BIGINT) AS capacity_bytes,
  CAST(used AS BIGINT) AS used_bytes,
  CAST(hiwater AS BIGINT) AS hiwater_bytes,
  CAST(used_ratio AS DOUBLE) AS used_ratio,
  maps,
  CAST(mapped_bytes AS BIGINT) AS mapped_bytes,
  CAST(bounced_bytes AS BIGINT) AS bounced_bytes,
  CAST(bounced_bytes * 1e9 / nullif(run_ns, 0) AS DOUBLE) AS bounced_per_s,
  CAST(map_ns AS BIGINT) AS map_ns,
  CAST(bounce_ns AS BIGINT) AS bounce_ns,
  map_p50_ns,
  map_max_ns,
  devices,
  first_full_ns
FROM judged
ORDER BY run;
